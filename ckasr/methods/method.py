"""The method interface: which weights live, and when that changes.

A method is one small dataclass in a file of its own. Its fields are its hyper-parameters, typed and
with a default each; they become ``--option name=value`` on the command line and part of the run's
settings. The training engine knows no method by name: it calls the moments below, and a method acts
in those it needs. To add one, write the file and add its class to ``ckasr.methods.METHODS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ckasr.sparsity import Masks, prunable


@dataclass(frozen=True)
class Phase:
    """One training with its own optimiser and learning-rate schedule.

    epochs: length of the phase, and of its schedule.
    learning_rate: where the schedule starts; None: the recipe's.
    constant: no learning-rate drops within the phase.
    term: whether the term of the run acts in it.
    start: optimiser steps that count as done when it begins: a network rewound to step 500 takes
        up the schedule there.
    """

    name: str
    epochs: int
    learning_rate: float | None = None
    constant: bool = False
    term: bool = True
    start: int = 0


@dataclass
class Context:
    """What a method sees and may change.

    masks, optimizer: set by the engine before training (masks of ones) and before each phase.
    phase, step, steps: the phase at hand, optimiser steps done in it, and its length.
    steps_per_epoch: optimiser steps an epoch; known from the start.
    samples: a fresh iterator over un-augmented training batches ``(x, y)``, in a fixed order.
    """

    model: nn.Module
    sparsity: float
    distribution: str
    seed: int
    num_classes: int
    samples: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    masks: Masks | None = None
    optimizer: torch.optim.Optimizer | None = None
    phase: Phase | None = None
    step: int = 0
    steps: int = 0
    steps_per_epoch: int = 0

    @property
    def density(self) -> float:
        return 1 - self.sparsity

    @property
    def kept(self) -> int:
        """Weights that are to be left in the end. Raises ValueError where that is none."""
        total = sum(math.prod(shape) for shape in self.shapes().values())
        # The inner rounding removes the float noise of the density.
        kept = round(round(self.density * total, 6))
        if kept < 1:
            raise ValueError(
                f"sparsity {self.sparsity} leaves none of {total} weights: "
                f"it can be at most {1 - 1 / total:.6g}"
            )
        return kept

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every prunable weight, by name."""
        shapes = {name: tuple(w.shape) for name, w in prunable(self.model).items()}
        if not shapes:
            raise ValueError(f"{type(self.model).__name__} has no conv or linear weight to prune")
        return shapes


@dataclass
class Method:
    """Base of all methods; alone, it changes nothing (dense training)."""

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    """One line: what it prunes and when, and its source."""
    uses_distribution: ClassVar[bool] = False
    """Whether it reads ``context.distribution``; else that setting is no part of the run."""

    def phases(self, epochs: int, context: Context) -> list[Phase]:
        """The trainings this method consists of; ``epochs`` is the recipe's length.

        Called after ``prepare`` or ``restore``; must not depend on what was trained since.
        """
        return [Phase("train", epochs)]

    def prepare(self, context: Context) -> None:
        """Before anything trains: score weights, set masks, add parameters."""

    def parameter_groups(self, context: Context) -> list[dict[str, Any]]:
        """What each phase's SGD trains, as torch has it: one group of everything.

        A group's ``rate_factor`` multiplies the recipe's learning rate for it.
        """
        return [{"params": list(context.model.parameters())}]

    def begin_phase(self, phase: Phase, context: Context) -> None:
        """A phase starts; its optimiser is new."""

    # A method that overrides one of these two acts in the middle of a step: on a GPU its steps run
    # kernel by kernel, where those of all others are replayed as one CUDA graph.

    def penalty(self, context: Context) -> Tensor | None:
        """A term for the loss of this step, besides the run's; None: none."""
        return None

    def needs_dense_gradient(self, context: Context) -> bool:
        """Whether ``after_backward`` of the coming step reads gradients of pruned weights.

        Under sparse execution such a step is computed densely.
        """
        return False

    def after_backward(self, context: Context) -> None:
        """Gradients are there, dense and not yet applied."""

    def after_step(self, context: Context) -> None:
        """The optimiser stepped and the masks were applied; ``context.step`` counts it."""

    def end_phase(self, phase: Phase, context: Context) -> None:
        """A phase ended: prune, rewind. Must be deterministic: a resumed run repeats it."""

    def counted(self, context: Context) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """The network and the masks whose sparsity the record reports, after the last phase.

        A method that takes filters out of the model counts them in the network it began with.
        """
        return context.model, context.masks

    def measured(self) -> dict[str, Any]:
        """What the method has to report besides, for the record, after the last phase.

        Plain JSON values by name; ``None`` for what was not measured.
        """
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beyond weights, masks and optimiser."""
        return {}

    def restore(self, state: dict[str, Any], context: Context) -> None:
        """Take back ``state()``; called before weights and masks are loaded.

        They must fit then: parameters the method added, or shapes it changed, are to be rebuilt.
        """
