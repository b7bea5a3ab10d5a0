"""How much memory a training step needs, told before the first one."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ckasr import devices

COPIES = 4
"""Of every parameter: itself, its gradient, its momentum and its mask's factor."""


def least_bytes(model: nn.Module, batch: Sequence[int], precision: str = "fp32") -> int:
    """Bytes that a step on a batch (B, C, H, W) holds at least: what backward needs, and the model.

    Measured on the meta device, so nothing is computed or allocated, and the model is left alone.
    Buffers of kernels and the allocator's slack come on top; bf16 is taken as half of everything.
    """
    empty = copy.deepcopy(model).to("meta").train()
    own = {tensor.untyped_storage()._cdata for tensor in empty.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        empty(torch.zeros(tuple(batch), device="meta"))
    activations = sum(storage.nbytes() for storage in kept.values())
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    return activations // (2 if precision == "bf16" else 1) + COPIES * parameters


def check(model: nn.Module, batch: Sequence[int], precision: str) -> None:
    """Raise ValueError for a batch that cannot fit into what memory is free."""
    free = devices.of(model).free_memory()
    needed = least_bytes(model, batch, precision)
    if free is not None and needed > free:
        raise ValueError(
            f"a step on {batch[0]} images needs at least {needed / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free: choose a smaller batch_size, or fewer jobs"
        )
