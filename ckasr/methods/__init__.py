"""Sparse-training methods, one file each, behind one interface (``method.py``)."""

from dataclasses import fields
from typing import Any

from ckasr.names import nearest

from .dense import Dense
from .dlth import DLTH
from .gmp import GMP
from .grasp import GraSP
from .l0 import L0
from .l1 import L1
from .lth import LTH
from .magnitude import Magnitude
from .method import Context, Method, Phase, TrainingState
from .random import Random
from .rigl import RigL
from .scores import score
from .set import SET
from .snip import SNIP
from .structured import Structured
from .synflow import SynFlow

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Dense,
        Random,
        Magnitude,
        SNIP,
        GraSP,
        SynFlow,
        LTH,
        DLTH,
        GMP,
        SET,
        RigL,
        L0,
        L1,
        Structured,
    )
}

__all__ = ["METHODS", "Context", "Method", "Phase", "TrainingState", "create", "score"]


def create(name: str, options: dict[str, Any] | None = None) -> Method:
    """Create a method from its name and its options.

    Args:
        name: name of the method, a key of ``METHODS``.
        options: hyperparameters by name. A value may be a string, as on the command line; it is
            converted to the type of the option.

    Raises:
        LookupError: for an unknown method or option; the message lists similar names.
        ValueError: for a value that cannot be converted to the type of the option.
    """
    if name not in METHODS:
        raise LookupError(f"unknown method {name!r}{nearest(name, METHODS)}")
    known = {field.name: field for field in fields(METHODS[name])}
    values = {}
    for key, value in (options or {}).items():
        if key not in known:
            raise LookupError(f"method {name!r} has no option {key!r}{nearest(key, known)}")
        values[key] = _read(name, key, value, type(known[key].default))
    return METHODS[name](**values)


def _read(method: str, key: str, value: Any, kind: type) -> Any:
    words = {"true": True, "false": False}
    try:
        if kind is bool:
            return value if isinstance(value, bool) else words[str(value).lower()]
        if kind is int and float(value) != int(float(value)):
            raise ValueError
        if kind is str and isinstance(value, tuple | list):  # levels=0.5,0.8 on a command line
            return ",".join(map(str, value))
        return kind(float(value)) if kind is int else kind(value)
    except (KeyError, ValueError, TypeError):
        raise ValueError(
            f"option {key!r} of method {method!r} must be {kind.__name__}, got {value!r}"
        ) from None
