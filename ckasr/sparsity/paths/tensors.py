"""Tensors that say which entries depend on the input, and what is common to all operations."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class RefusedError(Exception):
    """An operation whose paths cannot be followed; the message says what it does."""


class _Marked(Tensor):
    """A tensor of a class of its own, with which PyTorch computes as with any other."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class Reach(_Marked):
    """A tensor that depends on the input. Exactly the entries that do are positive."""

    before_softmax: "Reach | None" = None
    """The argument of the softmax over the classes whose result this tensor is."""


class Weight(_Marked):
    """A prunable weight that was reshaped or scaled."""

    name: str = ""


class Constant(_Marked):
    """A tensor of which the input determines only the shape."""


class Clip(torch.autograd.Function):
    """Replace positive values, and positive gradients, by one.

    They count paths, whose number grows exponentially with the depth and would overflow.
    """

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return (x.as_subclass(Tensor) > 0).double()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return (grad > 0).double()


def reach(value: Tensor) -> Reach:
    return value.as_subclass(Reach)


def any_reach(values: Any) -> bool:
    """Whether any tensor in a nested structure depends on the input."""
    return any(isinstance(value, Reach) for value in pytree.tree_leaves(values))


def nonzero(values: Tensor) -> Tensor:
    """One where a value differs from zero, else zero."""
    return (values.detach().as_subclass(Tensor) != 0).double()


def spread(x: Tensor, dims: Iterable[int]) -> Tensor:
    """The sum over some dimensions, in each of the places that it is taken over."""
    return Clip.apply(x).sum(list(dims), keepdim=True).expand_as(x).clone()
