"""SET: drop the smallest weights and grow random ones.

Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse
connectivity inspired by network science" (Nature Communications 9), algorithm 1. The authors
exchange a constant share of the weights after every epoch. Here the period, the share and its
cosine decay are those of RigL, so that the two methods differ only in the weights that grow. Option
``anneal=constant`` keeps the share constant, as the authors do.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ckasr.data import keyed_generator

from .dynamic import Dynamic
from .method import Context, TrainingState


@dataclass
class SET(Dynamic):
    """Grows random pruned weights. The options are those of ``Dynamic``."""

    name: ClassVar[str] = "set"
    summary: ClassVar[str] = (
        "prunes random weights; exchanges the smallest weights for random ones (Mocanu et al. 2018)"
    )

    def growth(self, name: str, context: Context, state: TrainingState) -> Tensor:
        # The generator depends on the step, so that a resumed run repeats the random numbers.
        generator = keyed_generator("grow", context.seed, name, state.step)
        mask = state.masks[name]
        return torch.rand(mask.shape, generator=generator, dtype=torch.float64).to(mask.device)
