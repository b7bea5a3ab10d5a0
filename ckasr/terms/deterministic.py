"""The base class of terms without random numbers, with the layers, samples and steps of CKA-SR."""

from typing import Any

from torch import nn

from ckasr.regularizer import CKASR


class Deterministic(CKASR):
    """CKA-SR without random numbers. A subclass may replace its formula, ``_value``.

    Args:
        seed: not used.
        model, beta, options: as in :class:`ckasr.CKASR`.
    """

    def __init__(self, model: nn.Module, beta: float, *, seed: int = 0, **options: Any) -> None:
        super().__init__(model, beta, **options)
