"""Rules for PyTorch's operations: which entries of a result depend on the input.

A rule is a function of an `Arithmetic`, the PyTorch function that the model has called, and the
arguments of this call. It returns the tensor that replaces the result, or raises RefusedError if
the paths through the operation cannot be followed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .arithmetic import Arithmetic
from .operations import (
    CONSTRUCTORS,
    CONVOLUTIONS,
    COPIES,
    DROPOUTS,
    ENTRYWISE,
    JOINS,
    MAXIMA,
    MOVES,
    SUMS,
    in_place,
    name_of,
)
from .tensors import Constant, Reach, RefusedError, any_reach, nonzero, reach, spread

Rule = Callable[..., Any]

RULES: dict[str, Rule] = {}
"""Rules by the name of the operation (see `name_of`)."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Return a decorator that registers a function as the rule of the operations of these names."""

    def add_to_table(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add_to_table


# --- operations on single values -------------------------------------------------------------


@rule(*MOVES, *SUMS)
def move_or_sum(at: Arithmetic, func: Callable, x: Any, *args: Any, **kw: Any) -> Any:
    name = name_of(func)
    if any(isinstance(arg, torch.dtype) for arg in args):
        raise RefusedError(f"reads values as another type in {name}")
    shape_only = name.endswith("_as")
    if not isinstance(x, Reach) or (not shape_only and any_reach((args, kw))):
        raise RefusedError(f"indexes by the input in {name}")
    return func(x, *args, **kw)


@rule(*JOINS)
def join(at: Arithmetic, func: Callable, parts: Any, *args: Any, **kw: Any) -> Any:
    return func([at.term(part) for part in parts], *args, **kw)


@rule(*COPIES, *DROPOUTS)
def copy(at: Arithmetic, func: Callable, x: Any, *args: Any, **kw: Any) -> Any:
    return x if in_place(func, (x, *args), kw) else x.clone()


@rule(*CONSTRUCTORS)
def construct(at: Arithmetic, func: Callable, x: Any, *args: Any, **kw: Any) -> Any:
    return func(x.detach().as_subclass(Tensor), *args, **kw).as_subclass(Constant)


@rule(*ENTRYWISE)
def entrywise(at: Arithmetic, func: Callable, x: Any, *args: Any, **kw: Any) -> Any:
    if not isinstance(x, Reach) or any_reach((args, kw)):
        raise RefusedError(f"uses {name_of(func)} of two tensors")
    replaced = in_place(func, (x, *args), kw)
    shift = None
    if at.constants:
        at_zero = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        shift = nonzero(func(at_zero, *args, **kw))
    if replaced:
        return x if shift is None else x.add_(shift)
    return x.clone() if shift is None else x + shift


# --- sums and products of tensors ------------------------------------------------------------


@rule("add", "sub", "rsub", "maximum", "minimum")
def add(at: Arithmetic, func: Callable, x: Any, y: Any, alpha: float = 1, **out: Any) -> Any:
    _refuse_options(func, out)
    x_term, y_term = at.term(x), at.term(y)
    return x_term.add_(y_term) if in_place(func, (x,), {}) else x_term + y_term


@rule("mul")
def multiply(at: Arithmetic, func: Callable, x: Any, y: Any) -> Any:
    if at.weight_name(x) or at.weight_name(y):
        raise RefusedError("multiplies by a layer's weight entry by entry")
    product = at.product(torch.mul, x, y)
    return x.copy_(product) if in_place(func, (x,), {}) else product


@rule("div")
def divide(at: Arithmetic, func: Callable, x: Any, y: Any, rounding_mode: Any = None) -> Any:
    if func.__name__ in ("__rdiv__", "__rtruediv__"):
        x, y = y, x
    if isinstance(y, Reach):
        y = reach(at.plus_constant(y))  # 1 / y is zero nowhere
    else:
        y = torch.ones_like(y, dtype=torch.float64) if isinstance(y, Tensor) else 1
    return multiply(at, func, x, y)


@rule("matmul", "mm", "bmm")
def matmul(at: Arithmetic, func: Callable, x: Any, y: Any) -> Any:
    if func.__name__ == "__rmatmul__":
        x, y = y, x
    product = at.product(torch.matmul, x, y)
    at.use(y if at.weight_name(y) else x, product, -1 if at.weight_name(y) else -2)
    return product


@rule("addmm")
def addmm(at: Arithmetic, func: Callable, bias: Any, x: Any, y: Any) -> Any:
    return at.term(bias) + matmul(at, func, x, y)


@rule("einsum")
def einsum(at: Arithmetic, func: Callable, equation: str, *operands: Any) -> Any:
    operands = operands[0] if len(operands) == 1 else operands
    if not isinstance(equation, str) or len(operands) != 2:
        raise RefusedError("uses einsum of other than two tensors")
    if any(map(at.weight_name, operands)):
        raise RefusedError("uses a layer's weight in einsum")
    return at.product(lambda x, y: torch.einsum(equation, x, y), *operands)


@rule("linear", *CONVOLUTIONS)
def linear(
    at: Arithmetic, func: Callable, x: Any, weight: Any, bias: Any = None, *args: Any, **kw: Any
) -> Any:
    product = at.product(lambda x, w: func(x, w, None, *args, **kw), x, weight)
    at.use(weight, product, 0)
    if bias is None:
        return product
    return product + at.term(bias).view(-1, *[1] * (weight.ndim - 2))


@rule("embedding")
def embedding(at: Arithmetic, func: Callable, x: Any, weight: Any, *args: Any, **kw: Any) -> Any:
    if at.weight_name(weight):
        raise RefusedError("uses a layer's weight as a table")
    return x.unsqueeze(-1).repeat(*[1] * x.ndim, weight.shape[1])


@rule("glu")
def gated_linear_unit(at: Arithmetic, func: Callable, x: Any, dim: int = -1) -> Any:
    x, gate = x.chunk(2, dim)
    return at.product(torch.mul, reach(x), reach(at.plus_constant(gate)))


# --- normalisation ---------------------------------------------------------------------------


@rule("batch_norm", "instance_norm")
def batch_norm(
    at: Arithmetic,
    func: Callable,
    x: Any,
    mean: Any = None,
    var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: Any = False,
    *args: Any,
    **kw: Any,
) -> Any:
    if training or kw.get("use_input_stats") or mean is None:
        per_sample = name_of(func) == "instance_norm"
        dims = [d for d in range(x.ndim) if d != 1 and not (d == 0 and per_sample)]
        return at.normalised(x, dims, bias is not None)
    return x + 1 if at.constants else x.clone()  # the running mean is subtracted


@rule("layer_norm")
def layer_norm(at: Arithmetic, func: Callable, x: Any, shape: Any, *args: Any, **kw: Any) -> Any:
    bias = kw.get("bias", args[1] if len(args) > 1 else None)
    return at.normalised(x, range(-len(shape), 0), bias is not None)


@rule("group_norm")
def group_norm(at: Arithmetic, func: Callable, x: Any, groups: int, *args: Any, **kw: Any) -> Any:
    bias = kw.get("bias", args[1] if len(args) > 1 else None)
    grouped = x.reshape(x.shape[0], groups, -1)
    return at.normalised(grouped, [-1], bias is not None).reshape(x.shape)


@rule("rms_norm")
def rms_norm(at: Arithmetic, func: Callable, x: Any, shape: Any, *args: Any, **kw: Any) -> Any:
    return at.divided(x, spread(x, range(-len(shape), 0)))


@rule("normalize")
def normalize(at: Arithmetic, func: Callable, x: Any, p: float = 2, dim: Any = 1, **kw: Any) -> Any:
    return at.divided(x, spread(x, [dim] if isinstance(dim, int) else dim))


@rule("local_response_norm")
def local_response_norm(
    at: Arithmetic, func: Callable, x: Any, size: int, *args: Any, **kw: Any
) -> Any:
    around = [0, 0] * (x.ndim - 2) + [size // 2, (size - 1) // 2]
    sums = functional.pad(x.as_subclass(Tensor), around).unfold(1, size, 1).sum(-1)
    return at.divided(x, sums)


@rule("softmax", "log_softmax", "softmin")
def softmax(
    at: Arithmetic, func: Callable, x: Any, dim: int | None = None, *args: Any, **kw: Any
) -> Any:
    if dim is None:
        dim = 0 if x.ndim in (0, 1, 3) else 1  # PyTorch's default
    result = reach(at.normalised(x, [dim], True))
    if x.ndim == 2 and dim in (1, -1):
        # At the end of the model, each class would depend on all others, so that no class would
        # count as dead.
        result.before_softmax = x
    return result


@rule("scaled_dot_product_attention")
def attention(
    at: Arithmetic,
    func: Callable,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0,
    is_causal: bool = False,
    **kw: Any,
) -> Any:
    _refuse_options(func, {k: v for k, v in kw.items() if k != "scale" and v})
    if any_reach(attn_mask):
        raise RefusedError("uses an attention mask that depends on the input")
    allowed = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.float64, device="cpu")
    if is_causal:
        allowed = allowed.tril()
    if attn_mask is not None:
        boolean = attn_mask.dtype == torch.bool
        allowed = allowed * (attn_mask if boolean else attn_mask > -torch.inf)
    shares = allowed
    if any_reach((query, key)):
        key = reach(key.mT) if isinstance(key, Reach) else key.mT
        shares = spread(at.product(torch.matmul, query, key) * allowed, [-1])
        # If a query may attend to a single key only, the share of this key is 1 for any score.
        shares = shares * (allowed.sum(-1, keepdim=True) > 1)
        shares = reach(at.plus_constant(shares) * allowed)
    return at.product(torch.matmul, shares, value)


# --- pooling, padding and resizing -----------------------------------------------------------


@rule(*MAXIMA)
def max_pool(at: Arithmetic, func: Callable, x: Any, *args: Any, **kw: Any) -> Any:
    # The gradient of a maximum goes to one of several equal values. That of an average goes to all
    # of them.
    name = name_of(func)
    average = getattr(functional, name.replace("max", "avg"))
    if name.startswith("adaptive"):
        return average(x, kw["output_size"] if "output_size" in kw else args[0])
    defaults = {
        "kernel_size": None, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False,
    }  # fmt: skip
    given = defaults | dict(zip(defaults, args, strict=False)) | kw
    size, stride, padding, dilation, ceil_mode = (given[key] for key in defaults)
    if any(d != 1 for d in ([dilation] if isinstance(dilation, int) else dilation)):
        raise RefusedError("is a dilated pooling")
    return average(x, size, stride, padding, ceil_mode)


@rule("pad")
def pad(
    at: Arithmetic,
    func: Callable,
    x: Any,
    pad: Any,
    mode: str = "constant",
    value: float | None = None,
) -> Any:
    filled = float(bool(value) and at.constants)
    return func(x, pad, mode, filled if mode == "constant" else None)


@rule("interpolate")
def interpolate(at: Arithmetic, func: Callable, x: Any, *args: Any, **kw: Any) -> Any:
    if "bicubic" in args or kw.get("mode") == "bicubic":
        raise RefusedError("uses bicubic interpolation, whose coefficients may be negative")
    return func(x, *args, **kw)


# --- reductions ------------------------------------------------------------------------------

_REDUCTIONS = {
    "amax": (1, 2),
    "amin": (1, 2),
    "max": (1, 2),
    "min": (1, 2),
    "logsumexp": (1, 2),
    "var": (1, 3),
    "std": (1, 3),
    "norm": (2, 3),
}
"""Positions of the arguments ``dim`` and ``keepdim``."""


@rule(*_REDUCTIONS)
def reduce(at: Arithmetic, func: Callable, *args: Any, **kw: Any) -> Any:
    name, x = name_of(func), args[0]
    dim_at, keepdim_at = _REDUCTIONS[name]
    dim = kw.get("dim", args[dim_at] if len(args) > dim_at else None)
    keep = kw.get("keepdim", args[keepdim_at] if len(args) > keepdim_at else False)
    other = kw.get("other", dim)
    if isinstance(other, Tensor):  # torch.max of two tensors
        return add(at, func, x, other)
    if dim is None or isinstance(dim, bool):
        dim = tuple(range(x.ndim))
    total = x.sum(dim, keep)
    if name == "logsumexp":
        total = at.plus_constant(total)
    if name in ("max", "min"):
        return torch.return_types.max((total, total))
    return total


# --- choosing and assigning entries ----------------------------------------------------------


@rule("iter")
def iterate(at: Arithmetic, func: Callable, x: Any) -> Any:
    return iter([reach(part) for part in x.unbind()])


@rule("masked_fill")
def masked_fill(at: Arithmetic, func: Callable, x: Any, mask: Any, value: Any) -> Any:
    if any_reach((mask, value)) or not isinstance(x, Reach):
        raise RefusedError("uses masked_fill with values that depend on the input")
    at.term(torch.as_tensor(value, device="cpu"))  # refuses infinities
    return func(x, mask, float(bool(value) and at.constants))


@rule("where")
def where(at: Arithmetic, func: Callable, condition: Any, *choices: Any) -> Any:
    if any_reach(condition) or len(choices) != 2:
        raise RefusedError("chooses by the input in where")
    return func(condition, *(at.term(choice) for choice in choices))


@rule("setitem")
def set_item(at: Arithmetic, func: Callable, x: Any, index: Any, value: Any) -> None:
    if not isinstance(x, Reach) or any_reach(index):
        raise RefusedError("assigns to a constant, or at a place, that the input determines")
    func(x, index, at.term(value))


def _refuse_options(func: Callable, options: Mapping[str, Any]) -> None:
    if options:
        raise RefusedError(f"uses {name_of(func)} with {', '.join(options)}")
