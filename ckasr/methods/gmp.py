"""Gradual magnitude pruning: the sparsity increases while the network trains.

Zhu & Gupta 2017, "To prune, or not to prune" (arXiv 1710.01878), equation 1:
``s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3``, with ``s_i = 0``. The authors prune every
layer to the same sparsity, as the distribution ``uniform`` does. Here the distribution of the run
determines the densities of the layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ckasr.sparsity import allocate, layer_densities, prunable, topk_masks

from .method import Context, Method, TrainingState


@dataclass
class GMP(Method):
    """Prunes the smallest weights of each layer in many small steps while the network trains.

    Args:
        begin: share of the training after which pruning begins.
        end: share of the training at which pruning ends. The last pruning is at this step and
            reaches the sparsity of the run for any value of ``every``.
        every: number of steps between two prunings.
    """

    name: ClassVar[str] = "gmp"
    summary: ClassVar[str] = (
        "prunes the smallest weights of each layer gradually during training (Zhu & Gupta 2017)"
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

    def after_step(self, context: Context, state: TrainingState) -> None:
        first, last = self.span(state.steps)
        step = state.step
        if first < step <= last and ((step - first) % self.every == 0 or step == last):
            sparsity = self.sparsity_at(step, state.steps, context.sparsity)
            self._prune(context, state, sparsity)

    def span(self, steps: int) -> tuple[int, int]:
        """Return t_0, the step after which pruning begins, and the step of the last pruning."""
        last = max(1, round(self.end * steps))
        return min(round(self.begin * steps), last - 1), last

    def sparsity_at(self, step: int, steps: int, final: float) -> float:
        """Return the sparsity after a step: 0 up to t_0, and ``final`` from the last pruning on."""
        first, last = self.span(steps)
        left = min(1.0, max(0.0, (last - step) / (last - first)))
        return final * (1 - left**3)

    def _prune(self, context: Context, state: TrainingState, sparsity: float) -> None:
        masks, shapes = state.masks, context.shapes()
        now = {name: int(mask.sum()) for name, mask in masks.items()}
        asked, final = (
            allocate(layer_densities(shapes, density, context.distribution), shapes)
            for density in (1 - sparsity, context.density)
        )
        # Because of rounding, the count of a layer can be one larger at a lower density. The count
        # then stays the same. It is never smaller than the final count.
        counts = {name: max(final[name], min(now[name], asked[name])) for name in shapes}
        masks.update(topk_masks(kept_magnitudes(context.model, masks), counts))
        masks.apply(state.optimizer)


def kept_magnitudes(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return |w| of the kept weights, and -1 for pruned weights and for NaN.

    Args:
        model: the network.
        masks: masks of its prunable weights.
    """
    weights = prunable(model)
    return {
        name: torch.where(mask, weights[name].detach().abs(), -1.0).nan_to_num(nan=-1.0)
        for name, mask in masks.items()
    }
