"""The training loop of all methods, with an optional term in the loss.

A run consists of phases; most methods have one phase. A phase consists of epochs and has its own
optimiser and learning-rate schedule. After every epoch, the whole state is saved in a checkpoint.
A run that is killed and started again therefore ends with the same weights; on a CPU they are equal
bit for bit.
"""

import itertools
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ckasr import devices
from ckasr.data import Batches, keyed_generator
from ckasr.execution import SparseExecution, choose, sparse_execution
from ckasr.methods import Context, Method, Phase, TrainingState
from ckasr.models.noise import Noise
from ckasr.sparsity import Masks
from ckasr.terms import Term

from . import captured, checkpoint
from .step import Step, queued_accuracy

CURVES = (
    "phase",
    "epoch",
    "learning_rate",
    "loss",
    "term",
    "gradient_ratio",
    "term_measured",
    "validation_accuracy",
    "execution",
    "seconds",
)
"""Values that are recorded after each epoch. ``term`` is the mean over the steps that added the
term to the loss; ``term_measured`` is measured in the same way in all runs (``term_curve.py``)."""


@dataclass(frozen=True)
class Recipe:
    """SGD and its learning-rate schedule.

    Args:
        epochs: number of epochs, from which a method determines the lengths of its phases.
        learning_rate: learning rate at the start of a phase.
        momentum: momentum.
        nesterov: whether to use Nesterov momentum.
        weight_decay: weight decay of every parameter.
        milestones: shares of a phase's epochs after which the learning rate drops.
        decay: factor of the learning rate at each milestone.
        precision: ``fp32``, ``tf32`` or ``bf16``; see ``Step``.
    """

    epochs: int
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1
    precision: str = "fp32"

    def rate(self, phase: Phase, epoch: int) -> float:
        """Return the learning rate of an epoch of a phase, counted from 0."""
        start = self.learning_rate if phase.learning_rate is None else phase.learning_rate
        if phase.constant:
            return start
        drops = sum(epoch >= int(share * phase.epochs) for share in self.milestones)
        return start * self.decay**drops


class DivergedError(ArithmeticError):
    """Raised if the training loss is no longer finite."""


@dataclass
class Engine:
    """Trains ``context.model`` with a method. Iterate over ``epochs()`` to run the training.

    Args:
        context: constant data of the run.
        method: the sparse-training method.
        recipe: optimiser and learning-rate schedule.
        batches: training batches.
        seed: seed of torch's global random generator, which is set anew for each epoch.
        validation: batches from which the accuracy is measured after each epoch, or None.
        make_term: function that adds a term (``ckasr.terms``) to a model; None for a baseline.
        measure_term: function that measures the term of a model after each epoch (``queued_term``),
            or None.
        noise: dropout and noise of the model, whose random numbers are seeded in each epoch, or
            None.
        checkpoint: file in which the state is saved after each epoch, or None.
        owner: id of the run. A checkpoint of another run raises a ValueError.
        capture: function that captures a step (``captured.py``); None: steps are not captured;
            ``"auto"``: the function of the device, if device, batches and method support it.
        execution: ``"dense"``, ``"sparse"``, or ``"auto"``, which chooses one of them for each
            phase (:func:`ckasr.execution.choose`).
        say: function that receives one line of text about the execution of each phase.
    """

    context: Context
    method: Method
    recipe: Recipe
    batches: Batches
    seed: int
    validation: Batches | None = None
    make_term: Callable[[nn.Module], Term] | None = None
    measure_term: Callable[[nn.Module], Tensor | None] | None = None
    noise: Noise | None = None
    checkpoint: Path | None = None
    owner: str = ""
    capture: captured.Capture | Literal["auto"] | None = "auto"
    execution: str = "dense"
    say: Callable[[str], None] = lambda line: None
    state: TrainingState = field(init=False)
    """State of the current phase. It does not exist before the first phase starts."""

    def __post_init__(self) -> None:
        self._sparse: SparseExecution | None = None
        self.curves: dict[str, list[Any]] = {name: [] for name in CURVES}
        self._collapsed: set[str] = set()
        self.device = devices.of(self.context.model)
        if self.capture == "auto":
            can_capture = captured.can_capture(self.method, self.batches)
            self.capture = self.device.capture if can_capture and self.device.can_capture else None

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Run all phases. Yields a dict with one value of each of ``CURVES`` after each epoch.

        Raises:
            DivergedError: at the end of an epoch whose mean loss is not finite.
            ValueError: if the samples do not fill one batch, if the sparsity keeps no weight, if
                the checkpoint cannot be used, and for invalid options of the method.
        """
        return (entry for entry in self.queued_epochs() if entry is not None)

    def queued_epochs(self) -> Iterator[dict[str, Any] | None]:
        """Run all phases as ``epochs`` does, but also yield None while an epoch is being queued.

        It yields None after every ``Device.interleaved_steps`` steps and at the end of the epoch.
        With this method, several engines can share a process: when one engine yields None, another
        one can queue steps on its own stream, before the first one waits for its results.
        """
        context, method = self.context, self.method
        self._check_batches()
        context.check_sparsity()
        saved = checkpoint.load(self.checkpoint, self.device.place, self.owner)
        if saved is None:
            masks = Masks(context.model, method.prepare(context))
        else:
            with checkpoint.restoring(self.checkpoint):
                masks = self._restore(saved)
        phases = method.phases(self.recipe.epochs, context)
        for index in range(saved["phase"] if saved else 0, len(phases)):
            phase = phases[index]
            self.state = state = self._start(phase, masks)
            done = phase.start // len(self.batches)
            if saved is not None:
                with checkpoint.restoring(self.checkpoint):
                    state.optimizer.load_state_dict(saved["optimizer"])
                    done, saved = saved["epoch"], None
            else:
                method.begin_phase(context, state)
            yield from self._phase(index, phase, done)
            method.end_phase(context, state)
            masks = state.masks
        self._warn_of_collapse("the last phase ended")

    def _check_batches(self) -> None:
        if not len(self.batches):
            raise ValueError(
                f"the training samples do not fill one batch of {self.batches.batch_size}: "
                "choose a smaller batch_size"
            )

    def _start(self, phase: Phase, masks: Masks) -> TrainingState:
        recipe = self.recipe
        optimizer = torch.optim.SGD(
            self.method.parameter_groups(self.context),
            lr=recipe.rate(phase, 0),
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        steps = phase.epochs * len(self.batches)
        return TrainingState(masks, optimizer, phase, steps, phase.start)

    def _phase(self, index: int, phase: Phase, done: int) -> Iterator[dict[str, Any] | None]:
        context, state = self.context, self.state
        state.masks.apply(state.optimizer)
        self._warn_of_collapse(f"phase {phase.name!r} starts")
        execution, reason = choose(
            self.execution, context.model, state.masks, self.recipe.precision
        )
        if self.execution != "dense":
            self.say(f"  {phase.name}: {execution} execution ({reason})")
        if execution == "sparse":
            self._sparse = sparse_execution(context.model, state.masks)
        term = self.make_term(context.model) if self.make_term and phase.term else None
        step = self._step(term)
        try:
            for epoch in range(done, phase.epochs):
                entry = yield from self._epoch(index, phase, epoch, step)
                entry["execution"] = execution
                for name in CURVES:
                    self.curves[name].append(entry[name])
                if not math.isfinite(entry["loss"]):
                    raise DivergedError(
                        f"loss {entry['loss']} in epoch {epoch + 1} of {phase.name!r}"
                    )
                self._save(index, epoch + 1)
                yield entry
        finally:
            if term is not None:
                term.remove()
            if self._sparse is not None:
                self._sparse.remove()
                self._sparse = None

    def _step(self, term: Term | None) -> Step:
        state, precision = self.state, self.recipe.precision
        parts = self.context, state, self.method, term, precision, self.batches
        if self.capture is None or self.capture == "auto":
            return Step(*parts)
        return captured.CapturedStep(*parts, capture=self.capture)

    def _epoch(
        self, index: int, phase: Phase, epoch: int, step: Step
    ) -> Generator[None, None, dict[str, Any]]:
        start = time.perf_counter()
        context, state = self.context, self.state
        rate = self.recipe.rate(phase, epoch)
        for group in state.optimizer.param_groups:
            own = rate * group.get("rate_factor", 1)
            if self.capture is None:
                group["lr"] = own
            else:  # a tensor of constant address, which the captured graph reads
                group["lr"] = torch.as_tensor(
                    group["lr"], dtype=torch.float32, device=self.device.place
                )
                group["lr"].fill_(own)
        # A seed per epoch, so that a resumed run repeats the random numbers (such as L0's gates).
        torch.manual_seed(keyed_generator("noise", self.seed, index, epoch).initial_seed())
        context.model.train()
        first = epoch * len(self.batches)
        state.step = max(first, phase.start)
        number = index * 10_000 + epoch
        step.start_epoch(number)
        if self.noise is not None:
            self.noise.reset(number)
        all_indices = self.batches.batch_indices(number)
        sparse, version = self._sparse, state.masks.version
        for indices in itertools.islice(all_indices, state.step - first, None):
            if sparse is not None:
                sparse.enabled = not self.method.needs_dense_gradient(context, state)
            step(indices)
            if sparse is not None and state.masks.version != version:
                version = state.masks.version
                sparse.update()
            every = self.device.interleaved_steps
            if every and step.steps % every == 0:
                # The engines share the global random generators, which each seeds for its epoch.
                with torch.random.fork_rng(self.device.generators()):
                    yield None
        if sparse is not None:
            sparse.enabled = True
        measured = None
        if self.validation is not None:
            measured = queued_accuracy(
                context.model, self.validation.in_order(), self.recipe.precision, context.task
            )
        term = None if self.measure_term is None else self.measure_term(context.model)
        yield None
        entry: dict[str, Any] = {
            "phase": phase.name,
            "epoch": epoch + 1,
            "learning_rate": rate,
            "loss": step.loss_sum.item() / step.steps,
            "term": step.term_sum.item() / step.term_steps if step.term_steps else None,
            "gradient_ratio": None if step.gradient_ratio is None else step.gradient_ratio.item(),
            "term_measured": None if term is None else term.item(),
            "validation_accuracy": None if measured is None else measured.item(),
        }
        entry["seconds"] = time.perf_counter() - start
        return entry

    def _warn_of_collapse(self, when: str) -> None:
        """Issue a RuntimeWarning for layers without a kept weight, once per layer."""
        masks = self.state.masks
        empty = [n for n, mask in masks.items() if n not in self._collapsed and not mask.any()]
        self._collapsed.update(empty)
        if empty:
            warnings.warn(
                f"layer collapse: {when} with no weight left in {', '.join(empty)}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _save(self, phase: int, epoch: int) -> None:
        if self.checkpoint is None:
            return
        state = {
            "phase": phase,
            "epoch": epoch,
            "model": self.context.model.state_dict(),
            "optimizer": self.state.optimizer.state_dict(),
            "masks": dict(self.state.masks),
            "method": self.method.state(),
            "curves": self.curves,
        }
        checkpoint.save(self.checkpoint, state, self.owner)

    def _restore(self, saved: dict[str, Any]) -> Masks:
        curves = saved["curves"]
        if "term_measured" not in curves:  # an old checkpoint, from before this value was added
            curves["term_measured"] = [None] * len(curves["epoch"])
        if curves.keys() != set(CURVES):
            raise KeyError("curves")
        self.method.restore(saved["method"], self.context)
        self.context.model.load_state_dict(saved["model"])
        self.curves = curves
        return Masks(self.context.model, saved["masks"])
