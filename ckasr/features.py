"""The features of a layer: which tensor of its output, which dimension counts samples, the copy."""

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

    Slicing would do the same, but its backward writes the rows into zeros of the full size and adds
    those to the gradient, which takes more than twice as long. Here the rows are added to a copy of
    the gradient, as autograd may have passed the same tensor to other branches or hooks.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dim: int, count: int) -> tuple[Tensor, Tensor]:
        # detach, not view_as: the next layer may work in place, which a view from here forbids.
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
    """Whether a module runs with substituted parameters, or as a replica of DataParallel."""
    parameter = next(module.parameters(), None)
    substituted = parameter is not None and not isinstance(parameter, nn.Parameter)
    return substituted or getattr(module, "_is_replica", False)


def own_batch_dim(module: nn.Module) -> int | None:
    """The sample dimension of a sequence layer of torch.nn, from batch_first; None for others."""
    if not isinstance(module, _SEQUENCE_LAYERS):
        return None
    flags = (getattr(layer, "batch_first", None) for layer in module.modules())
    return 0 if next((flag for flag in flags if flag is not None), True) else 1


def tensor_of(name: str, output: Any) -> Tensor:
    """The feature tensor in the output of a layer: the output itself, or its first entry.

    Raises ValueError if neither is a tensor.
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
    """Check the outputs of a stage that was found: channels first or last, the rest must agree."""
    shapes = {tuple(feature.shape[1:]) for feature in group}
    if len({shape[1:] for shape in shapes}) > 1 and len({shape[:-1] for shape in shapes}) > 1:
        raise ValueError(
            f"the stage {', '.join(stage)} was found by the module tree, but its outputs have "
            f"several resolutions, {', '.join(map(str, sorted(shapes)))}: name the layers with "
            "stages=[[...], ...], or with layers=[...], which groups them by resolution"
        )


def check_some_pair(names: list[str], groups: list[list[Tensor]]) -> None:
    """Check that layers that are grouped by resolution have a pair to compare."""
    if all(len(group) == 1 for group in groups):
        raise ValueError(
            f"no two of the layers {', '.join(names)} have one resolution, so the term is "
            "constant: name others, or compare across resolutions with pairs='all'"
        )
