"""L1: training with an L1 penalty, pruning of the smallest weights, and fine-tuning.

The penalty is added to the loss. There is no proximal step, so SGD makes weights small, but not
zero. After the training, the smallest weights of the whole network are pruned at once, and the kept
weights are fine-tuned (Han et al. 2015, "Learning both weights and connections", arXiv 1506.02626,
section 3.1).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ckasr.sparsity import global_topk_masks, prunable

from .finetune import Finetuned
from .method import Context, Phase, TrainingState


@dataclass
class L1(Finetuned):
    """Trains with an L1 penalty, prunes the smallest weights, then fine-tunes.

    Args:
        strength: factor of ``sum |w|``, over all conv and linear weights, in the loss.
        finetune, finetune_rate: see ``Finetuned``.
    """

    name: ClassVar[str] = "l1"
    summary: ClassVar[str] = (
        "prunes the smallest weights after training with an L1 penalty, then fine-tunes "
        "(Han et al. 2015)"
    )

    strength: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strength >= 0:
            raise ValueError(f"option strength={self.strength} of method 'l1' must not be negative")

    def phases(self, epochs: int, context: Context) -> list[Phase]:
        return [Phase("train", epochs), *self.finetuning(epochs)]

    def penalty(self, context: Context, state: TrainingState) -> Tensor | None:
        if state.phase.name != "train" or self.strength == 0:
            return None
        norms = torch._foreach_norm(list(prunable(context.model).values()), 1)
        return self.strength * torch.stack(norms).sum()

    def end_phase(self, context: Context, state: TrainingState) -> None:
        if state.phase.name == "train":
            scores = {name: w.detach().abs() for name, w in prunable(context.model).items()}
            state.masks.update(global_topk_masks(scores, context.kept))
            state.masks.apply()
