"""RigL: drop the smallest weights, grow those whose loss gradient is largest.

Evci et al. 2020, "Rigging the lottery" (arXiv 1911.11134), algorithm 1 and equation 1. The gradient
is that of the whole loss, CKA-SR included where it acts, and dense: read before any mask.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ckasr.sparsity import prunable

from .dynamic import Dynamic
from .method import Context


@dataclass
class RigL(Dynamic):
    name: ClassVar[str] = "rigl"
    summary: ClassVar[str] = (
        "random weights; the smallest are exchanged for those of largest gradient "
        "(Evci et al. 2020)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._gradients: dict[str, Tensor] = {}  # within one step only, so no checkpoint holds it

    def needs_dense_gradient(self, context: Context) -> bool:
        return self.due(context.step + 1, context.steps)

    def after_backward(self, context: Context) -> None:
        if self.needs_dense_gradient(context):
            self._gradients = {
                name: torch.zeros_like(weight) if weight.grad is None else weight.grad.abs()
                for name, weight in prunable(context.model).items()
            }

    def growth(self, name: str, context: Context) -> Tensor:
        return self._gradients.pop(name)
