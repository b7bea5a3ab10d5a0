"""What SET and RigL share: sparse all along, some weights exchanged for others now and then.

An update drops the smallest weights of a layer and grows as many others in it. It happens after an
optimiser step, when pruned weights and their momentum have just been zeroed: what grows starts at
zero, with fresh momentum, and is first moved by the next step's gradient.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from ckasr.sparsity import topk_masks

from .gmp import kept_magnitudes
from .method import Context
from .random import Random


@dataclass
class Dynamic(Random):
    """Random masks at the start (``Random``), then updates; every layer keeps its count.

    every: steps between updates. fraction: share of a layer's weights that the first update
    exchanges. end: share of the training after which the masks stay. anneal: how the fraction
    falls until then, ``cosine`` to zero or ``constant``.
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
            "anneal": (self.anneal in ("cosine", "constant"), "cosine or constant"),
        }
        for option, (fine, rule) in checks.items():
            if not fine:
                raise ValueError(
                    f"option {option}={getattr(self, option)!r} of method {self.name!r} must be "
                    f"{rule}"
                )

    def growth(self, name: str, context: Context) -> Tensor:
        """Scores of a layer's weights; of the pruned ones, the highest grow."""
        raise NotImplementedError

    def due(self, step: int, steps: int) -> bool:
        """Whether the masks change after this step (from 1)."""
        return step % self.every == 0 and step < self.end * steps

    def fraction_at(self, step: int, steps: int) -> float:
        """Share of a layer's weights to exchange: ``fraction / 2 (1 + cos(pi t / T_end))``."""
        if self.anneal == "constant":
            return self.fraction
        return self.fraction / 2 * (1 + math.cos(math.pi * step / (self.end * steps)))

    def after_step(self, context: Context) -> None:
        if self.due(context.step, context.steps):
            self._update(context, self.fraction_at(context.step, context.steps))

    def _update(self, context: Context, fraction: float) -> None:
        masks = context.masks
        kept = {name: int(mask.sum()) for name, mask in masks.items()}
        # No more than there are pruned weights: what an update drops does not grow again in it.
        moved = {
            name: min(round(fraction * count), masks[name].numel() - count)
            for name, count in kept.items()
        }
        stay = topk_masks(
            kept_magnitudes(context), {name: kept[name] - moved[name] for name in masks}
        )
        pruned = {
            name: self.growth(name, context).nan_to_num(nan=0.0).masked_fill(mask, -math.inf)
            for name, mask in masks.items()
        }
        grown = topk_masks(pruned, moved)
        masks.update({name: stay[name] | grown[name] for name in masks})
        masks.apply(context.optimizer)
