"""Lottery tickets by iterative magnitude pruning with rewinding.

Frankle & Carbin 2019 (arXiv 1803.03635), strategy 1, rewinding to initialisation; Frankle et al.
2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis" (arXiv 1912.05671), algorithm 2,
rewinding to an early step.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ckasr.sparsity import global_topk_masks, prunable

from .method import Context, Method, Phase


@dataclass
class LTH(Method):
    """Train, prune the smallest weights of all layers together, rewind, and again.

    rate: share of the weights left that each level prunes; the last one prunes to the sparsity.
    levels: instead of the rate, a comma-separated list of sparsities, the run's own last.
    rewind: optimiser step of the first training to which every level rewinds: weights, batch-norm
        statistics, momentum and place in the learning-rate schedule. 0: initialisation.

    Warning: with a learning rate of 0.1, rewinding to step 0 is known to fail in ResNets on CIFAR:
    the subnetworks do not reach the accuracy of the dense network (Frankle et al. 2020, arXiv
    1912.05671). Rewind to an early step there: their ResNet-20 became stable to the noise of SGD at
    step 2000 of 63 000, which is 3 % of the training.
    """

    name: ClassVar[str] = "lth"
    summary: ClassVar[str] = "smallest weights after each of several trainings (Frankle 2019, 2020)"

    rate: float = 0.2
    levels: str = ""
    rewind: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"option rate of method 'lth' is {self.rate}: between 0 and 1")
        self._origin: dict[str, Any] | None = None

    def counts(self, context: Context) -> list[int]:
        """Weights left after each pruning, decreasing; empty where the sparsity is 0.

        Raises ValueError for options that ask for no such list.
        """
        kept = context.kept
        total = sum(mask.numel() for mask in context.masks.values())
        counts = [total]
        if self.levels:
            for sparsity in self._sparsities(context.sparsity):
                counts.append(round(round((1 - sparsity) * total, 6)))
                _check_decreasing(counts)
            return counts[1:]
        # The last level may prune a little more than the rate, to spare one for a few weights.
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

    def prepare(self, context: Context) -> None:
        if self.rewind == 0:
            self._origin = _snapshot(context)

    def begin_phase(self, phase: Phase, context: Context) -> None:
        if phase.start:
            # A copy: the optimiser goes on to write into the tensors that it is given.
            context.optimizer.load_state_dict(copy.deepcopy(self._origin["optimizer"]))

    def after_step(self, context: Context) -> None:
        if self._origin is None and context.step == self.rewind:
            self._origin = _snapshot(context)

    @torch.no_grad()
    def end_phase(self, phase: Phase, context: Context) -> None:
        masks = context.masks
        left = sum(int(mask.sum()) for mask in masks.values())
        count = next((count for count in self.counts(context) if count < left), None)
        if count is None:
            return
        # What is pruned stays so: a live weight may be zero as well.
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
        self._origin = state["origin"]

    def _sparsities(self, last: float) -> list[float]:
        try:
            # Brackets: a list or tuple, as Python and the command line read it.
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


def _snapshot(context: Context) -> dict[str, Any]:
    optimizer = context.optimizer
    return {
        "model": copy.deepcopy(context.model.state_dict()),
        "optimizer": None if optimizer is None else copy.deepcopy(optimizer.state_dict()),
    }
