"""Every way of inference with a masked network, beside the same network dense and folded.

The networks are not trained: they have random ERK masks of one seed, random weights, scales and
shifts, and the batch norm statistics of the masked network on the benchmark's images. Their outputs
depend on the image. The shifts decide how much can be removed: a filter without inputs whose shift
is positive is a constant that must stay. Half of the shifts are positive here. In the published
dense ResNet20 for CIFAR-10, whose spread of 0.30 is used here, 15 % are; in sparse trained networks
the share is not known.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ckasr import models
from ckasr.execution import INFERENCE, choose, shrink
from ckasr.sparsity import Masks, dense_masks, layer_densities, prunable, random_masks

from .data import batches
from .step import MODELS, warmup
from .timing import Timing, interleaved

SPARSITIES = (0.99, 0.995, 0.998)
FOLDED = "dense, batch norm folded"
MASKED, SPARSE, SHRUNK = INFERENCE


def measure(
    device: torch.device,
    rounds: int,
    names: tuple[str, ...] = MODELS,
    sparsities: tuple[float, ...] = SPARSITIES,
    batch_sizes: tuple[int, ...] = (128, 1),
) -> list[Timing]:
    """Time inference on batches of 128 images and of one image.

    ``masked`` is the model as it is trained, with its pruned weights at zero, in eval mode.
    """
    images = _images(device, max(batch_sizes))
    timings = []
    for name in names:
        for sparsity in sparsities:
            variants = networks(name, sparsity, images)
            for size in batch_sizes:
                x = images[:size].contiguous(memory_format=torch.channels_last)
                timings += interleaved(
                    f"shrink {name}, sparsity {sparsity:g}, batch {size}",
                    {label: _forward(network, x) for label, network in variants.items()},
                    rounds=rounds,
                    device=device,
                    warmup=warmup(device),
                    calls=max(1, 32 // size),  # one image takes only milliseconds
                    images=size,
                )
    return timings


def networks(name: str, sparsity: float, images: Tensor, seed: int = 0) -> dict[str, nn.Module]:
    """The networks by variant: the first has all its weights, the others compute the same."""
    torch.manual_seed(seed)
    model = models.create(name, num_classes=100).to(images.device)
    model.to(memory_format=torch.channels_last)
    folded = shrink(model, dense_masks(model))
    shapes = {key: weight.shape for key, weight in prunable(model).items()}
    masks = random_masks(shapes, layer_densities(shapes, 1 - sparsity, "erk"), seed)
    Masks(model, masks).apply()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.momentum = None  # an average over all batches
    with torch.no_grad():
        for part in images.split(32):
            model(part)
    for norm in norms:
        norm.momentum = 0.1  # the sparse kernels support no cumulative average
    kernels, _ = choose("auto", model, masks, "fp32")  # dense without numba, or on a GPU
    ways = {way: make for way, make in INFERENCE.items() if way != SPARSE or kernels == SPARSE}
    return {FOLDED: folded} | {way: make(model, masks) for way, make in ways.items()}


def _images(device: torch.device, count: int) -> Tensor:
    data = batches(count, device, count, augment="none")
    return next(data.in_order())[0]


def _forward(network: nn.Module, x: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return network(x)

    return call
