"""Time of a whole training step: the step of this package and a common training loop."""

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from ckasr import devices, models
from ckasr.data import ImageBatches
from ckasr.execution import sparse_execution
from ckasr.methods import Context, Phase, TrainingState, create
from ckasr.sparsity import Masks
from ckasr.terms import Term
from ckasr.training import Step
from ckasr.training.captured import CapturedStep

from . import plain, workers
from .data import IMAGES, batches
from .sparseprop import use_sparseprop
from .timing import Timing, clock_of
from .workers import Variant

MakeTerm = Callable[[nn.Module], Term] | None  # None: the loss has no term
MODELS = ("resnet20", "resnet32")


def warmup(device: torch.device) -> int:
    """Number of warm-up rounds. On a GPU, they capture the CUDA graphs of a step."""
    return 8 if devices.of(device).can_capture else 2


def measure(
    device: torch.device, rounds: int, names: tuple[str, ...] = MODELS, images: int = IMAGES
) -> list[Timing]:
    """Time one step with augmentation. Each variant runs in its own process with one thread."""
    variants = {
        "plain loop, fp32": Variant(plain.step, allocator=False),
        "ckasr, fp32": Variant(partial(step, precision="fp32")),
        "ckasr, bf16": Variant(partial(step, precision="bf16")),
    }
    timings = []
    for name in names:
        timings += workers.measure(
            f"step {name}", variants, lambda found: found[0].start().result(), rounds=rounds,
            warmup=warmup(device), clock=clock_of(device), per_call=128,
            name=name, device=str(device), images=images,
        )  # fmt: skip
    return timings


def step(
    name: str, device: str, images: int, precision: str, batch_size: int = 128
) -> Callable[[], None]:
    """Make a callable that loads a batch and takes one step of this package's training loop."""
    return OurStep(name, batches(images, torch.device(device), batch_size), precision)


def context_of(name: str, sparsity: float, data: ImageBatches) -> Context:
    """The context of a run with a network with random weights, on the device of the data."""
    torch.manual_seed(0)
    model = models.create(name, num_classes=100).to(data.device, memory_format=torch.channels_last)
    return Context(model, sparsity, "erk", 0, 100, data.in_order, len(data))


class OurStep:
    """A callable that loads a batch and takes one step of the engine with random ERK masks.

    On a GPU the step is captured in a CUDA graph, as in the engine. ``term`` makes a term for the
    network. ``execution`` is ``dense``, ``sparse`` or ``sparseprop``. The attribute ``sparse`` is
    the handle of sparse execution, and None for the others.
    """

    def __init__(
        self,
        name: str,
        data: ImageBatches,
        precision: str,
        term: MakeTerm = None,
        sparsity: float = 0.95,
        execution: str = "dense",
    ) -> None:
        context, method = context_of(name, sparsity, data), create("random")
        self.model = context.model
        self.masks = Masks(self.model, method.prepare(context))
        self.masks.apply()
        is_sparse = execution == "sparse"
        self.sparse = sparse_execution(self.model, self.masks) if is_sparse else None
        if execution == "sparseprop":
            use_sparseprop(self.model, data.batch_size)
        how = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "fused": True}
        optimizer = torch.optim.SGD(self.model.parameters(), **how)
        state = TrainingState(self.masks, optimizer, Phase("train", 1), len(data))
        parts = context, state, method, term(self.model) if term else None, precision, data
        self.indices = itertools.chain.from_iterable(map(data.batch_indices, itertools.count()))
        place = devices.of(data.device)
        place.set_process_flags()
        if place.can_capture:
            self.step: Step = CapturedStep(*parts, capture=place.capture)
            for group in optimizer.param_groups:  # A graph needs a fixed address.
                group["lr"] = torch.tensor(group["lr"], device=data.device)
            place.synchronize()
        else:
            self.step = Step(*parts)
        self.stream = place.stream()

    def __call__(self) -> None:
        with self.stream:
            self.step(next(self.indices))
