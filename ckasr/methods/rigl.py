"""RigL: drop the smallest weights and grow the weights with the largest gradients of the loss.

Evci et al. 2020, "Rigging the lottery" (arXiv 1911.11134), algorithm 1 and equation 1. The gradient
is that of the whole loss, including the added term, with respect to all weights, including the
pruned ones.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ckasr.sparsity import prunable

from .dynamic import Dynamic
from .method import Context, TrainingState


@dataclass
class RigL(Dynamic):
    """Grows the pruned weights with the largest gradients. The options are those of ``Dynamic``."""

    name: ClassVar[str] = "rigl"
    summary: ClassVar[str] = (
        "prunes random weights; exchanges the smallest weights for those with the largest "
        "gradients (Evci et al. 2020)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # These gradients are used within one step, so they are not part of a checkpoint.
        self._gradients: dict[str, Tensor] = {}

    def needs_dense_gradient(self, context: Context, state: TrainingState) -> bool:
        return self.updates_at(state.step + 1, state.steps)

    def after_backward(self, context: Context, state: TrainingState) -> None:
        if self.needs_dense_gradient(context, state):
            self._gradients = {
                name: torch.zeros_like(weight) if weight.grad is None else weight.grad.abs()
                for name, weight in prunable(context.model).items()
            }

    def growth(self, name: str, context: Context, state: TrainingState) -> Tensor:
        return self._gradients.pop(name)
