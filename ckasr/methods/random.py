"""Random pruning at initialisation.

Liu et al. 2022, "The Unreasonable Effectiveness of Random Pruning" (arXiv 2202.02643), with
uniform, ER or ERK densities of the layers (Evci et al. 2020, appendix). The released code of CKA-SR
uses this method. The authors prune each weight independently (Bernoulli masks); here the number of
kept weights of each layer is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ckasr.sparsity import layer_densities, random_masks

from .method import Context, Method


@dataclass
class Random(Method):
    """Prunes random weights before training. The number of kept weights of each layer is exact."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "prunes random weights before training (Liu et al. 2022)"
    uses_distribution: ClassVar[bool] = True

    def prepare(self, context: Context) -> Mapping[str, Tensor]:
        shapes = context.shapes()
        densities = layer_densities(shapes, context.density, context.distribution)
        return random_masks(shapes, densities, context.seed)
