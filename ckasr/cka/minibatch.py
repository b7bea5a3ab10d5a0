"""CKA over more samples than the memory can contain at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ckasr.choices import check_choice

from .grams import hsic_scale
from .inputs import Estimator, check_layers
from .matrix import normalise, products_of


class MinibatchCKA:
    """CKA of every pair of layers over minibatches: HSIC is averaged and then normalised.

    With the unbiased estimator, the average of HSIC is unbiased at any batch size (Nguyen, Raghu
    and Kornblith 2021, arXiv 2010.15327, eq. 2-3). Batches of a few hundred samples are therefore
    sufficient for a data set of any size.

    Args:
        estimator: ``"unbiased"`` or ``"biased"``.

    Raises:
        ValueError: for an unknown estimator.
    """

    def __init__(self, estimator: Estimator = "unbiased") -> None:
        check_choice("estimator", estimator, Estimator)
        self.estimator: Estimator = estimator
        self.samples = 0
        self.batches = 0
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None  # HSIC, its floor, the scale

    @torch.no_grad()
    def update(self, features: Sequence[Tensor]) -> None:
        """Add one minibatch.

        Args:
            features: tensor ``(n, ...)`` for each layer, in the same order at every call.

        Raises:
            ValueError: if the number of layers has changed, and as :func:`cka_matrix`.
            TypeError: as :func:`cka_matrix`.
        """
        layers = check_layers(features, self.estimator)
        products, floor, scale = products_of(layers, self.estimator)
        zeros = torch.zeros_like(products), torch.zeros_like(floor), torch.zeros_like(scale)
        hsic, floors, first = zeros if self._sums is None else self._sums
        if len(hsic) != len(products):
            raise ValueError(f"{len(products)} layers given, {len(hsic)} before")
        # HSIC of all batches has the scale of the first batch in which the layer is not constant.
        first = torch.where(first > 0, first, scale)
        units = torch.where(scale == first, 1, scale / first).square()
        n = len(layers[0])
        divisor = hsic_scale(n, self.estimator)
        self._sums = (
            hsic + products * (units[:, None] * units[None, :]) / divisor,
            floors + floor * units.square() / divisor,
            first,
        )
        self.samples += n
        self.batches += 1

    def compute(self) -> Tensor:
        """Return the CKA matrix ``(layers, layers)`` of all minibatches in float64.

        CKA of a dead layer is 0.

        Raises:
            ValueError: if no minibatch was added.
        """
        if self._sums is None:
            raise ValueError("no minibatch was added; call update(features) first")
        hsic, floor, _ = self._sums
        return normalise(hsic, floor)
