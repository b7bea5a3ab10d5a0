"""Time of training on 12,800 images and of evaluation, with as many models at once as in a sweep.

The time is the wall time divided by the number of models that train at the same time.
"""

from collections.abc import Callable, Iterator

import torch

from ckasr import devices, models
from ckasr.devices import GPU_JOBS
from ckasr.experiments.build import EVALUATION_BATCH
from ckasr.methods import Context, create
from ckasr.training import Engine, Recipe

from . import workers
from .data import IMAGES, batches
from .step import MODELS
from .timing import Timing
from .workers import Variant

TEST = 2_000


FP32, BF16 = {"precision": "fp32"}, {"precision": "bf16"}
OURS = "epoch:epoch"
# The first variant is the reference of the ratios.
ON_CPU = {
    "plain loop, fp32, 1 process of 2 threads": Variant("plain:epoch", threads=2),
    "ckasr, fp32, 2 processes of 1 thread": Variant(OURS, processes=2, arguments=FP32),
    "ckasr, bf16, 2 processes of 1 thread": Variant(OURS, processes=2, arguments=BF16),
}
SIDE_BY_SIDE = {"models": GPU_JOBS}
ON_GPU = {
    "plain loop, fp32": Variant("plain:epoch"),
    "ckasr, bf16, no graph": Variant(OURS, arguments=BF16 | {"capture": False}),
    "ckasr, fp32": Variant(OURS, arguments=FP32),
    "ckasr, bf16": Variant(OURS, arguments=BF16),
    f"ckasr, fp32, {GPU_JOBS} models side by side": Variant(OURS, arguments=FP32 | SIDE_BY_SIDE),
    f"ckasr, bf16, {GPU_JOBS} models side by side": Variant(OURS, arguments=BF16 | SIDE_BY_SIDE),
}


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
    variants = ON_GPU if device.type == "cuda" else ON_CPU
    timings = []
    for name in names:
        timings += workers.measure(
            f"epoch {name}", variants, workers.together, rounds=-(-rounds // 4), warmup=1,
            clock="wall", per_call=images,
            name=name, device=str(device), images=images, test=test,
        )  # fmt: skip
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
