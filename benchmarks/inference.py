"""Time of inference with several networks in turn, at several batch sizes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .data import batches
from .step import warmup
from .timing import Call, Timing, interleaved

BATCH_SIZES = (128, 1)
IMAGES_PER_ROUND = 32
"""Smallest number of images per variant and round; one image takes only milliseconds."""


def images(count: int, device: torch.device) -> Tensor:
    """Random images without augmentation, shape (count, 3, 32, 32)."""
    return next(batches(count, device, count, augment="none").in_order())[0]


def measure(
    benchmark: str,
    networks: Mapping[str, nn.Module],
    x: Tensor,
    batch_sizes: Sequence[int],
    rounds: int,
) -> list[Timing]:
    """Time the networks on the first images of ``x``.

    Args:
        benchmark: name of the group; the batch size is added to it.
        networks: networks in eval mode, by variant; the first is the reference.
        x: images, shape (n, 3, 32, 32), on the device of the networks.
        batch_sizes: numbers of images, each at most n.
        rounds: number of measured rounds.
    """
    timings = []
    for size in batch_sizes:
        batch = x[:size].contiguous(memory_format=torch.channels_last)
        timings += interleaved(
            f"{benchmark}, batch {size}",
            {label: _forward(network, batch) for label, network in networks.items()},
            rounds=rounds,
            device=x.device,
            warmup=warmup(x.device),
            calls=max(1, IMAGES_PER_ROUND // size),
            images=size,
        )
    return timings


def _forward(network: nn.Module, x: Tensor) -> Call:
    def call() -> object:
        with torch.no_grad():
            return network(x)

    return call
