"""What SET and RigL share: the network is always sparse, and its masks are updated regularly.

An update drops the smallest weights of a layer and grows the same number of other weights in it.
It comes after an optimiser step, which sets the pruned weights and their momentum to zero. So a
weight that grows starts at zero with zero momentum, and the next step's gradient moves it first.
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ckasr.choices import one_of
from ckasr.sparsity import topk_masks

from .gmp import kept_magnitudes
from .method import Context, TrainingState
from .random import Random

Anneal = Literal["cosine", "constant"]


@dataclass
class Dynamic(Random):
    """Starts with the masks of ``Random`` and updates them. Each layer keeps its density.

    Args:
        every: number of steps between two updates.
        fraction: share of a layer's weights that the first update exchanges.
        end: share of the training after which the masks stay as they are.
        anneal: how the fraction changes until then: ``cosine`` (to zero) or ``constant``.
    """

    every: int = 100
    fraction: float = 0.3
    end: float = 0.75
    anneal: str = "cosine"

    def __post_init__(self) -> None:
        checks = {
            "every": (self.every >= 1, "at least 1"),
            "fraction": (0 < self.fraction < 1, "in (0, 1)"),
            "end": (0 <= self.end <= 1, "in [0, 1]"),
            "anneal": one_of(self.anneal, Anneal),
        }
        for option, (fine, rule) in checks.items():
            if not fine:
                raise ValueError(
                    f"option {option}={getattr(self, option)!r} of method {self.name!r} must be "
                    f"{rule}"
                )

    def growth(self, name: str, context: Context, state: TrainingState) -> Tensor:
        """Return scores of a layer's weights. The pruned weights of the highest scores grow."""
        raise NotImplementedError

    def updates_at(self, step: int, steps: int) -> bool:
        """Return whether the masks change after this step, counted from 1."""
        return step % self.every == 0 and step < self.end * steps

    def fraction_at(self, step: int, steps: int) -> float:
        """Return the share of a layer's weights to exchange at a step.

        With ``anneal="cosine"`` it is ``fraction / 2 (1 + cos(pi t / T_end))`` (Evci et al. 2020,
        equation 1).
        """
        if self.anneal == "constant":
            return self.fraction
        return self.fraction / 2 * (1 + math.cos(math.pi * step / (self.end * steps)))

    def after_step(self, context: Context, state: TrainingState) -> None:
        if self.updates_at(state.step, state.steps):
            self._update(context, state, self.fraction_at(state.step, state.steps))

    def _update(self, context: Context, state: TrainingState, fraction: float) -> None:
        masks = state.masks
        kept = {name: int(mask.sum()) for name, mask in masks.items()}
        # At most the number of pruned weights, because a dropped weight cannot grow at once.
        moved = {
            name: min(round(fraction * count), masks[name].numel() - count)
            for name, count in kept.items()
        }
        stay = topk_masks(
            kept_magnitudes(context.model, masks),
            {name: kept[name] - moved[name] for name in masks},
        )
        pruned = {
            name: self.growth(name, context, state).nan_to_num(nan=0.0).masked_fill(mask, -math.inf)
            for name, mask in masks.items()
        }
        grown = topk_masks(pruned, moved)
        masks.update({name: stay[name] | grown[name] for name in masks})
        masks.apply(state.optimizer)
