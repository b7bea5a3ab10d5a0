"""Features of a layer: find the tensor and its sample dimension, and copy its first samples."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

_SEQUENCE_LAYERS = (
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.Transformer,
)


class FirstSamples(torch.autograd.Function):
    """Return ``x`` and a copy of its first samples along a dimension.

    Slicing has the same result, but its backward writes the rows into zeros of the full size and
    adds those to the gradient, which takes more than twice as long. Here the backward adds the rows
    to a copy of the gradient. A copy is needed because autograd may use the same gradient tensor in
    other branches or hooks.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dim: int, count: int) -> tuple[Tensor, Tensor]:
        # detach instead of view_as, because the next layer may work in place, and autograd forbids
        # in-place operations on a view that a custom Function returns.
        return x.detach(), x.narrow(dim, 0, count).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.shape = inputs[0].shape
        ctx.dim, ctx.count = inputs[1:]

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, few: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        if few is None:
            return grad, None, None
        grad = few.new_zeros(ctx.shape) if grad is None else grad.clone()
        grad.narrow(ctx.dim, 0, few.shape[ctx.dim]).add_(few)
        return grad, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, dim: None, count: None) -> tuple[Tensor, Tensor]:
        return tangent.clone(), tangent.narrow(ctx.dim, 0, ctx.count).clone()


def is_foreign(module: nn.Module) -> bool:
    """Return whether a module runs with substituted parameters, or as a DataParallel replica."""
    parameter = next(module.parameters(), None)
    substituted = parameter is not None and not isinstance(parameter, nn.Parameter)
    return substituted or getattr(module, "_is_replica", False)


def own_batch_dim(module: nn.Module) -> int | None:
    """Return the sample dimension of a sequence layer of torch.nn; None for any other layer."""
    if not isinstance(module, _SEQUENCE_LAYERS):
        return None
    flags = (getattr(layer, "batch_first", None) for layer in module.modules())
    return 0 if next((flag for flag in flags if flag is not None), True) else 1


def tensor_of(name: str, output: Any) -> Tensor:
    """Return the feature tensor in the output of a layer: the output itself, or its first entry.

    Args:
        name: name of the layer, for the error message.
        output: output of the layer: a tensor, or a tuple, list or mapping.

    Raises:
        ValueError: if neither the output nor its first entry is a tensor.
    """
    x = output
    if isinstance(output, Mapping):
        x = next(iter(output.values()), None)
    elif isinstance(output, tuple | list) and not isinstance(output, PackedSequence):
        x = output[0] if output else None
    if not isinstance(x, Tensor):
        kind = type(output).__name__
        first = "" if x is output else f" that starts with {type(x).__name__}"
        raise ValueError(f"layer {name!r} returns {kind}{first}, not a tensor; name another layer")
    return x


def check_one_resolution(stage: Sequence[str], group: Sequence[Tensor]) -> None:
    """Check that the outputs of a stage have one resolution.

    The outputs may have their channels first or last; the other dimensions must agree.

    Args:
        stage: names of the layers of a stage from ``find_stages``.
        group: their outputs, tensors ``(n, ...)``.

    Raises:
        ValueError: if the resolutions differ.
    """
    shapes = {tuple(feature.shape[1:]) for feature in group}
    if len({shape[1:] for shape in shapes}) > 1 and len({shape[:-1] for shape in shapes}) > 1:
        raise ValueError(
            f"the stage {', '.join(stage)} was found by the module tree, but its outputs have "
            f"several resolutions, {', '.join(map(str, sorted(shapes)))}: name the layers with "
            "stages=[[...], ...], or with layers=[...], which groups them by resolution"
        )


def check_some_pair(names: list[str], groups: list[list[Tensor]]) -> None:
    """Check that layers that are grouped by resolution form at least one pair.

    Args:
        names: names of all layers.
        groups: their outputs, one list per resolution.

    Raises:
        ValueError: if every group has a single layer.
    """
    if all(len(group) == 1 for group in groups):
        raise ValueError(
            f"no two of the layers {', '.join(names)} have the same resolution, so the term is "
            "constant: name other layers, or compare across resolutions with pairs='all'"
        )
