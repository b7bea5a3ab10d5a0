"""Base class of SET and RigL: the network is always sparse, and its masks are updated regularly.

An update drops the smallest weights of each layer and grows the same number of pruned weights of
this layer. It follows an optimiser step, after which the pruned weights and their momentum are
zero. A weight that grows therefore starts at zero with zero momentum.
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
        end: share of the training after which the masks no longer change.
        anneal: schedule of the fraction: ``cosine`` (decay to zero) or ``constant``.
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
        """Return a score of every weight of a layer.

        The pruned weights with the highest scores grow.

        Args:
            name: name of the weight tensor.
            context: constant data of the run.
            state: state of the phase.
        """
        raise NotImplementedError

    def updates_at(self, step: int, steps: int) -> bool:
        """Return whether the masks are updated after a step.

        Args:
            step: number of the step in the phase, counted from 1.
            steps: number of steps of the phase.
        """
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
        # At most the number of pruned weights, because a weight that is dropped in this update
        # cannot grow in it.
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
