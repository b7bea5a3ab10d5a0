"""Time of inference with a network before and after filter pruning.

The networks are not trained, because the speed depends on the number of channels and not on the
values of the weights. The criterion of the method removes channels of a network with random
weights. A trained network can lose other channels.
"""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ckasr.execution import INFERENCE
from ckasr.methods import Phase, TrainingState, create
from ckasr.sparsity import dense_masks

from . import inference
from .data import batches
from .step import context_of
from .timing import Timing

DENSE, MASKED, SMALL = "dense", "masked", "small network"


def measure(
    device: torch.device,
    rounds: int,
    names: tuple[str, ...] = ("resnet56",),
    sparsities: tuple[float, ...] = (0.5, 0.75),
    batch_sizes: tuple[int, ...] = inference.BATCH_SIZES,
) -> list[Timing]:
    """Time inference, see `inference.measure`.

    The sparsity is the fraction of the weights that are removed together with channels.
    """
    return inference.measure(
        "structured", lambda name, sparsity, images: networks(name, sparsity, images.device),
        device, rounds, names, sparsities, batch_sizes,
    )  # fmt: skip


def networks(name: str, sparsity: float, device: torch.device) -> dict[str, nn.Module]:
    """Return the networks by variant, in eval mode.

    The network ``dense`` has all its weights. In ``masked`` the weights of the removed channels are
    zero, and ``small network`` does not have these channels. The last two have the same outputs.
    """
    data, method = batches(8, device, 4, "none"), create("structured")
    context = context_of(name, sparsity, data)
    model = context.model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = TrainingState(dense_masks(model), optimizer, Phase("pretrain", 1), len(data))
    method.end_phase(context, state)  # This removes channels of the model.
    original, masks = method.counted(context, state.masks)
    original.to(device, memory_format=torch.channels_last).eval()
    on_device = {key: mask.to(device) for key, mask in masks.items()}
    masked = INFERENCE["masked"](original, on_device)
    return {DENSE: original, MASKED: masked, SMALL: model.eval()}


def multiply_adds(network: nn.Module, device: torch.device) -> int:
    """Return the number of multiply-adds of the network for one image of 32x32 pixels."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32, device=device))
    return counter.get_total_flops() // 2
