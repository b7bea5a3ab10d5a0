"""Tables of PyTorch's operations, by their effect on the entries of a tensor."""

import inspect
from collections.abc import Callable
from typing import Any


def _names(*lines: str) -> frozenset[str]:
    return frozenset(name for line in lines for name in line.split())


MOVES = _names(
    "view view_as reshape reshape_as flatten unflatten permute transpose t swapaxes swapdims",
    "movedim moveaxis squeeze unsqueeze expand expand_as broadcast_to repeat tile",
    "repeat_interleave chunk split split_with_sizes tensor_split unbind getitem narrow select",
    "index_select gather roll flip contiguous clone pixel_shuffle pixel_unshuffle channel_shuffle",
    "unfold fold diagonal tril triu get_T get_mT",
)
"""Operations that move, repeat or omit values without changing them."""
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
"""Elementwise functions of one tensor."""
QUERIES = _names(
    "size dim ndimension numel nelement len stride is_contiguous is_floating_point is_complex",
    "element_size get_device is_signed data_ptr",
)
"""Operations that return a property of a tensor which does not depend on its values."""
CONSTRUCTORS = _names(
    "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full",
    "new_empty new_tensor",
)
"""Operations that read only the shape of a tensor."""

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
_SYNONYMS = {
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "absolute": "abs",
    "negative": "neg",
    "upsample": "interpolate",
}


def name_of(func: Callable[..., Any]) -> str:
    """Return the common name of a function, its method, its operator and its in-place version."""
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":  # of a property, such as Tensor.T
        return f"get_{func.__self__.__name__}"  # type: ignore[attr-defined]
    if name.startswith("__"):
        return _OPERATORS.get(name, name)
    return _SYNONYMS.get(name.rstrip("_"), name.rstrip("_"))


def asks(name: str) -> bool:
    """Return whether an operation only reads a property such as a shape or a type, not values."""
    return name in QUERIES or (name.startswith("get_") and name not in MOVES | COPIES)


def in_place(func: Callable[..., Any], args: tuple, kwargs: dict) -> bool:
    """Return whether a call changes its first argument."""
    name = func.__name__
    if name in ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__"):
        return True
    if inspect.isfunction(func) and "inplace" in inspect.signature(func).parameters:
        return bool(inspect.signature(func).bind(*args, **kwargs).arguments.get("inplace"))
    return name.endswith("_") and not name.startswith("_")
