"""Terms that can be added to the training loss, one file each, behind one interface (``term.py``).

``cka_sr`` is the paper's. The placebos (``placebo.py``) share its strength but not what it is meant
to do. If a placebo changes the accuracy as much as CKA-SR does, then the similarity of the layers
is not the reason. ``hsic`` and ``cca`` measure the relation of the same layers by other formulas,
and ``l2_features`` compares no layers. The strength of these three is not that of CKA-SR.
"""

from typing import Any

from torch import nn

from ckasr.names import nearest

from .cca import CCA
from .cka_sr import CKASRTerm
from .combined import Combined
from .hsic import HSIC
from .l2_features import L2Features
from .random_direction import RandomDirection
from .shuffled import Shuffled
from .term import NamedTerm, Term


def registry(*kinds: type[NamedTerm]) -> dict[str, type[NamedTerm]]:
    """Terms by name.

    Raises TypeError for a term that has no name, label or summary of its own, or that of another
    term: it would be printed as the other one.
    """
    for what in ("name", "label", "summary"):
        seen: dict[str, type[NamedTerm]] = {}
        for kind in kinds:
            # vars: what it inherits belongs to another term.
            if not (text := vars(kind).get(what)):
                raise TypeError(f"the term {kind.__name__} must define its own {what}")
            if (other := seen.setdefault(text, kind)) is not kind:
                raise TypeError(
                    f"the terms {other.__name__} and {kind.__name__} have the same {what}, "
                    f"{text!r}: change one of them"
                )
    return {kind.name: kind for kind in kinds}


TERMS = registry(CKASRTerm, Shuffled, RandomDirection, HSIC, CCA, L2Features)

__all__ = ["TERMS", "Combined", "Term", "create", "find"]


def find(name: str) -> type[NamedTerm]:
    """The term of this name. Raises LookupError for an unknown one, with the nearest names."""
    if name not in TERMS:
        raise LookupError(f"unknown term {name!r}{nearest(name, TERMS)}")
    return TERMS[name]


def create(name: str, model: nn.Module, beta: float, *, seed: int = 0, **options: Any) -> Term:
    """A term by name, with its hooks on the model.

    Args:
        name: a key of ``TERMS``.
        model: the module to train.
        beta: weight of the term.
        seed: seed of whatever is random in it.
        options: ``variant``, ``samples``, ``every``, ``pairs`` and ``stages``, as in
            :class:`ckasr.CKASR`.

    Raises:
        LookupError: for an unknown term, with the nearest names.
        ValueError: for bad options.
    """
    return find(name)(model, beta, seed=seed, **options)
