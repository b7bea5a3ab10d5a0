"""Following paths from a model's input to its output, through the model's own forward pass.

Every operation that the forward pass calls on a tensor that depends on the input is replaced by
one that computes which entries depend on it (`Paths`). An operation that is not in the tables
below is refused, with the name of the layer that calls it: nothing is assumed about it.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


def _names(*lines: str) -> frozenset[str]:
    return frozenset(name for line in lines for name in line.split())


MOVES = _names(
    "view view_as reshape reshape_as flatten unflatten permute transpose t swapaxes swapdims",
    "movedim moveaxis squeeze unsqueeze expand expand_as broadcast_to repeat tile",
    "repeat_interleave chunk split split_with_sizes tensor_split unbind getitem narrow select",
    "index_select gather roll flip contiguous clone pixel_shuffle pixel_unshuffle channel_shuffle",
    "unfold fold diagonal tril triu get_T get_mT",
)
"""They put each value elsewhere, once or several times."""
JOINS = _names("cat concat concatenate stack hstack vstack")
SUMS = _names("sum mean cumsum") | {
    f"{kind}avg_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3)
}
"""Sums of values with coefficients that are not negative."""
COPIES = _names("to float double half bfloat16 type type_as cpu detach get_data identity")
DROPOUTS = _names(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout",
    "feature_alpha_dropout",
)
MAXIMA = {f"{kind}max_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3)}
CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
ENTRYWISE = _names(
    "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish hardtanh hardswish",
    "hardsigmoid tanh sigmoid logsigmoid softplus softsign softshrink hardshrink tanhshrink",
    "threshold clamp clamp_min clamp_max clip abs neg square sqrt rsqrt exp expm1 log log1p",
    "reciprocal sin cos erf pow rpow sign round floor ceil nan_to_num long int bool positive",
)
"""Functions of each value by itself."""
QUERIES = _names(
    "size dim ndimension numel nelement len stride is_contiguous is_floating_point is_complex",
    "element_size get_device is_signed data_ptr",
)
CONSTRUCTORS = _names(
    "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full",
    "new_empty new_tensor",
)
_REDUCTIONS = {
    # Where the dimensions and keepdim stand among the arguments.
    "amax": (1, 2),
    "amin": (1, 2),
    "max": (1, 2),
    "min": (1, 2),
    "logsumexp": (1, 2),
    "var": (1, 3),
    "std": (1, 3),
    "norm": (2, 3),
}


class Reach(Tensor):
    """A tensor that depends on the input, positive exactly in the entries that do."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    before_softmax: Tensor | None = None


class Weight(Tensor):
    """A prunable weight that was reshaped or scaled."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    name: str = ""


class Constant(Tensor):
    """A tensor of which the input determines no more than the shape."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class RefusedError(Exception):
    """What a layer does that cannot be followed."""


class LayerNames:
    """Within it, the name of the layer that runs, for messages."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.running: list[nn.Module] = []

    def __str__(self) -> str:
        named = [name for module in self.running if (name := self.names.get(module))]
        return f"layer {named[-1]!r}" if named else "the model's forward pass"

    def __enter__(self) -> "LayerNames":
        self.handles = [
            register_module_forward_pre_hook(lambda module, args: self.running.append(module)),
            register_module_forward_hook(lambda *_: self.running.pop() and None, always_call=True),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


class Paths(TorchFunctionMode):
    """Within it, a forward pass computes which entries depend on the input.

    model: as `report` prepares it: prunable weights are their masks, other parameters ones.
    weights: the names of the prunable weights, by id.
    constants: what an entry greater than zero means. If true: it may differ from zero, by the
    input or by a constant (a bias, a position embedding). If false: it depends on the input.
    factors: where a forward pass with ``constants=True`` leaves, and one with ``constants=False``
    finds, which entries of the factors of each product of two tensors may differ from zero. Only
    where the one factor differs from zero does the product depend on the other.

    As no value is negative, nothing cancels, and the gradient of a mask's entry is positive
    exactly where a path uses it.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[int, str],
        constants: bool,
        factors: list[tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__()
        self.model, self.weights, self.constants, self.factors = model, weights, constants, factors
        self.layers = LayerNames(model)
        self.products = 0
        self.positions = dict.fromkeys(weights.values(), 0)
        """Entries of the output to which each weight contributes, both samples together."""
        self.last = ""
        """The layer that ran last."""

    def run(self, input_shape: Sequence[int]) -> Tensor:
        """The output for two samples of the given shape that can be anything."""
        ones = torch.ones((2, *input_shape), dtype=torch.float64, device="cpu")
        # With a gradient, so that whatever is computed from it by unseen means is found out.
        ones = ones.requires_grad_().clone()
        with self.layers, self:
            output = self.model(ones.as_subclass(Reach))
        try:
            if not isinstance(output, Tensor):
                raise RefusedError(f"is a {type(output).__name__}")
            self._check_seen(output)
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
        used = {name for t in tensors if (name := self._weight(t))}
        name = name_of(func)
        try:
            for tensor in tensors:
                self._check_seen(tensor)
            if not reached and (not used or asks(name)):
                return func(*args, **kwargs)
            # What a model computes without gradient counts as well, and nothing is to be computed
            # again in the backward pass, when this mode is off (checkpointing does so).
            kept = saved_tensors_hooks(lambda tensor: tensor.detach().clone(), lambda copy: copy)
            with torch.enable_grad(), kept:
                if not reached:
                    return self._reshape(name, func, args, kwargs, *used)
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

    # --- what each kind of operation does ---------------------------------------------------

    def _follow(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Any:
        x, others = (args[0], args[1:]) if args else (kwargs.pop("input"), ())
        if asks(name):
            return func(x, *others, **kwargs)
        if name in CONSTRUCTORS:
            return func(x.detach().as_subclass(Tensor), *others, **kwargs).as_subclass(Constant)
        if name in MOVES | SUMS:
            if any(isinstance(other, torch.dtype) for other in others):
                raise RefusedError(f"reads values as another type in {name}")
            shape_only = name.endswith("_as")
            if not isinstance(x, Reach) or (not shape_only and _any_reach((others, kwargs))):
                raise RefusedError(f"indexes by the input in {name}")
            return func(x, *others, **kwargs)
        if name in JOINS:
            return func([self._term(part) for part in x], *others, **kwargs)
        if name in COPIES | DROPOUTS:
            return x if in_place(func, (x, *others), kwargs) else x.clone()
        if name in ENTRYWISE:
            return self._entrywise(name, func, x, others, kwargs)
        if name not in _RULES:
            raise RefusedError(f"uses {name}")
        return _RULES[name](self, name, func, x, *others, **kwargs)

    def _entrywise(self, name: str, func: Callable, x: Tensor, others: tuple, kwargs: dict) -> Any:
        if not isinstance(x, Reach) or _any_reach((others, kwargs)):
            raise RefusedError(f"uses {name} of two tensors")
        replaced = in_place(func, (x, *others), kwargs)
        shift = None
        if self.constants:
            at_zero = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
            shift = _pattern(func(at_zero, *others, **kwargs))
        if replaced:
            return x if shift is None else x.add_(shift)
        return x.clone() if shift is None else x + shift

    def _add(self, name: str, func: Callable, x: Any, y: Any, alpha: float = 1, **out: Any) -> Any:
        _no_more(name, out)
        terms = [self._term(t) for t in (x, y)]
        return terms[0].add_(terms[1]) if in_place(func, (x,), {}) else terms[0] + terms[1]

    def _maximum(self, name: str, func: Callable, x: Any, y: Any) -> Any:
        return self._term(x) + self._term(y)

    def _mul(self, name: str, func: Callable, x: Any, y: Any) -> Any:
        if self._weight(x) or self._weight(y):
            raise RefusedError("multiplies by a layer's weight entry by entry")
        product = self._product(torch.mul, x, y)
        return x.copy_(product) if in_place(func, (x,), {}) else product

    def _div(self, name: str, func: Callable, x: Any, y: Any, rounding_mode: Any = None) -> Any:
        if func.__name__ in ("__rdiv__", "__rtruediv__"):
            x, y = y, x
        if isinstance(y, Reach):  # of 1 / y: zero nowhere, and no constant
            y = _reach(y + 1) if self.constants else y
        else:
            y = torch.ones_like(y, dtype=torch.float64) if isinstance(y, Tensor) else 1
        return self._mul(name, func, x, y)

    def _matmul(self, name: str, func: Callable, x: Any, y: Any) -> Any:
        if func.__name__ == "__rmatmul__":
            x, y = y, x
        product = self._product(torch.matmul, x, y)
        self._used(y if self._weight(y) else x, product, -1 if self._weight(y) else -2)
        return product

    def _einsum(self, name: str, func: Callable, equation: str, *operands: Any) -> Any:
        operands = operands[0] if len(operands) == 1 else operands
        if not isinstance(equation, str) or len(operands) != 2:
            raise RefusedError("uses einsum of other than two tensors")
        if any(map(self._weight, operands)):
            raise RefusedError("uses a layer's weight in einsum")
        return self._product(lambda x, y: torch.einsum(equation, x, y), *operands)

    def _linear(
        self,
        name: str,
        func: Callable,
        x: Any,
        weight: Any,
        bias: Any = None,
        *args: Any,
        **kw: Any,
    ) -> Any:
        product = self._product(lambda x, w: func(x, w, None, *args, **kw), x, weight)
        self._used(weight, product, 0)
        if bias is None:
            return product
        return product + self._term(bias).view(-1, *[1] * (weight.ndim - 2))

    def _addmm(self, name: str, func: Callable, bias: Any, x: Any, y: Any) -> Any:
        return self._term(bias) + self._matmul(name, func, x, y)

    def _embedding(
        self, name: str, func: Callable, x: Any, weight: Any, *args: Any, **kw: Any
    ) -> Any:
        if self._weight(weight):
            raise RefusedError("uses a layer's weight as a table")
        return x.unsqueeze(-1).repeat(*[1] * x.ndim, weight.shape[1])

    def _batch_norm(
        self, name: str, func: Callable, x: Any, mean: Any, var: Any, *args: Any, **kw: Any
    ) -> Any:
        # The order of the arguments differs: weight, bias, whether the statistics are the input's.
        weight, bias, training = [*args, *[None] * 3][:3]
        weight, bias = kw.get("weight", weight), kw.get("bias", bias)
        training = kw.get("training", kw.get("use_input_stats", training))
        if training or mean is None:
            dims = [d for d in range(x.ndim) if d != 1 and not (d == 0 and name[0] == "i")]
            return self._normalised(x, dims, bias is not None)
        return x + 1 if self.constants else x.clone()  # less the mean

    def _layer_norm(
        self, name: str, func: Callable, x: Any, shape: Any, *args: Any, **kw: Any
    ) -> Any:
        dims = range(-len(shape), 0)
        bias = kw.get("bias", args[1] if len(args) > 1 else None)
        return self._normalised(x, dims, bias is not None)

    def _group_norm(
        self, name: str, func: Callable, x: Any, groups: int, *args: Any, **kw: Any
    ) -> Any:
        bias = kw.get("bias", args[1] if len(args) > 1 else None)
        grouped = x.reshape(x.shape[0], groups, -1)
        return self._normalised(grouped, [-1], bias is not None).reshape(x.shape)

    def _rms_norm(self, name: str, func: Callable, x: Any, shape: Any, *a: Any, **kw: Any) -> Any:
        return self._divided(x, _spread(x, range(-len(shape), 0)))

    def _normalize(
        self, name: str, func: Callable, x: Any, p: float = 2, dim: Any = 1, **kw: Any
    ) -> Any:
        return self._divided(x, _spread(x, [dim] if isinstance(dim, int) else dim))

    def _local_response_norm(
        self, name: str, func: Callable, x: Any, size: int, *args: Any, **kw: Any
    ) -> Any:
        around = [0, 0] * (x.ndim - 2) + [size // 2, (size - 1) // 2]
        sums = functional.pad(x.as_subclass(Tensor), around).unfold(1, size, 1).sum(-1)
        return self._divided(x, sums)

    def _softmax(
        self, name: str, func: Callable, x: Any, dim: int | None = None, *a: Any, **kw: Any
    ) -> Any:
        if dim is None:
            dim = 0 if x.ndim in (0, 1, 3) else 1  # as torch has it
        result = _reach(self._normalised(x, [dim], True))
        if x.ndim == 2 and dim in (1, -1):
            # Each class then depends on all others, and none would count as dead.
            result.before_softmax = x
        return result

    def _scaled_dot_product_attention(
        self,
        name: str,
        func: Callable,
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0,
        is_causal: bool = False,
        **kw: Any,
    ) -> Any:
        _no_more(name, {k: v for k, v in kw.items() if k != "scale" and v})
        if _any_reach(attn_mask):
            raise RefusedError("uses an attention mask that depends on the input")
        allowed = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.float64, device="cpu")
        if is_causal:
            allowed = allowed.tril()
        if attn_mask is not None:
            allowed = allowed * (
                attn_mask if attn_mask.dtype == torch.bool else attn_mask > -torch.inf
            )
        shares = allowed
        if _any_reach((query, key)):
            key = _reach(key.mT) if isinstance(key, Reach) else key.mT
            shares = _spread(self._product(torch.matmul, query, key) * allowed, [-1])
            # Who sees one key only gives it all weight, whatever the score.
            shares = shares * (allowed.sum(-1, keepdim=True) > 1)
            shares = _reach((shares + 1 if self.constants else shares) * allowed)
        return self._product(torch.matmul, shares, value)

    def _glu(self, name: str, func: Callable, x: Any, dim: int = -1) -> Any:
        x, gate = x.chunk(2, dim)
        return self._product(torch.mul, _reach(x), _reach(gate + 1 if self.constants else gate))

    def _max_pool(self, name: str, func: Callable, x: Any, *args: Any, **kw: Any) -> Any:
        # A maximum passes its gradient to one of equal values, an average to all.
        average = getattr(functional, name.replace("max", "avg"))
        if name.startswith("adaptive"):
            return average(x, kw["output_size"] if "output_size" in kw else args[0])
        given = dict(zip(_POOL, args, strict=False)) | kw
        size, stride, padding, dilation, ceil_mode = ({**_POOL, **given}[key] for key in _POOL)
        if any(d != 1 for d in ([dilation] if isinstance(dilation, int) else dilation)):
            raise RefusedError("is a dilated pooling")
        return average(x, size, stride, padding, ceil_mode)

    def _pad(
        self,
        name: str,
        func: Callable,
        x: Any,
        pad: Any,
        mode: str = "constant",
        value: float | None = None,
    ) -> Any:
        value = float(bool(value) and self.constants)
        return func(x, pad, mode, value if mode == "constant" else None)

    def _interpolate(self, name: str, func: Callable, x: Any, *args: Any, **kw: Any) -> Any:
        if "bicubic" in args or kw.get("mode") == "bicubic":
            raise RefusedError("uses bicubic interpolation, whose coefficients may be negative")
        return func(x, *args, **kw)

    def _reduction(self, name: str, func: Callable, x: Any, *args: Any, **kw: Any) -> Any:
        at, keep_at = _REDUCTIONS[name]
        args = (x, *args)
        dim = kw.get("dim", args[at] if len(args) > at else None)
        keep = kw.get("keepdim", args[keep_at] if len(args) > keep_at else False)
        other = kw.get("other", dim)
        if isinstance(other, Tensor):
            return self._maximum(name, func, x, other)
        if dim is None or isinstance(dim, bool):
            dim = tuple(range(x.ndim))
        total = x.sum(dim, keep)
        if name == "logsumexp" and self.constants:
            total = total + 1
        if name in ("max", "min"):
            return torch.return_types.max((total, total))
        return total

    def _iter(self, name: str, func: Callable, x: Any) -> Any:
        return iter([_reach(part) for part in x.unbind()])

    def _masked_fill(self, name: str, func: Callable, x: Any, mask: Any, value: Any) -> Any:
        if _any_reach((mask, value)) or not isinstance(x, Reach):
            raise RefusedError("uses masked_fill with values that depend on the input")
        self._term(torch.as_tensor(value, device="cpu"))  # finite
        return func(x, mask, float(bool(value) and self.constants))

    def _where(self, name: str, func: Callable, x: Any, *choices: Any) -> Any:
        if _any_reach(x) or len(choices) != 2:
            raise RefusedError("chooses by the input in where")
        return func(x, *(self._term(choice) for choice in choices))

    def _setitem(self, name: str, func: Callable, x: Any, index: Any, value: Any) -> Any:
        if not isinstance(x, Reach) or _any_reach(index):
            raise RefusedError("assigns to a constant, or at a place, that the input determines")
        func(x, index, self._term(value))

    # --- their parts ------------------------------------------------------------------------

    def _product(self, func: Callable[[Any, Any], Tensor], x: Any, y: Any) -> Tensor:
        """A function that is linear in both arguments."""
        both = isinstance(x, Reach) and isinstance(y, Reach)
        x, y = self._factor(x), self._factor(y)
        if not both:
            return func(x, y)
        if self.constants:
            self.factors.append((x.detach(), y.detach()))
            return func(x, y)
        of_x, of_y = self.factors[self.products]
        self.products += 1
        return func(x, of_y) + func(of_x, y)

    def _normalised(self, x: Tensor, dims: Sequence[int], shifted: bool) -> Tensor:
        """Each value depends on all along the dimensions."""
        result = _spread(x, dims)
        if all(x.shape[dim] == 1 for dim in dims):
            result = result * 0  # one value alone becomes a constant
        return result + 1 if shifted and self.constants else result

    def _divided(self, x: Tensor, by: Tensor) -> Tensor:
        """x / (by + epsilon), so that zero stays zero."""
        by = by + 1 if self.constants else by
        return self._product(torch.mul, x, _reach(by.expand_as(x)))

    def _term(self, value: Any) -> Tensor:
        """What a term contributes to a sum."""
        if isinstance(value, Reach):
            return value
        if self._weight(value):
            raise RefusedError("adds a layer's weight to what depends on the input")
        value = torch.as_tensor(value, device="cpu")
        if torch.isinf(value).any():
            raise RefusedError(
                "adds an infinity, or fills by it: scaled_dot_product_attention can mask"
            )
        return _pattern(value) * float(self.constants)

    def _factor(self, value: Any) -> Tensor:
        """What a factor contributes to a product."""
        if isinstance(value, Reach):
            return _Clip.apply(value)
        return value if self._weight(value) else _pattern(torch.as_tensor(value, device="cpu"))

    def _weight(self, value: Any) -> str | None:
        """The name of the prunable weight that a value is."""
        return value.name if isinstance(value, Weight) else self.weights.get(id(value))

    def _check_seen(self, tensor: Tensor) -> None:
        """Refuse what was computed by an operation that this mode did not see."""
        if isinstance(tensor.grad_fn, torch.autograd.function.BackwardCFunction):
            name = tensor.grad_fn.name().removesuffix("Backward")
            raise RefusedError(f"gets what the autograd.Function {name!r} computed")
        if tensor.grad_fn is not None and not isinstance(tensor, (Reach, Weight)):
            raise RefusedError("gets what a scripted or compiled function computed")

    def _used(self, weight: Any, output: Tensor, dim: int) -> None:
        if name := self._weight(weight):
            self.positions[name] += output.numel() // weight.shape[dim]
            self.last = name

    def _reshape(
        self, name: str, func: Callable, args: tuple, kwargs: dict, weight: str, *more: str
    ) -> Any:
        """A weight in another shape, or scaled by constants, is still the weight."""
        if more or name not in MOVES | COPIES | {"mul", "div"}:
            raise RefusedError(f"applies {name} to the weight {weight!r} but not to the input")
        if name in COPIES:
            result = args[0].clone()
        elif name in MOVES:
            result = func(*args, **kwargs)
        else:
            result = torch.mul(*map(self._factor, args))

        def mark(value: Any) -> Any:
            if isinstance(value, Tensor):
                value = value.as_subclass(Weight)
                value.name = weight
            return value

        return pytree.tree_map(mark, result)


_RULES: dict[str, Callable[..., Any]] = {
    "add": Paths._add,
    "sub": Paths._add,
    "rsub": Paths._add,
    "maximum": Paths._maximum,
    "minimum": Paths._maximum,
    "mul": Paths._mul,
    "div": Paths._div,
    "matmul": Paths._matmul,
    "mm": Paths._matmul,
    "bmm": Paths._matmul,
    "addmm": Paths._addmm,
    "einsum": Paths._einsum,
    "linear": Paths._linear,
    **dict.fromkeys(CONVOLUTIONS, Paths._linear),
    "embedding": Paths._embedding,
    "batch_norm": Paths._batch_norm,
    "instance_norm": Paths._batch_norm,
    "layer_norm": Paths._layer_norm,
    "group_norm": Paths._group_norm,
    "rms_norm": Paths._rms_norm,
    "normalize": Paths._normalize,
    "local_response_norm": Paths._local_response_norm,
    "softmax": Paths._softmax,
    "log_softmax": Paths._softmax,
    "softmin": Paths._softmax,
    "scaled_dot_product_attention": Paths._scaled_dot_product_attention,
    "glu": Paths._glu,
    **dict.fromkeys(MAXIMA, Paths._max_pool),
    "pad": Paths._pad,
    "interpolate": Paths._interpolate,
    **dict.fromkeys(_REDUCTIONS, Paths._reduction),
    "iter": Paths._iter,
    "masked_fill": Paths._masked_fill,
    "where": Paths._where,
    "setitem": Paths._setitem,
}
_POOL = {"kernel_size": None, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
_OPERATORS = {
    f"__{prefix}{kind}__": kind if kind != "truediv" else "div"
    for prefix in ("", "r", "i")
    for kind in ("add", "mul", "div", "truediv", "matmul")
} | {
    "__sub__": "sub",
    "__isub__": "sub",
    "__rsub__": "rsub",
    "__pow__": "pow",
    "__rpow__": "rpow",
    "__neg__": "neg",
    "__pos__": "positive",
    "__abs__": "abs",
    "__len__": "len",
    "__iter__": "iter",
    "__getitem__": "getitem",
    "__setitem__": "setitem",
}
_OTHER_NAMES = {
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "absolute": "abs",
    "negative": "neg",
    "upsample": "interpolate",
}


def name_of(func: Callable[..., Any]) -> str:
    """One name for a function, its method, its operator and its in-place form."""
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":
        return f"get_{func.__self__.__name__}"
    if name.startswith("__"):
        return _OPERATORS.get(name, name)
    return _OTHER_NAMES.get(name.rstrip("_"), name.rstrip("_"))


def asks(name: str) -> bool:
    """Whether an operation asks for a shape, a type or the like, and for no value."""
    return name in QUERIES or (name.startswith("get_") and name not in MOVES | COPIES)


def in_place(func: Callable[..., Any], args: tuple, kwargs: dict) -> bool:
    """Whether a call changes its first argument."""
    name = func.__name__
    if name in ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__"):
        return True
    if inspect.isfunction(func) and "inplace" in inspect.signature(func).parameters:
        return bool(inspect.signature(func).bind(*args, **kwargs).arguments.get("inplace"))
    return name.endswith("_") and not name.startswith("_")


def _any_reach(values: Any) -> bool:
    return any(isinstance(value, Reach) for value in pytree.tree_leaves(values))


def _no_more(name: str, options: Mapping[str, Any]) -> None:
    if options:
        raise RefusedError(f"uses {name} with {', '.join(options)}")


def _mark(value: Any) -> Any:
    if isinstance(value, Constant):
        return value.as_subclass(Tensor)
    if isinstance(value, Tensor) and not isinstance(value, Reach):
        return _reach(value.double())
    return value


def _reach(value: Tensor) -> Tensor:
    return value.as_subclass(Reach)


def _pattern(values: Tensor) -> Tensor:
    """One where a value differs from zero."""
    return (values.detach().as_subclass(Tensor) != 0).double()


def _spread(x: Tensor, dims: Iterable[int]) -> Tensor:
    """The sum over some dimensions, in each of their places."""
    return _Clip.apply(x).sum(list(dims), keepdim=True).expand_as(x).clone()


class _Clip(torch.autograd.Function):
    """Values and gradients to {0, 1}: whether there is a path, as their number would overflow."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return (x.as_subclass(Tensor) > 0).double()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return (grad > 0).double()
