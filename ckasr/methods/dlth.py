"""Dual lottery tickets: the network is transformed before the weights outside a ticket are pruned.

Bai et al. 2022, "Dual Lottery Ticket Hypothesis" (arXiv 2203.04248), section 3: random sparse
network transformation. Method ``random`` trains the same ticket without this transformation.
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
"""Numbers of steps in which the L2 penalty grows, and then stays constant, in the authors' code."""


@dataclass
class DLTH(Method):
    """Trains the dense network with a growing L2 penalty on the weights outside a random ticket.

    Then the weights outside the ticket are pruned, and the ticket trains for the epochs of the
    recipe.

    Args:
        schedule: schedule of the L2 penalty. ``published``: it grows for 50 000 steps and then
            stays constant for 40 000 steps. ``budgeted``: the first phase takes ``share`` of the
            epochs of the recipe, and the penalty grows in the same proportion of it (5/9).
        share: length of the first phase with ``budgeted``, as a share of the epochs of the recipe.
        ceiling: largest strength of the penalty, which adds ``strength * weight`` to the gradient.
        learning_rate: constant learning rate of the first phase.
    """

    name: ClassVar[str] = "dlth"
    summary: ClassVar[str] = (
        "prunes random weights after a growing L2 penalty on them (Bai et al. 2022)"
    )
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
        """Return the strength of the L2 penalty at the current step."""
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
        # Add the gradient of strength / 2 * |w|^2 for the weights w outside the ticket, in one
        # fused kernel. The penalty also acts on weights that the forward pass does not use and
        # that therefore have no gradient.
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
