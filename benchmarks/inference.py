"""Time of inference with several networks in turn, at several batch sizes."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from .data import batches
from .step import warmup
from .timing import Timing, interleaved

BATCH_SIZES = (128, 1)
IMAGES_PER_ROUND = 32  # smallest number per variant; one image takes only milliseconds


def measure(
    benchmark: str,
    make: Callable[[str, float, Tensor], Mapping[str, nn.Module]],
    device: torch.device,
    rounds: int,
    names: tuple[str, ...],
    sparsities: tuple[float, ...],
    batch_sizes: tuple[int, ...],
) -> list[Timing]:
    """Time networks in float32, without augmentation.

    ``make`` returns networks in eval mode by variant, the reference first. Its arguments are a name
    of ``names``, a sparsity of ``sparsities``, and images of shape (n, 3, 32, 32).
    """
    count = max(batch_sizes)
    images = next(batches(count, device, count, augment="none").in_order())[0]
    timings = []
    for name in names:
        for sparsity in sparsities:
            networks = make(name, sparsity, images)
            for size in batch_sizes:
                x = images[:size].contiguous(memory_format=torch.channels_last)
                timings += interleaved(
                    f"{benchmark} {name}, sparsity {sparsity:g}, batch {size}",
                    {label: partial(_forward, network, x) for label, network in networks.items()},
                    rounds=rounds, device=device, warmup=warmup(device),
                    calls=max(1, IMAGES_PER_ROUND // size), images=size,
                )  # fmt: skip
    return timings


@torch.no_grad()
def _forward(network: nn.Module, x: Tensor) -> Tensor:
    return network(x)
