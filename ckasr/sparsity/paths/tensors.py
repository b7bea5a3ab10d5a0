"""Tensor classes that mark a dependence on the input, and functions that all rules use."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class RefusedError(Exception):
    """Raised for an operation whose paths cannot be followed. The message says what it does."""


class _Marked(Tensor):
    """Base class of marked tensors. PyTorch's operations treat them like plain tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class Reach(_Marked):
    """A tensor that depends on the input. An entry is positive if it does, and zero otherwise."""

    before_softmax: "Reach | None" = None
    """Argument of the softmax, if this tensor is the result of a softmax over the classes."""


class Weight(_Marked):
    """A prunable weight that was reshaped or scaled."""

    name: str = ""


class Constant(_Marked):
    """A tensor whose shape depends on the input, but whose values do not."""


class Clip(torch.autograd.Function):
    """Replace positive values and positive gradients by one.

    Otherwise they would be numbers of paths, which grow exponentially with the depth and overflow.
    """

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return (x.as_subclass(Tensor) > 0).double()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return (grad > 0).double()


def reach(value: Tensor) -> Reach:
    """Mark a tensor as depending on the input."""
    return value.as_subclass(Reach)


def any_reach(values: Any) -> bool:
    """Return whether any tensor in a nested structure depends on the input."""
    return any(isinstance(value, Reach) for value in pytree.tree_leaves(values))


def nonzero(values: Tensor) -> Tensor:
    """Return 1 where a value differs from zero, and 0 elsewhere."""
    return (values.detach().as_subclass(Tensor) != 0).double()


def spread(x: Tensor, dims: Iterable[int]) -> Tensor:
    """Return the sum over some dimensions, expanded to the shape of ``x``."""
    return Clip.apply(x).sum(list(dims), keepdim=True).expand_as(x).clone()
