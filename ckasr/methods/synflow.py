"""SynFlow: the weights with the least synaptic flow are pruned in many small steps, without data.

Tanaka et al. 2020, "Pruning neural networks without any data by iteratively conserving synaptic
flow" (arXiv 2006.05467), equation 2 and algorithm 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ckasr.sparsity import dense_masks, global_topk_masks

from . import scores
from .method import Context, Method


@dataclass
class SynFlow(Method):
    """Keeps the weights with the most synaptic flow, in several rounds of scoring and pruning.

    Args:
        steps: number of rounds. Each round multiplies the density by the same factor.
    """

    name: ClassVar[str] = "synflow"
    summary: ClassVar[str] = (
        "prunes weights with the least synaptic flow in 100 steps before training "
        "(Tanaka et al. 2020)"
    )

    steps: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"option steps of method 'synflow' is {self.steps}: at least 1")

    def prepare(self, context: Context) -> Mapping[str, Tensor]:
        kept, total = context.kept, context.total
        masks: dict[str, Tensor] = dict(dense_masks(context.model))
        x, _ = next(context.samples())
        for step in range(1, self.steps + 1):
            saliency = scores.synflow(context.model, x, masks=masks)
            # A pruned weight has the score -1, because a kept weight without flow also scores zero.
            saliency = {n: torch.where(masks[n], s, -1.0) for n, s in saliency.items()}
            # The number of pruned weights is rounded down, as in the authors' code. The last step
            # keeps the exact count.
            left = total - int((1 - context.density ** (step / self.steps)) * total)
            masks = global_topk_masks(saliency, max(left, kept) if step < self.steps else kept)
        return masks
