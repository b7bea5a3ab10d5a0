"""Dual lottery tickets: a random subnetwork is made trainable before the rest is removed.

Bai et al. 2022, "Dual Lottery Ticket Hypothesis" (arXiv 2203.04248), section 3: random sparse
network transformation. Random sparse training without it is method ``random``.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ckasr.choices import one_of
from ckasr.sparsity import layer_densities, prunable, random_masks

from .method import Context, Method, Phase, TrainingState

Schedule = Literal["budgeted", "published"]

PUBLISHED_GROWTH = 50_000
PUBLISHED_HOLD = 40_000
"""Steps in which the L2 grows, and in which it stays constant, in the authors' code."""


@dataclass
class DLTH(Method):
    """Trains the dense network with a growing L2 on the weights outside a random ticket.

    Then the weights outside the ticket are pruned, and the ticket trains for the epochs of the
    recipe.

    Args:
        schedule: ``published``: the L2 grows for 50 000 steps and stays constant for 40 000;
            ``budgeted``: the same proportion within ``share`` of the recipe's epochs.
        share: length of the first phase, as a share of the recipe's epochs.
        ceiling: highest strength of the L2, which adds ``strength * weight`` to the gradient.
        learning_rate: constant learning rate of the first phase.
    """

    name: ClassVar[str] = "dlth"
    summary: ClassVar[str] = "random weights, after a growing L2 emptied them (Bai et al. 2022)"
    uses_distribution: ClassVar[bool] = True

    schedule: str = "budgeted"
    share: float = 0.5
    ceiling: float = 1.0
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        checks = {"schedule": one_of(self.schedule, Schedule)}
        for option in ("share", "ceiling", "learning_rate"):
            checks[option] = (0 < getattr(self, option) < math.inf, "positive")
        for option, (fine, rule) in checks.items():
            if not fine:
                raise ValueError(
                    f"option {option}={getattr(self, option)!r} of method 'dlth' must be {rule}"
                )
        self._weights: list[Tensor] = []
        self._outside: list[Tensor] = []

    def phases(self, epochs: int, context: Context) -> list[Phase]:
        length = max(1, round(self.share * epochs))
        if self.schedule == "published":
            length = math.ceil((PUBLISHED_GROWTH + PUBLISHED_HOLD) / context.steps_per_epoch)
        transform = Phase("transform", length, learning_rate=self.learning_rate, constant=True)
        return [transform, Phase("train", epochs)]

    def ticket(self, context: Context) -> dict[str, Tensor]:
        """Return the masks of the second phase: those of method ``random`` with the same seed."""
        shapes = context.shapes()
        densities = layer_densities(shapes, context.density, context.distribution)
        return random_masks(shapes, densities, context.seed)

    def strength(self, state: TrainingState) -> float:
        """Return the strength of the L2 at this step."""
        growth: float = PUBLISHED_GROWTH
        if self.schedule == "budgeted":
            growth *= state.steps / (PUBLISHED_GROWTH + PUBLISHED_HOLD)
        return self.ceiling * min(1.0, (state.step + 1) / growth)

    @torch.no_grad()
    def after_backward(self, context: Context, state: TrainingState) -> None:
        if state.phase.name != "transform":
            return
        if not self._weights:
            masks = self.ticket(context)
            for name, parameter in prunable(context.model).items():
                self._weights.append(parameter)
                self._outside.append(torch.empty_like(parameter).copy_(~masks[name]))
        # Add the gradient of strength / 2 * |w outside|^2, in one fused kernel. The L2 also acts on
        # weights that the forward pass does not use, which autograd leaves without a gradient.
        gradients = []
        for weight in self._weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            gradients.append(weight.grad)
        strength = self.strength(state)
        torch._foreach_addcmul_(gradients, self._weights, self._outside, value=strength)

    def end_phase(self, context: Context, state: TrainingState) -> None:
        if state.phase.name == "transform":
            state.masks.update(self.ticket(context))
            state.masks.apply()
