"""An epoch and the evaluation after it: our engine, in as many processes as a sweep runs.

The time is wall time, divided by the number of models that train side by side.
"""

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ckasr import models
from ckasr.experiments.run import EVALUATION_BATCH
from ckasr.methods import Context, create
from ckasr.training import Engine, Recipe

from .data import IMAGES, batches
from .step import MODELS
from .timing import Timing, in_turn, summary
from .workers import Worker, together

TEST = 2_000


@dataclass(frozen=True)
class Variant:
    """How many models train side by side, in one process each, and with how many threads."""

    label: str
    make: str
    processes: int
    threads: int
    options: dict[str, Any] = field(default_factory=dict)

    def workers(self, **arguments: Any) -> list[Worker]:
        fast = self.make.startswith("epoch:")
        make = partial(Worker, self.make, self.threads, fast, **arguments, **self.options)
        return [make() for _ in range(self.processes)]


# The first is the reference.
FP32, BF16 = {"precision": "fp32"}, {"precision": "bf16"}
ON_CPU = (
    Variant("plain loop, fp32, 1 process of 2 threads", "plain:epoch", 1, 2),
    Variant("ckasr, fp32, 2 processes of 1 thread", "epoch:epoch", 2, 1, FP32),
    Variant("ckasr, bf16, 2 processes of 1 thread", "epoch:epoch", 2, 1, BF16),
)
ON_GPU = (
    Variant("plain loop, fp32", "plain:epoch", 1, 2),
    Variant("ckasr, bf16, not captured", "epoch:epoch", 1, 2, BF16 | {"capture": False}),
    Variant("ckasr, fp32", "epoch:epoch", 1, 2, FP32),
    Variant("ckasr, bf16", "epoch:epoch", 1, 2, BF16),
)


def measure(
    device: torch.device,
    rounds: int,
    names: tuple[str, ...] = MODELS,
    images: int = IMAGES,
    test: int = TEST,
) -> list[Timing]:
    """Batch 128, masks at 0.95, augmentation, evaluation; a quarter of the rounds, being long."""
    timings = []
    for name in names:
        common = {"name": name, "device": str(device), "images": images, "test": test}
        with ExitStack() as stack:
            calls = {}
            for variant in ON_GPU if device.type == "cuda" else ON_CPU:
                workers = variant.workers(**common)
                for worker in workers:
                    stack.enter_context(closing(worker))
                calls[variant.label] = partial(together, workers)
            seconds = in_turn(calls, -(-rounds // 4), lambda call: call(), warmup=1)
        timings += summary(f"epoch {name}", seconds, clock="wall", images=images)
    return timings


def epoch(
    name: str, device: str, images: int, test: int, precision: str, capture: bool = True
) -> Callable[[], dict[str, Any]]:
    """A call is one epoch of the engine, evaluation included."""
    target = torch.device(device)
    torch.manual_seed(0)
    model = models.create(name, num_classes=100).to(target, memory_format=torch.channels_last)
    training = batches(images, target)
    validation = batches(test, target, EVALUATION_BATCH, augment="none")
    context = Context(model, 0.95, "erk", 0, 100, training.in_order)
    recipe = Recipe(epochs=1_000_000, precision=precision)
    options = {} if capture else {"capture": None}
    engine = Engine(context, create("random"), recipe, training, 0, validation, **options)
    epochs = engine.epochs()
    return lambda: next(epochs)
