"""Global average pooling of the output of a unit, on the memory layout of the kernels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import kernels
from .arguments import floor
from .unit import hook_tables
from .workspace import Lent, Workspace


class BoundPool:
    """Function from (N, C, H, W) to (N, C): the mean over the pixels of each channel.

    For an output of a unit, the kernels compute the mean from the planes of this output. The
    backward writes planes with the gradient before the last ReLU of the unit. For any other tensor,
    the pooling of the model is called.

    Args:
        workspace: workspace of the model's units.
        plain: pooling of the model.
        keep: whether the output has the shape (N, C, 1, 1) instead.
    """

    def __init__(self, workspace: Workspace, plain: Callable[[Tensor], Tensor], keep: bool) -> None:
        self.plain = plain
        self.keep = keep
        self.workspace = workspace
        self._hooks = hook_tables(plain) if isinstance(plain, nn.Module) else []

    def __call__(self, x: Tensor) -> Tensor:
        usable = self.workspace.enabled and not any(self._hooks) and type(x) is Tensor
        if not usable or torch.is_autocast_enabled("cpu") or torch.is_inference_mode_enabled():
            return self.plain(x)
        known = self.workspace.known(x)
        if known is None:
            return self.plain(x)
        if torch.is_grad_enabled() and x.requires_grad:
            means = _Function.apply(self.workspace, known, x)
        else:
            means = torch.from_numpy(_forward(known))
        return means[:, :, None, None] if self.keep else means


class _Function(torch.autograd.Function):
    """Autograd function of a global average pooling."""

    @staticmethod
    def forward(ctx: Any, workspace: Workspace, known: Lent, x: Tensor) -> Tensor:
        ctx.workspace, ctx.known = workspace, known
        # x need not be saved. If it is the output of a ReLU, its unit has saved it, and autograd
        # raises an error if x is changed in place. Otherwise the gradient does not depend on x.
        return torch.from_numpy(_forward(known))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, _backward(ctx.workspace, ctx.known, grad.contiguous().numpy())


def _forward(known: Lent) -> np.ndarray:
    """Return the means, (N, C), of a unit's output with these properties."""
    planes, grid = known.planes, known.planes.grid
    means = np.zeros((grid.images, planes.channels), grid.numpy)
    channels, base = known.channels
    kernels.pool((known.memory, base, grid.image), channels, means, grid.height * grid.width)
    return means


def _backward(workspace: Workspace, known: Lent, grad: np.ndarray) -> Tensor:
    """Return the gradient of a unit's output, before its last ReLU, from that of the means."""
    planes, grid = known.planes, known.planes.grid
    key = "to input", planes, known.alive.tobytes()
    out = workspace.buffers.take(key, planes.size, grid.numpy)
    channels, base = known.channels
    if id(out) not in known.spread:
        gate = known.memory if known.relu else None
        totals = np.zeros(planes.channels)
        known.spread[id(out)] = Lent(out, planes, known.alive, gate=gate, totals=totals)
    lent = known.spread[id(out)]
    kernels.spread(
        grad, (known.memory, base, grid.image), known.relu, floor(True, grid.dtype), out,
        channels, lent.totals, grid.mask[: grid.image], grid.height * grid.width,
    )  # fmt: skip
    return workspace.lend(key, lent, False)
