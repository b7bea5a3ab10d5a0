"""Time of training on 12,800 images and of evaluation, with as many models at once as in a sweep.

The time is the wall time divided by the number of models that train at the same time.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ckasr import devices, models
from ckasr.devices import GPU_JOBS
from ckasr.experiments.build import EVALUATION_BATCH
from ckasr.methods import Context, create
from ckasr.training import Engine, Recipe

from .data import IMAGES, batches
from .step import MODELS
from .timing import Timing, in_turn, summary
from .workers import Worker, together

TEST = 2_000


@dataclass(frozen=True)
class Variant:
    """A number of models that train at the same time.

    Args:
        label: name of the variant.
        make: function that makes the callable of a worker, ``module:function`` of this package.
        processes: number of processes.
        threads: threads per process.
        models: models per process.
        options: further arguments of the function.
    """

    label: str
    make: str
    processes: int
    threads: int
    models: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def workers(self, **common: Any) -> list[Worker]:
        """Start the processes; ``common`` are further arguments of the function."""
        ours = self.make == "epoch:epoch"
        options = common | self.options | ({"models": self.models} if ours else {})
        return [Worker(self.make, self.threads, ours, **options) for _ in range(self.processes)]


FP32, BF16 = {"precision": "fp32"}, {"precision": "bf16"}
# The first variant is the reference of the ratios.
ON_CPU = (
    Variant("plain loop, fp32, 1 process of 2 threads", "plain:epoch", 1, 2),
    Variant("ckasr, fp32, 2 processes of 1 thread", "epoch:epoch", 2, 1, options=FP32),
    Variant("ckasr, bf16, 2 processes of 1 thread", "epoch:epoch", 2, 1, options=BF16),
)
STREAMS = f"{GPU_JOBS} models side by side"
ON_GPU = (
    Variant("plain loop, fp32", "plain:epoch", 1, 1),
    Variant("ckasr, bf16, no graph", "epoch:epoch", 1, 1, options=BF16 | {"capture": False}),
    Variant("ckasr, fp32", "epoch:epoch", 1, 1, options=FP32),
    Variant("ckasr, bf16", "epoch:epoch", 1, 1, options=BF16),
    Variant(f"ckasr, fp32, {STREAMS}", "epoch:epoch", 1, 1, GPU_JOBS, FP32),
    Variant(f"ckasr, bf16, {STREAMS}", "epoch:epoch", 1, 1, GPU_JOBS, BF16),
)


def measure(
    device: torch.device,
    rounds: int,
    names: tuple[str, ...] = MODELS,
    images: int = IMAGES,
    test: int = TEST,
) -> list[Timing]:
    """Time an epoch with batches of 128 augmented images at sparsity 0.95.

    Args:
        device: device of the models.
        rounds: number of rounds, which is divided by four because an epoch takes seconds.
        names: names of the networks.
        images: number of training images.
        test: number of images of the evaluation.
    """
    timings = []
    for name in names:
        common = {"name": name, "device": str(device), "images": images, "test": test}
        with ExitStack() as stack:
            calls = {}
            for variant in ON_GPU if device.type == "cuda" else ON_CPU:
                workers = variant.workers(**common)
                for worker in workers:
                    stack.enter_context(closing(worker))
                calls[variant.label] = partial(together, workers, variant.models)
            seconds = in_turn(calls, -(-rounds // 4), lambda call: call(), warmup=1)
        timings += summary(f"epoch {name}", seconds, clock="wall", images=images)
    return timings


def epoch(
    name: str,
    device: str,
    images: int,
    test: int,
    precision: str,
    capture: bool = True,
    models: int = 1,
) -> Callable[[], None]:
    """Make a callable that trains every model for one epoch and evaluates it.

    On a GPU, each model has its own stream.

    Args:
        name: name of the network.
        device: device of the models.
        images: number of training images.
        test: number of images of the evaluation.
        precision: ``"fp32"`` or ``"bf16"``.
        capture: whether to capture the training step in a CUDA graph.
        models: number of models.
    """
    target = torch.device(device)
    place = devices.of(target)
    place.set_process_flags()
    runs = [
        (_epochs(name, target, images, test, precision, capture), place.stream())
        for _ in range(models)
    ]

    def call() -> None:
        running = list(runs)
        while running:
            for run in list(running):
                epochs, stream = run
                with stream:
                    if next(epochs) is not None:  # the entry of an epoch that has ended
                        running.remove(run)

    return call


def _epochs(
    name: str, device: torch.device, images: int, test: int, precision: str, capture: bool
) -> Iterator[object]:
    """The epochs of an engine. The engine is made on the current stream and trains on it."""
    torch.manual_seed(0)
    model = models.create(name, num_classes=100).to(device, memory_format=torch.channels_last)
    training = batches(images, device)
    validation = batches(test, device, EVALUATION_BATCH, augment="none")
    context = Context(model, 0.95, "erk", 0, 100, training.in_order, len(training))
    recipe = Recipe(epochs=1_000_000, precision=precision)
    how = {} if capture else {"capture": None}
    yield from Engine(
        context, create("random"), recipe, training, 0, validation, **how
    ).queued_epochs()
