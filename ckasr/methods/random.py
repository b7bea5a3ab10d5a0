"""Random pruning at initialisation: the host of the paper's released code.

Liu et al. 2022, "The Unreasonable Effectiveness of Random Pruning" (arXiv 2202.02643), with layer
densities uniform, ER or ERK (Evci et al. 2020, appendix). The authors draw each weight on its own
(Bernoulli masks); here each layer keeps an exact count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ckasr.sparsity import layer_densities, random_masks

from .method import Context, Method


@dataclass
class Random(Method):
    """Random masks, drawn once before training. All layers keep an exact count of weights."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "random weights, before training (Liu et al. 2022)"
    uses_distribution: ClassVar[bool] = True

    def prepare(self, context: Context) -> Mapping[str, Tensor]:
        shapes = context.shapes()
        densities = layer_densities(shapes, context.density, context.distribution)
        return random_masks(shapes, densities, context.seed)
