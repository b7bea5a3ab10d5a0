"""A whole training step, ours against the loop that most users write."""

import itertools
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ckasr import CKASR, models
from ckasr.data import Batches
from ckasr.experiments.run import own_stream
from ckasr.methods import Context, Method, create
from ckasr.sparsity import dense_masks
from ckasr.training import Step
from ckasr.training.captured import CapturedStep

from .data import IMAGES, batches
from .timing import Timing, clock_of, in_turn, summary
from .workers import Worker

MODELS = ("resnet20", "resnet32")


def warmup(device: torch.device) -> int:
    """Number of warm-up rounds: on a GPU, enough to capture the graphs of both kinds of step."""
    return 8 if device.type == "cuda" else 2


def measure(
    device: torch.device,
    rounds: int,
    names: tuple[str, ...] = MODELS,
    images: int = IMAGES,
    batch_size: int = 128,
) -> list[Timing]:
    """Time one step with augmentation; each variant runs in its own process of one thread.

    Our step has the allocator settings of a sweep's workers, the plain loop those of the system.
    """
    timings = []
    for name in names:
        common = {"name": name, "device": str(device), "images": images, "batch_size": batch_size}
        with ExitStack() as stack:
            variants = {
                "plain loop, fp32": Worker("plain:step", 1, False, **common),
                "ckasr, fp32": Worker("step:step", 1, True, precision="fp32", **common),
                "ckasr, bf16": Worker("step:step", 1, True, precision="bf16", **common),
            }
            for worker in variants.values():
                stack.enter_context(closing(worker))
            seconds = in_turn(variants, rounds, lambda worker: worker(), warmup=warmup(device))
        timings += summary(f"step {name}", seconds, clock=clock_of(device), images=batch_size)
    return timings


def step(
    name: str, device: str, images: int, batch_size: int, precision: str
) -> Callable[[], None]:
    """A callable that loads a batch and takes one step of our training loop."""
    return our_step(name, batches(images, torch.device(device), batch_size), precision)


@dataclass
class _Penalised(Method):
    """Fixed masks and an additional term in the loss."""

    term: Callable[[], Tensor]

    def penalty(self, context: Context) -> Tensor:
        return self.term()


def our_step(
    name: str,
    data: Batches,
    precision: str,
    regularizer: Callable[[nn.Module], CKASR] | None = None,
    term: Callable[[nn.Module], Callable[[], Tensor]] | None = None,
    sparsity: float = 0.95,
    bind: Callable[[Context], object] = lambda context: None,
) -> Callable[[], None]:
    """A callable that takes one step of the engine on random ERK masks.

    On a GPU the step is captured in a CUDA graph, as the engine's is.

    Args:
        name: name of the network.
        data: training batches.
        precision: ``"fp32"`` or ``"bf16"``.
        regularizer: makes CKA-SR for the network; None for no CKA-SR.
        term: makes another term for the network; None for no other term.
        sparsity: fraction of weights that are zero.
        bind: called with the masked model before its optimiser is made.
    """
    torch.manual_seed(0)
    model = models.create(name, num_classes=100).to(data.device, memory_format=torch.channels_last)
    context = Context(model, sparsity, "erk", 0, 100, data.in_order)
    context.masks = dense_masks(model)
    create("random").prepare(context)
    context.masks.apply()
    bind(context)
    context.optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    method = _Penalised(term(model)) if term else create("random")
    parts = context, method, regularizer(model) if regularizer else None, precision, data
    draws = (draw for epoch in itertools.count() for draw in data.draws(epoch))
    on_gpu = data.device.type == "cuda"
    step = (CapturedStep if on_gpu else Step)(*parts)
    if on_gpu:
        for group in context.optimizer.param_groups:  # tensors, which the captured graph reads
            group["lr"] = torch.tensor(group["lr"], device=data.device)
        torch.cuda.synchronize()
    stream = own_stream(data.device.type)

    def call() -> None:
        with stream:
            step(next(draws))

    return call
