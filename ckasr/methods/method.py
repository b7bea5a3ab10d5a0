"""The interface of sparse-training methods: which weights are kept, and when this changes.

A method is a dataclass in its own file. Its fields are its hyperparameters, each with a type and a
default. On the command line, they are set by ``--option name=value``, and they are part of the
settings of a run. The training engine calls the hooks below, and a method overrides the hooks that
it needs. To add a method, write its file and add its class to ``ckasr.methods.METHODS``.
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
    """A part of the training with its own optimiser and learning-rate schedule.

    Args:
        name: name of the phase, in curves and checkpoints.
        epochs: length of the phase and of its learning-rate schedule.
        learning_rate: learning rate at the start of the schedule; None: that of the recipe.
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
    """Constant data of a run, which the engine passes to every hook of a method.

    Args:
        model: the network to train. It is the same object during the whole run.
        sparsity: share of pruned weights among all prunable weights at the end of the run.
        distribution: how the density is distributed over the layers: uniform, er or erk.
        seed: seed of the run.
        num_classes: number of classes.
        samples: function that returns a new iterator over training batches ``(x, y)``, which are
            not augmented and in a fixed order.
        steps_per_epoch: number of optimiser steps per epoch.
        task: task of the data set, with the loss.
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
        """Share of the prunable weights that are kept at the end of the run."""
        return 1 - self.sparsity

    @property
    def kept(self) -> int:
        """Number of weights that are kept at the end of the run."""
        # The inner rounding removes the rounding error of the density.
        return round(round(self.density * self.total, 6))

    @property
    def total(self) -> int:
        """Number of prunable weights of the model at present."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every prunable weight, by name."""
        return {name: tuple(weight.shape) for name, weight in prunable(self.model).items()}

    def check_sparsity(self) -> None:
        """Check that the model has prunable weights and that the sparsity keeps at least one.

        The engine calls this method before any hook.

        Raises:
            ValueError: if no weight is prunable, or if no weight would be kept.
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
    """State of a phase. The engine creates it; a method can read and change it.

    Args:
        masks: masks of the model's prunable weights. A method changes them with ``masks.update``.
            A method that changes the shapes of the weights assigns new masks.
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
    """Base class of all methods. Without overridden hooks, it trains the dense network.

    The engine calls ``prepare`` (or, when it resumes a run, ``restore``), then ``phases``. For each
    phase it calls ``parameter_groups`` and ``begin_phase``. In each step it calls ``penalty``,
    ``after_backward`` and ``after_step``. At the end of each phase it calls ``end_phase``.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    """One line that says which weights are pruned and when, and gives the source."""
    uses_distribution: ClassVar[bool] = False
    """Whether the method reads ``context.distribution``. Otherwise, runs that differ only in the
    distribution are the same run."""

    def phases(self, epochs: int, context: Context) -> list[Phase]:
        """Return the phases of the training.

        The result must not depend on trained values, because a resumed run calls this method again.

        Args:
            epochs: number of epochs of the recipe.
            context: constant data of the run.
        """
        return [Phase("train", epochs)]

    def prepare(self, context: Context) -> Mapping[str, Tensor]:
        """Prepare the model before the first step, and return the first masks.

        A method that scores weights or adds parameters to the model does this here.

        Returns:
            A bool mask of every prunable weight, by the name of the weight, on any device.
        """
        return dense_masks(context.model)

    def parameter_groups(self, context: Context) -> list[dict[str, Any]]:
        """Return the parameter groups of the optimiser (SGD), in the format of ``torch.optim``.

        If a group has the key ``rate_factor``, the learning rate of the recipe is multiplied by
        its value for this group.
        """
        return [{"params": list(context.model.parameters())}]

    def begin_phase(self, context: Context, state: TrainingState) -> None:
        """Called when a phase starts, with a new optimiser."""

    # If a method overrides penalty or after_backward, which run inside a training step, the step is
    # not captured in a CUDA graph.

    def penalty(self, context: Context, state: TrainingState) -> Tensor | None:
        """Return a scalar to add to the loss of this step, or None."""
        return None

    def needs_dense_gradient(self, context: Context, state: TrainingState) -> bool:
        """Return whether ``after_backward`` of the next step reads gradients of pruned weights.

        Sparse execution does not compute these gradients, so such a step uses dense execution.
        """
        return False

    def after_backward(self, context: Context, state: TrainingState) -> None:
        """Called in each step after the gradients are computed and before the optimiser step."""

    def after_step(self, context: Context, state: TrainingState) -> None:
        """Called in each step after the optimiser step, when the masks have been applied.

        ``state.step`` includes this step.
        """

    def end_phase(self, context: Context, state: TrainingState) -> None:
        """Called when a phase ends. A method that prunes or rewinds after a phase does it here.

        The hook must be deterministic, because a resumed run can call it a second time.
        """

    def counted(
        self, context: Context, masks: Mapping[str, Tensor]
    ) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """Return the network and the masks from which the sparsity in the record is computed.

        Called after the last phase. A method that removes filters from the model returns the
        original network, with masks in which the removed weights are False.
        """
        return context.model, masks

    def measured(self) -> dict[str, Any]:
        """Return additional measurements of the method for the record, after the last phase.

        The result maps names to JSON values; a value that was not measured is None.
        """
        return {}

    def state(self) -> dict[str, Any]:
        """Return the state of the method for a checkpoint.

        The checkpoint also contains the weights, the masks and the state of the optimiser.
        """
        return {}

    def restore(self, state: dict[str, Any], context: Context) -> None:
        """Restore the state that ``state()`` returned.

        Called before the weights and masks are loaded. A method that has added parameters to the
        model, or changed the shapes of its weights, must do so again here.
        """
