"""The similarity of layers to each other, by regularised canonical correlation analysis."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from ckasr.cka.grams import center, gram_linear
from ckasr.cka.loss import sum_over_pairs

from .deterministic import Deterministic

RIDGE = 0.1
"""Regularisation of each covariance, relative to the mean of its ``n - 1`` largest eigenvalues."""


class CCA(Deterministic):
    """CKA-SR with the mean squared canonical correlation in the place of CKA.

    Without regularisation (``R^2_CCA``, Kornblith et al. 2019, table 1) the mean is exactly 1, with
    the gradient 0, as soon as two layers have at least ``n - 1`` linearly independent features on
    ``n`` samples, because each then explains the other. With 8 samples every usual layer has. So
    the covariances are regularised, as in ridge regression: for the centred features ``X`` of a
    layer and ``K = X X'``,

        R_X = K (K + k I)^-1  with  k = RIDGE tr(K) / (n - 1)

    and the squared canonical correlations of two layers add up to ``tr(R_X R_Y)``. The value of a
    pair is this sum divided by ``n - 1``, the largest number of correlations that ``n`` samples
    have. Correlations that a layer with fewer features lacks count as 0. The value is in [0, 1),
    also for a layer with itself, and does not depend on the scale of the features.

    Eigenvalues of ``K`` far above ``k`` count as 1 in ``R_X``, so with few samples and many
    features of similar variance the values are near 1 for all layers: the term has much less
    contrast than CKA, and its size depends on ``RIDGE``. The term is not the CCA regulariser of the
    paper's appendix, whose formula is not published, so no number of the paper applies.

    The variants ``official`` and ``paper`` are the same here; ``aug`` is the mean over pairs.
    """

    name: ClassVar[str] = "cca"
    label: ClassVar[str] = "CCA"
    summary: ClassVar[str] = "the similarity of layers to each other, by regularised CCA"

    def _value(self, groups: list[list[Tensor]]) -> Tensor:
        layers = [feature for group in groups for feature in group]
        count = len(layers[0])
        with torch.autocast(layers[0].device.type, enabled=False):
            grams = center(torch.stack([gram_linear(x) for x in layers]), "biased")
            traces = grams.diagonal(dim1=1, dim2=2).sum(1)
            # The mean eigenvalue becomes 1, so one ridge serves all layers. A dead layer stays 0.
            inverse = (count - 1) / traces.masked_fill(traces <= 0, math.inf)
            grams = grams * inverse[:, None, None]
            identity = torch.eye(count, dtype=grams.dtype, device=grams.device)
            # Neither function waits for the device to check its result, as linalg.solve does.
            factor, _ = torch.linalg.cholesky_ex(grams + RIDGE * identity)
            smoothed = torch.cholesky_solve(grams, factor).flatten(1)
            rows = smoothed / (count - 1) ** 0.5
            return sum_over_pairs(rows, [len(group) for group in groups], self.variant, self.pairs)
