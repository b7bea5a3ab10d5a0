"""The method interface: which weights live, and when that changes.

A method is one small dataclass in a file of its own. Its fields are its hyper-parameters, each
typed and with a default; they become ``--option name=value`` on the command line and part of the
run's settings. The training engine knows no method by name: it calls the hooks below, and a method
overrides those it needs. To add one, write the file and add its class to
``ckasr.methods.METHODS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ckasr.sparsity import Masks, dense_masks, prunable
from ckasr.tasks import CLASSIFICATION, Task


@dataclass(frozen=True)
class Phase:
    """One training with its own optimiser and learning-rate schedule.

    Args:
        name: name of the phase, in curves and checkpoints.
        epochs: length of the phase and of its learning-rate schedule.
        learning_rate: learning rate at the start of the schedule; None: the recipe's.
        constant: whether the learning rate stays constant within the phase.
        term: whether the term of the run is added to the loss in this phase.
        start: number of optimiser steps to skip: the schedule starts at this step. A network that
            is rewound to step 500 continues the schedule there.
    """

    name: str
    epochs: int
    learning_rate: float | None = None
    constant: bool = False
    term: bool = True
    start: int = 0


@dataclass(frozen=True)
class Context:
    """What a method is given. It stays the same for the whole run.

    Args:
        model: the network to train. Its parameters change; the object does not.
        sparsity: share of zeros, over all prunable weights, at the end.
        distribution: how the density is distributed over the layers: uniform, er or erk.
        seed: seed of the run.
        num_classes: number of classes.
        samples: returns a new iterator over training batches ``(x, y)``, not augmented and in a
            fixed order.
        steps_per_epoch: number of optimiser steps per epoch.
        task: what the network is trained for.
    """

    model: nn.Module
    sparsity: float
    distribution: str
    seed: int
    num_classes: int
    samples: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    steps_per_epoch: int
    task: Task = CLASSIFICATION

    @property
    def density(self) -> float:
        """Share of the prunable weights that are kept at the end."""
        return 1 - self.sparsity

    @property
    def kept(self) -> int:
        """Number of weights that are kept at the end."""
        # The inner rounding removes the float noise of the density.
        return round(round(self.density * self.total, 6))

    @property
    def total(self) -> int:
        """Number of prunable weights of the model as it is now."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every prunable weight, by name."""
        return {name: tuple(weight.shape) for name, weight in prunable(self.model).items()}

    def check_sparsity(self) -> None:
        """Check that the model has prunable weights and that the sparsity keeps at least one.

        The engine calls this before any hook of a method. Raises ValueError otherwise.
        """
        if not self.total:
            raise ValueError(f"{type(self.model).__name__} has no conv or linear weight to prune")
        if self.kept < 1:
            raise ValueError(
                f"sparsity {self.sparsity} leaves none of {self.total} weights: "
                f"it can be at most {1 - 1 / self.total:.6g}"
            )


@dataclass
class TrainingState:
    """What changes while a phase trains. The engine makes it; a method reads and may change it.

    Args:
        masks: masks of the model's prunable weights. A method changes them with ``masks.update``,
            or replaces them if it changes the shapes of the weights.
        optimizer: optimiser of the current phase.
        phase: current phase.
        steps: number of optimiser steps of the phase.
        step: number of optimiser steps done in the phase.
    """

    masks: Masks
    optimizer: torch.optim.Optimizer
    phase: Phase
    steps: int
    step: int = 0


@dataclass
class Method:
    """Base class of all methods. On its own it changes nothing, which is dense training.

    The engine calls ``prepare`` (or, when it resumes a run, ``restore``), then ``phases``. For each
    phase it calls ``parameter_groups`` and ``begin_phase``. In each step it calls ``penalty``,
    ``after_backward`` and ``after_step``. At the end of each phase it calls ``end_phase``.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    """One line: what it prunes and when, and its source."""
    uses_distribution: ClassVar[bool] = False
    """Whether it reads ``context.distribution``. If not, that setting is not part of the run."""

    def phases(self, epochs: int, context: Context) -> list[Phase]:
        """Return the phases of the training.

        The result must not depend on anything that was trained, because a resumed run calls this
        again.

        Args:
            epochs: number of epochs of the recipe.
            context: what the run is given.
        """
        return [Phase("train", epochs)]

    def prepare(self, context: Context) -> Mapping[str, Tensor]:
        """Prepare the model before anything is trained, and return the first masks.

        A method scores the weights here, or adds parameters to the model. The masks are bool
        tensors by the names of the prunable weights, on any device.
        """
        return dense_masks(context.model)

    def parameter_groups(self, context: Context) -> list[dict[str, Any]]:
        """Return the parameter groups of each phase's SGD, as ``torch.optim`` takes them.

        ``rate_factor`` in a group multiplies the learning rate of the recipe for this group.
        """
        return [{"params": list(context.model.parameters())}]

    def begin_phase(self, context: Context, state: TrainingState) -> None:
        """Called when a phase starts. Its optimiser is new."""

    # The next two hooks, penalty and after_backward, run inside a training step. A step of a method
    # that overrides one of them is not captured in a CUDA graph.

    def penalty(self, context: Context, state: TrainingState) -> Tensor | None:
        """Return a scalar to add to the loss of this step, or None."""
        return None

    def needs_dense_gradient(self, context: Context, state: TrainingState) -> bool:
        """Return whether ``after_backward`` of the next step reads gradients of pruned weights.

        Sparse execution does not compute them, so it computes such a step densely.
        """
        return False

    def after_backward(self, context: Context, state: TrainingState) -> None:
        """Called when the gradients are computed and not yet applied."""

    def after_step(self, context: Context, state: TrainingState) -> None:
        """Called when the optimiser has stepped and the masks are applied.

        ``state.step`` counts this step already.
        """

    def end_phase(self, context: Context, state: TrainingState) -> None:
        """Called when a phase ends: prune or rewind here.

        It must be deterministic, because a resumed run may repeat it.
        """

    def counted(
        self, context: Context, masks: Mapping[str, Tensor]
    ) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """Return the network and the masks whose sparsity the record reports.

        Called after the last phase. A method that removes filters from the model returns the
        network it began with.
        """
        return context.model, masks

    def measured(self) -> dict[str, Any]:
        """Return what else the method has to report after the last phase, for the record.

        Plain JSON values by name; None for a value that was not measured.
        """
        return {}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold besides weights, masks and optimiser."""
        return {}

    def restore(self, state: dict[str, Any], context: Context) -> None:
        """Take back the result of ``state()``.

        Called before weights and masks are loaded, which must fit: a method that added parameters
        or changed shapes does so again here.
        """
