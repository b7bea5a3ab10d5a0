"""Random pruning at initialisation: the host of the paper's released code.

Liu et al. 2022, "The Unreasonable Effectiveness of Random Pruning" (arXiv 2202.02643), with layer
densities uniform, ER or ERK (Evci et al. 2020, appendix). The authors draw each weight on its own
(Bernoulli masks); here each layer keeps an exact count.
"""

from dataclasses import dataclass
from typing import ClassVar

from ckasr.sparsity import layer_densities, random_masks

from .method import Context, Method


@dataclass
class Random(Method):
    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "random weights, before training (Liu et al. 2022)"
    uses_distribution: ClassVar[bool] = True

    def prepare(self, context: Context) -> None:
        shapes = context.shapes()
        _ = context.kept  # raises where nothing would be left
        densities = layer_densities(shapes, context.density, context.distribution)
        context.masks.update(random_masks(shapes, densities, context.seed))
