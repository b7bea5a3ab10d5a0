"""Estimate of the memory that a training step needs, before the first step."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ckasr import devices

COPIES = 4
"""Number of tensors per parameter: the parameter, its gradient, its momentum and its mask."""


def least_bytes(model: nn.Module, inputs: Tensor, precision: str = "fp32") -> int:
    """Return a lower bound of the memory of a step, in bytes.

    The bound counts the parameters and the activations that the backward pass needs. It does not
    count the buffers of kernels and the overhead of the allocator. With bf16, activations need half
    the memory. The function runs a copy of the model on the meta device, which computes and
    allocates nothing.

    Args:
        model: the model.
        inputs: inputs of a batch, (n, ...), of which only shape and type are used. The tensor can
            be on the meta device.
        precision: precision of the training.
    """
    empty = copy.deepcopy(model).to("meta").train()
    zeros = torch.zeros(inputs.shape, dtype=inputs.dtype, device="meta")
    activations = kept_bytes(lambda: empty(zeros), empty.parameters())
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    return activations // (2 if precision == "bf16" else 1) + COPIES * parameters


def kept_bytes(call: Callable[[], object], own: Iterable[Tensor]) -> int:
    """Return the bytes that autograd keeps for the backward pass of what ``call`` computes.

    Each storage counts once, in full, even if several operations or views of it keep it. Tensors
    that autograd does not keep, such as intermediate results, are not counted.

    Args:
        call: the forward pass. It may include the backward pass.
        own: tensors whose storages are not counted, such as parameters.
    """
    known = {tensor.untyped_storage()._cdata for tensor in own}
    kept: dict[int, torch.UntypedStorage] = {}  # references, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        call()
    return sum(storage.nbytes() for storage in kept.values())


def check(model: nn.Module, example: Tensor, batch_size: int, precision: str) -> None:
    """Check that the free memory of the device is sufficient for a training step.

    Args:
        model: the model, on its device.
        example: a batch of one input, (1, ...).
        batch_size: number of samples per batch.
        precision: precision of the training.

    Raises:
        ValueError: if the free memory is less than ``least_bytes``.
    """
    free = devices.of(model).free_memory()
    inputs = torch.empty((batch_size, *example.shape[1:]), dtype=example.dtype, device="meta")
    needed = least_bytes(model, inputs, precision)
    if free is not None and needed > free:
        raise ValueError(
            f"a step on {batch_size} samples needs at least {needed / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free: choose a smaller batch_size, or fewer jobs"
        )
