"""Time of inference with a masked network, compared with the dense network with folded batch norm.

The networks are not trained. They have random ERK masks of one seed, random weights, random scales
and shifts of the batch norm, and its statistics are those of the masked network on the benchmark's
images. The outputs depend on the image. The shifts determine how many filters can be removed: a
filter without inputs whose shift is positive has a constant output and cannot be removed. Here the
standard deviation of the shifts is 0.30, as in the published dense ResNet20 for CIFAR-10, and half
of them are positive; in that network 15 % are positive. The fraction in sparse trained networks is
not known.
"""

import torch
from torch import Tensor, nn

from ckasr import models
from ckasr.execution import INFERENCE, choose, shrink
from ckasr.sparsity import Masks, dense_masks, layer_densities, prunable, random_masks

from . import inference
from .step import MODELS
from .timing import Timing

FOLDED = "dense, batch norm folded"
MASKED, SPARSE, SHRUNK = INFERENCE


def measure(
    device: torch.device,
    rounds: int,
    names: tuple[str, ...] = MODELS,
    sparsities: tuple[float, ...] = (0.99, 0.995, 0.998),
    batch_sizes: tuple[int, ...] = inference.BATCH_SIZES,
) -> list[Timing]:
    """Time inference, see `inference.measure`.

    The variant ``masked`` is the model as it is trained, with its pruned weights at zero, in eval
    mode.
    """
    return inference.measure("shrink", networks, device, rounds, names, sparsities, batch_sizes)


def networks(name: str, sparsity: float, images: Tensor) -> dict[str, nn.Module]:
    """Networks by variant. The first is dense; all others are masked and have the same outputs.

    ``images``, of shape (n, 3, 32, 32), determine the statistics of the batch norm.
    """
    torch.manual_seed(0)
    model = models.create(name, num_classes=100).to(images.device)
    model.to(memory_format=torch.channels_last)
    folded = shrink(model, dense_masks(model))
    shapes = {key: weight.shape for key, weight in prunable(model).items()}
    masks = random_masks(shapes, layer_densities(shapes, 1 - sparsity, "erk"), seed=0)
    Masks(model, masks).apply()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.momentum = None  # cumulative average over all batches
    with torch.no_grad():
        for part in images.split(32):
            model(part)
    for norm in norms:
        norm.momentum = 0.1  # The sparse kernels do not support a cumulative average.
    kernels, _ = choose("auto", model, masks, "fp32")  # This is dense on a GPU or without numba.
    ways = {way: make for way, make in INFERENCE.items() if way != SPARSE or kernels == SPARSE}
    return {FOLDED: folded} | {way: make(model, masks) for way, make in ways.items()}
