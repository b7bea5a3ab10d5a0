"""Gradual magnitude pruning: masks that grow emptier while the network trains.

Zhu & Gupta 2017, "To prune, or not to prune" (arXiv 1710.01878), equation 1:
``s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3``, with ``s_i = 0``. They prune every layer to
the same sparsity; here a layer's share follows the run's distribution (``uniform`` is theirs).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ckasr.sparsity import allocate, layer_densities, prunable, topk_masks

from .method import Context, Method


@dataclass
class GMP(Method):
    """begin, end: shares of the training between which weights go. every: steps between prunings.

    A last pruning at ``end`` reaches the asked sparsity whatever ``every`` is.
    """

    name: ClassVar[str] = "gmp"
    summary: ClassVar[str] = (
        "smallest weights of each layer, gradually during training (Zhu & Gupta 2017)"
    )
    uses_distribution: ClassVar[bool] = True

    begin: float = 0.0
    end: float = 0.75
    every: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(
                f"options begin={self.begin} and end={self.end} of method 'gmp' are shares of the "
                "training: 0 <= begin < end <= 1"
            )
        if self.every < 1:
            raise ValueError(f"option every={self.every} of method 'gmp' must be at least 1")

    def prepare(self, context: Context) -> None:
        _ = context.kept  # raises where nothing would be left

    def after_step(self, context: Context) -> None:
        first, last = self.span(context.steps)
        step = context.step
        if first < step <= last and ((step - first) % self.every == 0 or step == last):
            self._prune(context, self.sparsity_at(step, context.steps, context.sparsity))

    def span(self, steps: int) -> tuple[int, int]:
        """t_0, after which pruning begins, and the step (from 1) of the last pruning."""
        last = max(1, round(self.end * steps))
        return min(round(self.begin * steps), last - 1), last

    def sparsity_at(self, step: int, steps: int, final: float) -> float:
        """The schedule: 0 until the span, ``final`` from its end on."""
        first, last = self.span(steps)
        left = min(1.0, max(0.0, (last - step) / (last - first)))
        return final * (1 - left**3)

    def _prune(self, context: Context, sparsity: float) -> None:
        masks, shapes = context.masks, context.shapes()
        now = {name: int(mask.sum()) for name, mask in masks.items()}
        asked, final = (
            allocate(layer_densities(shapes, density, context.distribution), shapes)
            for density in (1 - sparsity, context.density)
        )
        # A layer's rounded count may rise by one between two densities: no weight comes back for
        # that, and none that is to stay in the end goes.
        counts = {name: max(final[name], min(now[name], asked[name])) for name in shapes}
        masks.update(topk_masks(kept_magnitudes(context), counts))
        masks.apply(context.optimizer)


def kept_magnitudes(context: Context) -> dict[str, torch.Tensor]:
    """|w| of the weights that live, -1 elsewhere, so that pruned ones rank last.

    A weight that is not finite ranks last too: the run has diverged, and its epoch's end says so.
    """
    weights = prunable(context.model)
    return {
        name: torch.where(mask, weights[name].detach().abs(), -1.0).nan_to_num(nan=-1.0)
        for name, mask in context.masks.items()
    }
