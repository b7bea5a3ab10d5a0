"""Argument groups of the kernels. They are created once per plan and used at every step."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .back import Back, make_back
from .kernels import FROZEN, NO_NORM, TRAINING
from .plan import NONE, Plan
from .planes import Grid
from .unit import Convolution, Indices

Group = tuple[Any, ...]
"""An argument group of a kernel; ``kernels.py`` describes the content of each group."""


class Arguments:
    """Weights and norms of a plan's convolutions, as arrays that share the memory of the model.

    Args:
        plan: the plan.
        addresses: addresses of the model's parameters and buffers. The arguments are not valid for
            other addresses.
    """

    def __init__(self, plan: Plan, addresses: tuple[int, ...]) -> None:
        convolutions = plan.unit.convolutions
        self.plan = plan
        self.addresses = addresses
        self.norms = [norm_group(c, plan.grid) for c in convolutions]
        self._flat = [_flat(c.layer.weight) for c in convolutions]
        self.weights = [
            (lists.start, lists.offset, lists.where, flat)
            for lists, flat in zip(plan.lists, self._flat, strict=True)
        ]
        self.parameters = [_parameters(c, plan.grid) for c in convolutions]
        """For each convolution: shape of its weight, strides in bytes, and whether it has a bias
        and a scale."""
        self._checked = [(terms, channels) for terms, channels in plan.checked if len(channels)]
        self._backs: dict[bytes, tuple[Back, list[Group]]] = {}

    def holds(self) -> bool:
        """Return whether the channels that the plan assumes to be zero are still zero."""
        for terms, channels in self._checked:
            total = sum(constants(self.norms[k], channels) for k in terms)
            if not np.all(total <= 0):
                return False
        return True

    def back(self, alive: np.ndarray | None) -> tuple[Back, list[Group]]:
        """Return the lists of a backward, and the argument group ``weights`` of each convolution.

        Args:
            alive: (C,) bool, whether the gradient of each output channel is not zero; None: all.
        """
        if alive is None:
            alive = np.ones(self.plan.out.channels, bool)
        key = alive.tobytes()
        if key not in self._backs:
            back = make_back(self.plan, alive)
            weights = [
                (lists.start, lists.offset, lists.where, flat)
                for lists, flat in zip(back.lists, self._flat, strict=True)
            ]
            self._backs[key] = back, weights
        return self._backs[key]


def _parameters(c: Convolution, grid: Grid) -> tuple[tuple[int, ...], tuple[int, ...], bool, bool]:
    weight, bias, scale, _ = c.parameters()
    strides = tuple(stride * grid.numpy.itemsize for stride in weight.stride())
    return tuple(weight.shape), strides, bias is not None, scale is not None


def norm_group(c: Convolution, grid: Grid) -> Group:
    """Return the argument group ``norm``. Missing parameters are arrays of 0 or 1."""
    norm = c.norm

    def array(value: Tensor | None, otherwise: float) -> np.ndarray:
        if value is None:
            return np.full(c.channels, otherwise, grid.numpy)
        return value.detach().numpy()

    bias = array(c.layer.bias, 0)
    if norm is None:
        one, zero, steps = array(None, 1), array(None, 0), np.zeros(1, np.int64)
        return NO_NORM, grid.pixels, bias, one, zero, 0.0, 0.0, zero, zero, steps
    return (
        TRAINING if norm.training else FROZEN, grid.pixels, bias, array(norm.weight, 1),
        array(norm.bias, 0), norm.eps, norm.momentum or 0.0, array(norm.running_mean, 0),
        array(norm.running_var, 1), array(norm.num_batches_tracked, 0).reshape(1),
    )  # fmt: skip


def constants(norm: Group, channels: Indices | slice = slice(None)) -> np.ndarray:
    """Return the output of a norm for filters without live weights, (C,).

    The input of the norm is then the bias of the filter, so the output is the same at every pixel.
    In train mode it is the shift of the norm, because the input equals the batch mean.

    Args:
        norm: argument group ``norm``.
        channels: channels for which to return the output.
    """
    mode, _, bias, gamma, beta, eps, _, mean, var, _ = norm
    if mode == NO_NORM:
        return bias[channels]
    if mode == TRAINING:
        return beta[channels]
    deviation = np.float64(bias[channels]) - mean[channels]
    return beta[channels] + deviation * (gamma[channels] / np.sqrt(var[channels] + eps))


def _flat(weight: Tensor) -> np.ndarray:
    """Return the memory of a dense tensor as a vector."""
    return weight.detach().as_strided((weight.numel(),), (1,)).numpy()


@lru_cache
def no_convolution(grid: Grid, planes: int) -> Group:
    """Return the arguments that stand for a missing convolution.

    Args:
        grid: grid of the planes.
        planes: number of planes of the input that the convolution would read.
    """
    floats, stored = np.zeros(0, grid.numpy), np.zeros(0, grid.stored)
    behind = floats, NONE, 0, stored, NONE, 0, np.zeros((0, 3), grid.numpy)
    return behind, (floats, NONE), (np.zeros(planes + 1, np.int64), NONE, NONE, floats), floats


@lru_cache
def floor(relu: bool, dtype: torch.dtype) -> Any:
    """Return the lower bound of an activation: 0 with a ReLU, else -inf, in the planes' type."""
    kind = np.dtype(str(dtype).removeprefix("torch.")).type
    return kind(0 if relu else -np.inf)
