"""Which weights of a masked model lie on a path from its input to its output."""

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..layers import memo_without_hooks, prunable, unwrapped
from .arithmetic import Factors
from .follow import Paths


class Live(NamedTuple):
    """What is alive in a masked classifier."""

    weights: dict[str, Tensor]
    """Bool tensors of the weights' shapes: the kept weights on a path from input to output."""
    classes: Tensor
    """(classes,) bool: the classes that a path reaches."""
    positions: dict[str, int]
    """Number of positions at which each weight is used for one input (1 for a linear layer)."""
    classifier: str
    """Name of the weight that was used last."""


def live_weights(model: nn.Module, masks: Mapping[str, Tensor], input_shape: Sequence[int]) -> Live:
    """Follow all paths through a copy of the model whose weights are its masks.

    Args:
        model: A model without a wrapper; it is left as it was.
        masks: One bool mask on the CPU for each prunable weight.
        input_shape: Shape of one input, without the batch.

    Raises:
        ValueError: For an operation that cannot be followed, with the name of its layer, and for a
            model whose output is not (batch, classes).
    """
    with torch.inference_mode(False):
        copied = _skeleton(model, masks)
        weights = prunable(copied)
        names = {id(weight): name for name, weight in weights.items()}
        factors: Factors = []
        Paths(copied, names, True, factors).run(input_shape)
        paths = Paths(copied, names, False, factors)
        output = paths.run(input_shape)
        positions, last = paths.arithmetic.positions, paths.arithmetic.last
        if not last or output.ndim != 2 or output.shape[1] != masks[last].shape[0]:
            raise ValueError(
                f"the model gives shape {tuple(output.shape)} from its last layer {last!r}: "
                "the report needs a classifier, (batch, classes)"
            )
        output.sum().backward()
    live = {
        name: masks[name] & (weight.grad > 0) if weight.grad is not None else masks[name] & False
        for name, weight in weights.items()
    }
    # The forward pass has two samples.
    halved = {name: count // 2 for name, count in positions.items()}
    return Live(live, output[0].detach() > 0, halved, last)


def _skeleton(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A copy in float64, on the CPU and in eval mode; weights are masks, other parameters ones."""
    # The memo tells deepcopy what to use in place of each parameter, so no parameter is copied.
    memo = memo_without_hooks(model)
    for param in model.parameters():
        ones = torch.ones(param.shape, dtype=torch.float64, device="cpu")
        memo[id(param)] = nn.Parameter(ones, requires_grad=False)
    for name, weight in prunable(model).items():
        memo[id(weight)] = nn.Parameter(masks[name].double())
    try:
        copied = copy.deepcopy(model, memo).to("cpu", torch.float64).eval()
    except Exception as error:  # any error that a module of the model raises
        raise ValueError(
            f"{type(model).__name__} cannot be copied, so its paths cannot be followed: {error}"
        ) from error
    for path, module in list(copied.named_modules()):
        for name, child in module.named_children():
            module._modules[name] = unwrapped(child)
        if isinstance(module, nn.MultiheadAttention):
            raise ValueError(
                f"layer {path!r} is attention: its paths cannot be followed; write it with "
                "nn.Linear and scaled_dot_product_attention"
            )
    return copied
