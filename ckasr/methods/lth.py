"""Lottery tickets: iterative magnitude pruning with rewinding.

The sources are Frankle & Carbin 2019 (arXiv 1803.03635), strategy 1, with rewinding to
initialisation, and Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket
Hypothesis" (arXiv 1912.05671), algorithm 2, with rewinding to an early step.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ckasr.sparsity import global_topk_masks, prunable

from .method import Context, Method, Phase, TrainingState


@dataclass
class LTH(Method):
    """Trains, prunes the smallest weights of all layers together, rewinds, and repeats this.

    Args:
        rate: share of the remaining weights that each level prunes. The last level prunes to the
            sparsity of the run.
        levels: comma-separated list of sparsities to use instead of the rate; the last one must be
            the sparsity of the run.
        rewind: optimiser step of the first training to which every level rewinds the weights, the
            batch-norm statistics, the momentum and the learning-rate schedule; 0: initialisation.

    Warning:
        With a learning rate of 0.1, rewinding to step 0 is known to fail for ResNets on CIFAR: the
        subnetworks do not reach the accuracy of the dense network (Frankle et al. 2020, arXiv
        1912.05671). Rewind to an early step instead. The ResNet-20 of that paper became stable to
        the noise of SGD at step 2000 of 63 000, which is 3 % of the training.
    """

    name: ClassVar[str] = "lth"
    summary: ClassVar[str] = (
        "prunes the smallest weights after each of several trainings (Frankle et al. 2019, 2020)"
    )

    rate: float = 0.2
    levels: str = ""
    rewind: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"option rate of method 'lth' is {self.rate}: between 0 and 1")
        # State of the model and the optimiser at the rewinding step; empty before that step.
        self._origin: dict[str, Any] = {}

    def counts(self, context: Context) -> list[int]:
        """Return the number of kept weights after each pruning; an empty list for sparsity 0.

        Raises:
            ValueError: for options with which a level would prune no weight.
        """
        kept, total = context.kept, context.total
        counts = [total]
        if self.levels:
            for sparsity in self._sparsities(context.sparsity):
                counts.append(round(round((1 - sparsity) * total, 6)))
                _check_decreasing(counts)
            return counts[1:]
        # The last level may prune slightly more than the rate, which avoids another training for
        # few weights.
        levels = math.ceil(math.log(kept / total) / math.log(1 - self.rate) - 0.05)
        levels = max(levels, kept < total)
        while len(counts) <= levels:
            share = (1 - self.rate) ** len(counts)
            counts.append(kept if len(counts) == levels else round(share * total))
            _check_decreasing(counts)
        return counts[1:]

    def phases(self, epochs: int, context: Context) -> list[Phase]:
        levels = len(self.counts(context))
        steps = epochs * context.steps_per_epoch
        if not 0 <= self.rewind < steps:
            raise ValueError(
                f"option rewind of method 'lth' is step {self.rewind}: a training has {steps}, "
                f"so it can be 0 to {steps - 1}"
            )
        first = Phase("level 0", epochs)
        return [first] + [Phase(f"level {i + 1}", epochs, start=self.rewind) for i in range(levels)]

    def prepare(self, context: Context) -> Mapping[str, Tensor]:
        if self.rewind == 0:
            self._origin = {"model": copy.deepcopy(context.model.state_dict()), "optimizer": None}
        return super().prepare(context)

    def begin_phase(self, context: Context, state: TrainingState) -> None:
        if state.phase.start:
            # The state is copied, because the optimiser changes the tensors that it loads.
            state.optimizer.load_state_dict(copy.deepcopy(self._origin["optimizer"]))

    def after_step(self, context: Context, state: TrainingState) -> None:
        if not self._origin and state.step == self.rewind:
            self._origin = copy.deepcopy(
                {"model": context.model.state_dict(), "optimizer": state.optimizer.state_dict()}
            )

    @torch.no_grad()
    def end_phase(self, context: Context, state: TrainingState) -> None:
        masks = state.masks
        left = sum(int(mask.sum()) for mask in masks.values())
        count = next((count for count in self.counts(context) if count < left), None)
        if count is None:
            return
        # A pruned weight has the score -1, because a kept weight can also be zero.
        saliency = {
            name: torch.where(masks[name], w.double().abs(), -1.0)
            for name, w in prunable(context.model).items()
        }
        masks.update(global_topk_masks(saliency, count))
        context.model.load_state_dict(self._origin["model"])
        masks.apply()

    def state(self) -> dict[str, Any]:
        return {"origin": self._origin}

    def restore(self, state: dict[str, Any], context: Context) -> None:
        self._origin = state["origin"] or {}

    def _sparsities(self, last: float) -> list[float]:
        try:
            # The value may be a list or tuple in brackets, as Python writes it.
            sparsities = [float(part) for part in self.levels.strip("()[] ,").split(",")]
        except ValueError:
            raise ValueError(
                f"option levels of method 'lth' is {self.levels!r}: a list such as 0.5,0.8,0.95"
            ) from None
        if sparsities[-1] != last or sparsities != sorted(sparsities) or sparsities[0] < 0:
            raise ValueError(
                f"option levels of method 'lth' is {self.levels!r}: sparsities must rise from 0 or "
                f"more to the run's own, {last}"
            )
        return sparsities


def _check_decreasing(counts: list[int]) -> None:
    if counts[-1] >= counts[-2]:
        raise ValueError(
            f"level {len(counts) - 1} of method 'lth' would prune none of {counts[-2]} weights: "
            "choose a larger rate, or fewer levels"
        )
