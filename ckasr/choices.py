"""Checks of arguments: one of a few names, or an integer with a lower limit."""

from numbers import Integral
from typing import Any, get_args

from ckasr.names import nearest


def check_choice(what: str, value: object, choices: Any) -> None:
    """Check a name against the type that lists the possible names.

    Args:
        what: name of the argument, for the message.
        value: its value.
        choices: a ``Literal`` type.

    Raises:
        ValueError: for any other value; the message lists similar names.
    """
    names = get_args(choices)
    if value not in names:
        raise ValueError(f"unknown {what} {value!r}{nearest(str(value), names)}")


def listed(choices: Any) -> str:
    """Return the names of a ``Literal`` type in words: ``"uniform, er or erk"``."""
    *others, last = [name or "''" for name in get_args(choices)]
    return f"{', '.join(others)} or {last}" if others else last


def one_of(value: object, choices: Any) -> tuple[bool, str]:
    """Return whether a value is a name of a ``Literal`` type, and the names in words."""
    return value in get_args(choices), listed(choices)


def check_count(what: str, value: object, least: int, alternative: str = "") -> None:
    """Check an integer argument.

    Args:
        what: name of the argument, for the message.
        value: its value.
        least: smallest allowed value.
        alternative: other allowed values, for the message.

    Raises:
        ValueError: for a value that is not an integer, or below ``least``.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{what} must be at least {least}{alternative}, as an integer; got {value!r}"
        )
