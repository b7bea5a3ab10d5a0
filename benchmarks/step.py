"""Time of a whole training step: the step of this package and a common training loop."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ckasr import devices, models
from ckasr.data import ImageBatches
from ckasr.methods import Context, Phase, TrainingState, create
from ckasr.sparsity import Masks
from ckasr.terms import Term
from ckasr.training import Step
from ckasr.training.captured import CapturedStep

from . import plain, workers
from .data import IMAGES, batches
from .timing import Timing, clock_of
from .workers import Variant

MODELS = ("resnet20", "resnet32")


def warmup(device: torch.device) -> int:
    """Number of warm-up rounds.

    On a GPU there are enough rounds to capture the CUDA graphs of steps with and without the term.
    """
    return 8 if devices.of(device).can_capture else 2


def measure(
    device: torch.device,
    rounds: int,
    names: tuple[str, ...] = MODELS,
    images: int = IMAGES,
    batch_size: int = 128,
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
            f"step {name}", variants, workers.alone, rounds=rounds,
            warmup=warmup(device), clock=clock_of(device), per_call=batch_size,
            name=name, device=str(device), images=images, batch_size=batch_size,
        )  # fmt: skip
    return timings


def step(
    name: str, device: str, images: int, batch_size: int, precision: str
) -> Callable[[], None]:
    """Make a callable that loads a batch and takes one step of this package's training loop."""
    return OurStep(name, batches(images, torch.device(device), batch_size), precision)


class OurStep:
    """A callable that loads a batch and takes one step of the engine with random ERK masks.

    On a GPU the step is captured in a CUDA graph, as in the engine.

    Args:
        name: name of the network.
        data: training batches.
        precision: ``"fp32"`` or ``"bf16"``.
        term: function that makes a term for the network; None for no term.
        sparsity: fraction of weights that are zero.
        bind: function that is called with the model and its masks before the optimiser is made. Its
            result is the attribute ``bound``.
    """

    def __init__(
        self,
        name: str,
        data: ImageBatches,
        precision: str,
        term: Callable[[nn.Module], Term] | None = None,
        sparsity: float = 0.95,
        bind: Callable[[nn.Module, Masks], Any] | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.model = models.create(name, num_classes=100)
        self.model.to(data.device, memory_format=torch.channels_last)
        context = Context(self.model, sparsity, "erk", 0, 100, data.in_order, len(data))
        method = create("random")
        self.masks = Masks(self.model, method.prepare(context))
        self.masks.apply()
        self.bound = bind(self.model, self.masks) if bind else None
        optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4,
            fused=True,
        )  # fmt: skip
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
