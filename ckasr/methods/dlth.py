"""Dual lottery tickets: a random ticket is made trainable before the rest is removed.

Bai et al. 2022, "Dual Lottery Ticket Hypothesis" (arXiv 2203.04248), section 3: random sparse
network transformation. Not to be mixed up with random sparse training, which is `random` here.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ckasr.sparsity import layer_densities, prunable, random_masks

from .method import Context, Method, Phase

PUBLISHED_GROWTH = 50_000
PUBLISHED_HOLD = 40_000
"""Steps in which the authors' L2 grows, and in which it stays."""


@dataclass
class DLTH(Method):
    """The dense network trains under an L2 on the weights outside a random ticket that grows.

    schedule: ``published``: 50 000 steps of growth and 40 000 more; ``budgeted``: the same shape
        in ``share`` of the recipe's epochs. Then what lies outside goes, and the ticket trains for
        the recipe's epochs.
    ceiling: the L2 at its highest, added to the gradient as ceiling * weight.
    learning_rate: of the transformation, constant.
    """

    name: ClassVar[str] = "dlth"
    summary: ClassVar[str] = "random weights, after a growing L2 emptied them (Bai et al. 2022)"
    uses_distribution: ClassVar[bool] = True

    schedule: str = "budgeted"
    share: float = 0.5
    ceiling: float = 1.0
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.schedule not in ("budgeted", "published"):
            raise ValueError(
                f"option schedule of method 'dlth' is {self.schedule!r}: budgeted or published"
            )
        for option in ("share", "ceiling", "learning_rate"):
            if not 0 < getattr(self, option) < math.inf:
                raise ValueError(
                    f"option {option} of method 'dlth' is {getattr(self, option)}: it must be "
                    "positive"
                )
        self._weights: list[Tensor] = []
        self._outside: list[Tensor] = []

    def phases(self, epochs: int, context: Context) -> list[Phase]:
        length = max(1, round(self.share * epochs))
        if self.schedule == "published":
            length = math.ceil((PUBLISHED_GROWTH + PUBLISHED_HOLD) / context.steps_per_epoch)
        transform = Phase("transform", length, learning_rate=self.learning_rate, constant=True)
        return [transform, Phase("train", epochs)]

    def prepare(self, context: Context) -> None:
        _ = context.kept  # a sparsity that leaves nothing fails before anything trains

    def ticket(self, context: Context) -> dict[str, Tensor]:
        """The masks of the second phase: those of method `random` with the same seed."""
        shapes = context.shapes()
        densities = layer_densities(shapes, context.density, context.distribution)
        return random_masks(shapes, densities, context.seed)

    def strength(self, context: Context) -> float:
        """The L2 at this step."""
        growth = PUBLISHED_GROWTH
        if self.schedule == "budgeted":
            growth *= context.steps / (PUBLISHED_GROWTH + PUBLISHED_HOLD)
        return self.ceiling * min(1.0, (context.step + 1) / growth)

    @torch.no_grad()
    def after_backward(self, context: Context) -> None:
        if context.phase.name != "transform":
            return
        if not self._weights:
            masks = self.ticket(context)
            for name, weight in prunable(context.model).items():
                self._weights.append(weight)
                self._outside.append(torch.empty_like(weight).copy_(~masks[name]))
        # The gradient of strength / 2 * |w outside|^2, in one fused kernel. The L2 acts on weights
        # that the forward pass did not use as well: autograd leaves them without a gradient.
        for weight in self._weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        gradients = [weight.grad for weight in self._weights]
        strength = self.strength(context)
        torch._foreach_addcmul_(gradients, self._weights, self._outside, value=strength)

    def end_phase(self, phase: Phase, context: Context) -> None:
        if phase.name == "transform":
            context.masks.update(self.ticket(context))
            context.masks.apply()
