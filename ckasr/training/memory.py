"""An estimate of the memory that a training step needs, made before the first step."""

import copy

import torch
from torch import Tensor, nn

from ckasr import devices

COPIES = 4
"""Copies of every parameter: itself, its gradient, its momentum and its mask."""


def least_bytes(model: nn.Module, inputs: Tensor, precision: str = "fp32") -> int:
    """Return the bytes that a step needs at least, for the backward pass and the model.

    It runs on the meta device, so it computes and allocates nothing and does not change the model.
    Buffers of kernels and the overhead of the allocator are not counted. For bf16, activations
    count half.

    Args:
        model: the model.
        inputs: inputs of a batch, of which only shape and type are used; may be on the meta device.
        precision: precision of the training.
    """
    empty = copy.deepcopy(model).to("meta").train()
    own = {tensor.untyped_storage()._cdata for tensor in empty.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        empty(torch.zeros(inputs.shape, dtype=inputs.dtype, device="meta"))
    activations = sum(storage.nbytes() for storage in kept.values())
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    return activations // (2 if precision == "bf16" else 1) + COPIES * parameters


def check(model: nn.Module, example: Tensor, batch_size: int, precision: str) -> None:
    """Check that a batch can fit into the free memory.

    Args:
        model: the model, on its device.
        example: a batch of one input.
        batch_size: number of samples per batch.
        precision: precision of the training.

    Raises:
        ValueError: if it cannot fit.
    """
    free = devices.of(model).free_memory()
    inputs = torch.empty((batch_size, *example.shape[1:]), dtype=example.dtype, device="meta")
    needed = least_bytes(model, inputs, precision)
    if free is not None and needed > free:
        raise ValueError(
            f"a step on {batch_size} samples needs at least {needed / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free: choose a smaller batch_size, or fewer jobs"
        )
