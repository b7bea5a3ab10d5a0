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

    def __init__(self, plan: Plan, addresses: list[int]) -> None:
        convolutions = plan.unit.convolutions
        self.plan = plan
        self.addresses = addresses
        self.norms = [norm_group(c, plan.grid) for c in convolutions]
        self._flat = [_flat(c.layer.weight) for c in convolutions]
        self.weights = [
            (lists.start, lists.offset, lists.where, flat)
            for lists, flat in zip(plan.lists, self._flat, strict=True)
        ]
        self.layout = Layout(convolutions)
        self._checked = [(terms, channels) for terms, channels in plan.checked if len(channels)]
        self._backs: dict[bytes, tuple[Back, list[Group]]] = {}
        self._keys: dict[bytes, list[object]] = {}

    def holds(self) -> bool:
        """Return whether the channels that the plan assumes to be zero are still zero."""
        for (first, *others), channels in self._checked:
            total = constants(self.norms[first], channels)
            for k in others:
                total = total + constants(self.norms[k], channels)
            if not (total <= 0).all():
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

    def gradient_keys(self, alive: np.ndarray | None) -> list[object]:
        """Return the keys of the memory for the gradient of each input. ``alive`` as in ``back``.

        Memory with such a key is always written at the same positions, so other points remain zero.
        """
        name = b"" if alive is None else alive.tobytes()
        if name not in self._keys:
            back, _ = self.back(alive)
            self._keys[name] = [
                ("to input", whole, (back, i) if source.stride > 1 else found.alive.tobytes())
                for i, (source, whole, found) in enumerate(
                    zip(self.plan.sources, self.plan.inputs, back.inputs, strict=True)
                )
            ]
        return self._keys[name]

    def gradients(
        self, where: Indices, kept: np.ndarray, scales: np.ndarray, coef: list[np.ndarray]
    ) -> list[Tensor | None]:
        """Return the gradients of the parameters, in the order of ``Convolution.parameters``.

        Parameters that do not exist are left out. All gradients are views of the same new memory,
        because each memory of its own would take as long to create.

        Args:
            where: position of each kept weight in this memory.
            kept: gradients of the kept weights.
            scales: gradients of scale and shift of all norms.
            coef: affine coefficients of the norm of each convolution.
        """
        memory = np.zeros(self.layout.size, scales.dtype)
        memory[: len(scales)] = scales
        memory[where] = kept
        whole = torch.from_numpy(memory)
        found: list[Tensor | None] = []
        one = (1,)
        for k, (shape, strides, weight, scale, channels, biased, normed) in enumerate(
            self.layout.parts
        ):
            found.append(whole.as_strided(shape, strides, weight))
            if not (biased or normed):
                continue
            d_shift = whole.as_strided(channels, one, scale + channels[0])
            if biased:
                mode = self.norms[k][0]
                if mode == NO_NORM:
                    found.append(d_shift)
                elif mode == TRAINING:
                    # The output does not depend on the bias, because the mean is subtracted.
                    found.append(torch.zeros_like(d_shift))
                else:
                    found.append(d_shift * torch.from_numpy(coef[k][:, 0].copy()))
            if normed:
                found += [whole.as_strided(channels, one, scale), d_shift]
        return found


class Layout:
    """Positions of the gradients of a unit's parameters in their common memory.

    Args:
        convolutions: convolutions of the unit.

    Attributes:
        scales: positions of scale and shift of each norm, which come first.
        weights: first position of the weight of each convolution.
        size: number of points of the memory.
        parts: for each convolution: shape and strides of its weight, first positions of weight and
            scale, number of channels in a tuple, and whether it has a bias and a scale.
    """

    def __init__(self, convolutions: list[Convolution]) -> None:
        self.scales: list[slice] = []
        self.weights: list[int] = []
        self.parts: list[Group] = []
        self.size = 2 * sum(c.channels for c in convolutions)
        start = 0
        for c in convolutions:
            weight, bias, scale, _ = c.parameters()
            self.scales.append(slice(start, start + 2 * c.channels))
            self.weights.append(self.size)
            self.parts.append(
                (tuple(weight.shape), weight.stride(), self.size, start, (c.channels,),
                 bias is not None, scale is not None)
            )  # fmt: skip
            start += 2 * c.channels
            self.size += weight.numel()


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
    weights = np.zeros(planes + 1, np.int64), NONE, NONE, floats
    return behind, (floats, NONE), weights, np.zeros(0)


@lru_cache
def floor(relu: bool, dtype: torch.dtype) -> Any:
    """Return the lower bound of an activation: 0 with a ReLU, else -inf, in the planes' type."""
    kind = np.dtype(str(dtype).removeprefix("torch.")).type
    return kind(0 if relu else -np.inf)
