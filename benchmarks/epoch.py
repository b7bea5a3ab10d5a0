"""Time of training on 12,800 images and of evaluation, with as many models at once as in a sweep.

The time is the wall time divided by the number of models that train at the same time.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from ckasr import devices
from ckasr.devices import GPU_JOBS
from ckasr.experiments.build import EVALUATION_BATCH
from ckasr.methods import create
from ckasr.training import Engine, Recipe

from . import plain, workers
from .data import IMAGES, batches
from .step import MODELS, context_of
from .timing import Timing
from .workers import Variant


def measure(
    device: torch.device, rounds: int, names: tuple[str, ...] = MODELS, images: int = IMAGES
) -> list[Timing]:
    """Time an epoch with batches of 128 augmented images at sparsity 0.95.

    The number of rounds is divided by four, because an epoch takes seconds.
    """
    # The first variant is the reference of the ratios.
    variants = {
        "plain loop, fp32, 1 process of 2 threads": Variant(
            plain.epoch, threads=2, allocator=False
        ),
        "ckasr, fp32, 2 processes of 1 thread": _ours("fp32", processes=2),
        "ckasr, bf16, 2 processes of 1 thread": _ours("bf16", processes=2),
    }
    if device.type == "cuda":
        variants = {
            "plain loop, fp32": Variant(plain.epoch, allocator=False),
            "ckasr, fp32": _ours("fp32"),
            "ckasr, bf16": _ours("bf16"),
            f"ckasr, fp32, {GPU_JOBS} models side by side": _ours("fp32", models=GPU_JOBS),
            f"ckasr, bf16, {GPU_JOBS} models side by side": _ours("bf16", models=GPU_JOBS),
        }
    timings = []
    for name in names:
        timings += workers.measure(
            f"epoch {name}", variants, workers.together, rounds=-(-rounds // 4), warmup=1,
            clock="wall", per_call=images,
            name=name, device=str(device), images=images, test=2_000,
        )  # fmt: skip
    return timings


def _ours(precision: str, processes: int = 1, models: int = 1) -> Variant:
    make = partial(epoch, precision=precision, models=models)
    return Variant(make, processes=processes, models=models)


def epoch(
    name: str, device: str, images: int, test: int, precision: str, models: int = 1
) -> Callable[[], None]:
    """Make a callable that trains every model for one epoch and evaluates it.

    On a GPU, each model has its own stream.
    """
    target = torch.device(device)
    place = devices.of(target)
    place.set_process_flags()
    runs = [(_epochs(name, target, images, test, precision), place.stream()) for _ in range(models)]

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
    name: str, device: torch.device, images: int, test: int, precision: str
) -> Iterator[object]:
    """The epochs of an engine. The engine is made on the current stream and trains on it."""
    training = batches(images, device)
    validation = batches(test, device, EVALUATION_BATCH, augment="none")
    context, recipe = context_of(name, 0.95, training), Recipe(1_000_000, precision=precision)
    engine = Engine(context, create("random"), recipe, training, 0, validation)
    yield from engine.queued_epochs()
