"""The dependence of layers on each other, by HSIC without the normalisation of CKA."""

from typing import ClassVar

import torch
from torch import Tensor

from ckasr.cka.grams import center, gram_linear, hsic_scale
from ckasr.cka.loss import ESTIMATOR_OF, sum_over_pairs

from .deterministic import Deterministic


class HSIC(Deterministic):
    """CKA-SR with HSIC in the place of CKA: linear kernel, same layers, samples and pairs.

    CKA is ``HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y))``. Without the denominator the term depends on
    the scale of the features, to the fourth power within one layer, and the sum contains the pairs
    of a layer with itself, which are the constant 1 in CKA. The term is therefore also a penalty on
    the scale, and grows with the number of features: beta must be chosen anew for each network.

    The estimator is that of the variant: unbiased HSIC (Song et al. 2012, eq. 5) for ``official``,
    biased HSIC (Gretton et al. 2005, eq. 9) for ``paper`` and ``aug``.
    """

    name: ClassVar[str] = "hsic"
    label: ClassVar[str] = "HSIC"
    summary: ClassVar[str] = "the dependence of layers on each other, by HSIC, not normalised"

    def _value(self, groups: list[list[Tensor]]) -> Tensor:
        estimator = ESTIMATOR_OF[self.variant]
        layers = [feature for group in groups for feature in group]
        with torch.autocast(layers[0].device.type, enabled=False):
            grams = center(torch.stack([gram_linear(x) for x in layers]), estimator)
            rows = grams.flatten(1) / hsic_scale(len(layers[0]), estimator) ** 0.5
            return sum_over_pairs(rows, [len(group) for group in groups], self.variant, self.pairs)
