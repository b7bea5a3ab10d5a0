"""Sparse-training methods, one file each, behind one interface (``method.py``)."""

import difflib
from dataclasses import fields
from typing import Any

from .dense import Dense
from .method import Context, Method, Phase
from .random import Random

METHODS: dict[str, type[Method]] = {method.name: method for method in (Dense, Random)}

__all__ = ["METHODS", "Context", "Method", "Phase", "create"]


def create(name: str, options: dict[str, Any] | None = None) -> Method:
    """A method by name, with its hyper-parameters.

    Options may be strings, as typed on a command line; each is read as its field's type. Raises
    LookupError for an unknown method or option (with the nearest names), ValueError for a value
    that is not of the option's type.
    """
    if name not in METHODS:
        raise LookupError(f"unknown method {name!r}{_nearest(name, METHODS)}")
    known = {field.name: field for field in fields(METHODS[name])}
    values = {}
    for key, value in (options or {}).items():
        if key not in known:
            raise LookupError(f"method {name!r} has no option {key!r}{_nearest(key, known)}")
        values[key] = _read(name, key, value, type(known[key].default))
    return METHODS[name](**values)


def _nearest(name: str, names: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or sorted(names)
    return f"; nearest: {', '.join(near)}" if near else "; it has no options"


def _read(method: str, key: str, value: Any, kind: type) -> Any:
    words = {"true": True, "false": False}
    try:
        if kind is bool:
            return value if isinstance(value, bool) else words[str(value).lower()]
        if kind is int and float(value) != int(float(value)):
            raise ValueError
        return kind(float(value)) if kind is int else kind(value)
    except (KeyError, ValueError, TypeError):
        raise ValueError(
            f"option {key!r} of method {method!r} must be {kind.__name__}, got {value!r}"
        ) from None
