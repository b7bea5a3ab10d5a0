"""Modes in which a model runs for saliency scores: in float64, and for SynFlow only if linear."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ckasr.sparsity import paths

_CAPPED = {"relu6", "hardtanh", "clamp", "clip", "clamp_max"}
_PRODUCTS = paths.CONVOLUTIONS | {"linear", "mul", "div", "matmul", "mm", "bmm", "addmm"}
_LINEAR = (
    (paths.MOVES | paths.JOINS | paths.SUMS | paths.COPIES | paths.DROPOUTS | paths.MAXIMA)
    | (_PRODUCTS | _CAPPED)
    | {"relu", "leaky_relu", "prelu", "clamp_min", "abs", "add", "maximum", "positive", "amax"}
    | {"batch_norm", "pad", "interpolate", "embedding"}
)


class InFloat64(TorchFunctionMode):
    """Convert every floating-point tensor that a model creates or casts to float64."""

    def begin(self, x: Tensor) -> Tensor:
        """Convert the input before it is passed to the model."""
        return x

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not paths.in_place(func, args, kwargs):
            args, kwargs = pytree.tree_map(_double, (args, kwargs))
        result = func(*args, **kwargs)
        if _narrow(result) and args and paths.name_of(func) in paths.COPIES:
            source = args[0]
            if source.dtype == torch.float64:
                return source.to(result.device)  # not rounded
        return pytree.tree_map(_double, result)


class LinearFlow(InFloat64):
    """Check that a forward pass is linear, and raise ValueError if it is not.

    The forward pass must be linear in its input, which must not be negative, and in the weight of
    each layer. The tables of ``ckasr.sparsity.paths`` classify the operations.

    Args:
        layers: names of the layers, for the error message.
    """

    def __init__(self, layers: paths.LayerNames) -> None:
        super().__init__()
        self.layers = layers

    def begin(self, x: Tensor) -> Tensor:
        return x.as_subclass(paths.Reach)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = paths.name_of(func)
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        flows = sum(isinstance(t, paths.Reach) for t in tensors)
        weights = any(t.requires_grad for t in tensors if not isinstance(t, paths.Reach))
        if paths.asks(name) or not (flows or weights):
            return super().__torch_function__(func, types, args, kwargs)
        if problem := _problem(name, func, flows, weights, args, kwargs):
            raise ValueError(
                f"{self.layers} {problem}, through which positive values do not flow linearly, as "
                "SynFlow needs: ReLU will do, and no norm but batch norm"
            )
        if name in _CAPPED:
            result = args[0] if paths.in_place(func, args, kwargs) else args[0].clone()
        else:
            result = super().__torch_function__(func, types, args, kwargs)
        return pytree.tree_map(self._flowing, result) if flows else result

    def _flowing(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if (value < 0).any():
            raise ValueError(f"{self.layers} makes values negative: SynFlow needs positive ones")
        return value if isinstance(value, paths.Reach) else value.as_subclass(paths.Reach)


def _problem(
    name: str, func: Any, flows: int, weights: bool, args: tuple, kwargs: dict
) -> str | None:
    """Return why an operation is not linear in the flow and in a weight, or None."""
    if not flows:
        scales = name in paths.MOVES | paths.COPIES | {"mul", "div"}
        return None if scales else f"applies {name} to a weight"
    if name not in _LINEAR:
        return f"uses {name}"
    by_flow = name == "div" and not isinstance(args[0], paths.Reach)
    if name in _PRODUCTS and (flows > 1 or by_flow):
        return f"uses {name} with more than one factor that depends on the input"
    if name in _CAPPED | {"clamp_min"} and not _keeps_small_values(func, args, kwargs):
        return f"uses {name} with limits that cut small values off"
    if name == "batch_norm" and (args[1] is None or kwargs.get("training", args[5:6] == (True,))):
        return "uses batch_norm by the statistics of the batch"
    if weights and name not in _PRODUCTS:
        return f"uses {name} of a weight, or of what a scripted function computed"
    return None


def _keeps_small_values(func: Any, args: tuple, kwargs: dict) -> bool:
    small = torch.full((1,), 1e-12, dtype=torch.float64)
    limits = [limit for limit in args[1:] if not isinstance(limit, bool)]  # without inplace
    return torch.equal(func(small.clone(), *limits, **kwargs), small)


def _narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64


def _double(value: Any) -> Any:
    return value.double() if _narrow(value) else value
