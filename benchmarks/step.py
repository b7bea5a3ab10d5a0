"""Time of a whole training step: the step of this package and a common training loop."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ckasr import CKASR, devices, models
from ckasr.data import ImageBatches
from ckasr.methods import Context, Method, Phase, TrainingState, create
from ckasr.sparsity import Masks
from ckasr.training import Step
from ckasr.training.captured import CapturedStep

from . import workers
from .data import IMAGES, batches
from .timing import Timing, clock_of
from .workers import Variant

MODELS = ("resnet20", "resnet32")
VARIANTS = {
    "plain loop, fp32": Variant("plain:step"),
    "ckasr, fp32": Variant("step:step", arguments={"precision": "fp32"}),
    "ckasr, bf16": Variant("step:step", arguments={"precision": "bf16"}),
}


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
    """Time one step with augmentation. Each variant runs in its own process with one thread.

    Args:
        device: device of the models.
        rounds: number of measured rounds.
        names: names of the networks.
        images: number of training images.
        batch_size: batch size.
    """
    timings = []
    for name in names:
        timings += workers.measure(
            f"step {name}", VARIANTS, lambda found: found[0](), rounds=rounds,
            warmup=warmup(device), clock=clock_of(device), per_call=batch_size,
            name=name, device=str(device), images=images, batch_size=batch_size,
        )  # fmt: skip
    return timings


def step(
    name: str, device: str, images: int, batch_size: int, precision: str
) -> Callable[[], None]:
    """Make a callable that loads a batch and takes one step of this package's training loop."""
    return our_step(name, batches(images, torch.device(device), batch_size), precision)


@dataclass
class _Penalised(Method):
    """Fixed masks and an additional term in the loss."""

    term: Callable[[], Tensor]

    def penalty(self, context: Context, state: TrainingState) -> Tensor:
        return self.term()


def our_step(
    name: str,
    data: ImageBatches,
    precision: str,
    regularizer: Callable[[nn.Module], CKASR] | None = None,
    term: Callable[[nn.Module], Callable[[], Tensor]] | None = None,
    sparsity: float = 0.95,
    bind: Callable[[nn.Module, Masks], object] = lambda model, masks: None,
) -> Callable[[], None]:
    """Make a callable that takes one step of the engine with random ERK masks.

    On a GPU the step is captured in a CUDA graph, as in the engine.

    Args:
        name: name of the network.
        data: training batches.
        precision: ``"fp32"`` or ``"bf16"``.
        regularizer: function that makes CKA-SR for the network; None for no CKA-SR.
        term: function that makes another term for the network; None for no other term.
        sparsity: fraction of weights that are zero.
        bind: function that is called with the model and its masks before the optimiser is made.
    """
    torch.manual_seed(0)
    model = models.create(name, num_classes=100).to(data.device, memory_format=torch.channels_last)
    context = Context(model, sparsity, "erk", 0, 100, data.in_order, len(data))
    masks = Masks(model, create("random").prepare(context))
    masks.apply()
    bind(model, masks)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    method = _Penalised(term(model)) if term else create("random")
    state = TrainingState(masks, optimizer, Phase("train", 1), len(data))
    parts = context, state, method, regularizer(model) if regularizer else None, precision, data
    numbers = itertools.count()
    indices = itertools.chain.from_iterable(map(data.batch_indices, numbers))
    place = devices.of(data.device)
    place.set_process_flags()
    if place.can_capture:
        step: Step = CapturedStep(*parts, capture=place.capture)
        for group in optimizer.param_groups:  # A graph needs a fixed address.
            group["lr"] = torch.tensor(group["lr"], device=data.device)
        place.synchronize()
    else:
        step = Step(*parts)
    stream = place.stream()

    def call() -> None:
        with stream:
            step(next(indices))

    return call
