"""The forward pass that follows paths: it calls a rule for each operation or raises an error."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .arithmetic import Arithmetic, Factors
from .layer_names import LayerNames
from .operations import COPIES, MOVES, asks, in_place, name_of
from .rules import RULES
from .tensors import Constant, Reach, RefusedError, Weight, reach


class Paths(TorchFunctionMode):
    """Mode in which a forward pass computes which entries depend on the input.

    Args:
        model: copy of the model as `live_weights` prepares it: prunable weights are replaced by
            their masks, and other parameters by ones.
        weights, constants, factors: arguments of `Arithmetic`.
    """

    def __init__(
        self, model: nn.Module, weights: Mapping[int, str], constants: bool, factors: Factors
    ) -> None:
        super().__init__()
        self.model, self.layers = model, LayerNames(model)
        self.arithmetic = Arithmetic(weights, constants, factors)

    def run(self, input_shape: Sequence[int]) -> Tensor:
        """Return the output for two samples, as numbers that are positive where a path arrives.

        Raises:
            ValueError: for an operation whose paths cannot be followed.
        """
        ones = torch.ones((2, *input_shape), dtype=torch.float64, device="cpu")
        # With the gradient function of ``clone``, `_check_seen` recognises the results of
        # operations that this mode has not handled.
        ones = ones.requires_grad_().clone()
        with self.layers, self:
            output = self.model(ones.as_subclass(Reach))
        try:
            if not isinstance(output, Tensor):
                raise RefusedError(f"is a {type(output).__name__}")
            _check_seen(output)
            if not isinstance(output, Reach):
                raise RefusedError("does not depend on its input")
        except RefusedError as error:
            raise ValueError(f"the model's output {error}: its paths cannot be followed") from None
        if output.before_softmax is not None:
            output = output.before_softmax
        return output.as_subclass(Tensor)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        reached = any(isinstance(t, Reach) for t in tensors)
        used = {name for t in tensors if (name := self.arithmetic.weight_name(t))}
        name = name_of(func)
        try:
            for tensor in tensors:
                _check_seen(tensor)
            if not reached and (not used or asks(name)):
                return func(*args, **kwargs)
            # Operations under torch.no_grad are also followed. Saved tensors are copied, so that
            # checkpointing does not recompute them in the backward pass, outside this mode.
            copied = saved_tensors_hooks(lambda tensor: tensor.detach().clone(), lambda copy: copy)
            with torch.enable_grad(), copied:
                if not reached:
                    return self._reshape_weight(name, func, args, kwargs, *used)
                if kwargs.get("out") is not None or (
                    in_place(func, args, kwargs) and not isinstance(args[0], Reach)
                ):
                    raise RefusedError(f"writes what depends on the input into a constant ({name})")
                return pytree.tree_map(_mark, self._follow(name, func, args, kwargs))
        except RefusedError as error:
            raise ValueError(f"{self.layers} {error}: its paths cannot be followed") from None
        except (RuntimeError, TypeError, IndexError, KeyError) as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{self.layers} cannot be followed in {name}: {line}") from error

    def _follow(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Any:
        if not args:
            args = (kwargs.pop("input"),)
        if asks(name):
            return func(*args, **kwargs)
        if name not in RULES:
            raise RefusedError(f"uses {name}")
        return RULES[name](self.arithmetic, func, *args, **kwargs)

    def _reshape_weight(
        self, name: str, func: Callable, args: tuple, kwargs: dict, weight: str, *more: str
    ) -> Any:
        """Reshape or scale a weight. The result counts as the same weight."""
        if more or name not in MOVES | COPIES | {"mul", "div"}:
            raise RefusedError(f"applies {name} to the weight {weight!r} but not to the input")
        if name in COPIES:
            result = args[0].clone()
        elif name in MOVES:
            result = func(*args, **kwargs)
        else:
            result = torch.mul(*map(self.arithmetic.factor, args))

        def mark(value: Any) -> Any:
            if isinstance(value, Tensor):
                value = value.as_subclass(Weight)
                value.name = weight
            return value

        return pytree.tree_map(mark, result)


def _check_seen(tensor: Tensor) -> None:
    """Raise RefusedError for the result of an operation that the mode has not handled."""
    if isinstance(tensor.grad_fn, torch.autograd.function.BackwardCFunction):
        name = tensor.grad_fn.name().removesuffix("Backward")
        raise RefusedError(f"gets what the autograd.Function {name!r} computed")
    if tensor.grad_fn is not None and not isinstance(tensor, (Reach, Weight)):
        raise RefusedError("gets what a scripted or compiled function computed")


def _mark(value: Any) -> Any:
    if isinstance(value, Constant):
        return value.as_subclass(Tensor)
    if isinstance(value, Tensor) and not isinstance(value, Reach):
        return reach(value.double())
    return value
