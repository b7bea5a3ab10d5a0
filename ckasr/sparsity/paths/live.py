"""Find the weights of a masked model that are on a path from its input to its output."""

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..layers import memo_without_hooks, prunable, unwrapped
from .arithmetic import Factors
from .follow import Paths


class Live(NamedTuple):
    """The parts of a masked classifier that are on a path from its input to its output."""

    weights: dict[str, Tensor]
    """Bool tensors of the weights' shapes, True for kept weights on such a path."""
    classes: Tensor
    """(classes,) bool, whether a path leads to each class."""
    positions: dict[str, int]
    """Number of positions at which each weight is used for one input (1 for a linear layer)."""
    classifier: str
    """Name of the classifier's weight, which is the last weight that was used."""


def live_weights(model: nn.Module, masks: Mapping[str, Tensor], input_shape: Sequence[int]) -> Live:
    """Follow all paths through a copy of the model in which masks replace the weights.

    Args:
        model: model without a wrapper; it is not changed.
        masks: bool mask of every prunable weight, by name, on the CPU.
        input_shape: shape of one input, without the batch dimension.

    Raises:
        ValueError: for an operation whose paths cannot be followed, with the name of its layer, and
            for a model whose output is not (batch, classes).
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
    """Return a copy of the model in float64, on the CPU and in eval mode.

    Masks replace the prunable weights, and ones replace all other parameters.
    """
    # With the memo, deepcopy uses these tensors instead of copies of the parameters.
    memo = memo_without_hooks(model)
    for param in model.parameters():
        ones = torch.ones(param.shape, dtype=torch.float64, device="cpu")
        memo[id(param)] = nn.Parameter(ones, requires_grad=False)
    for name, weight in prunable(model).items():
        memo[id(weight)] = nn.Parameter(masks[name].double())
    try:
        copied = copy.deepcopy(model, memo).to("cpu", torch.float64).eval()
    except Exception as error:  # a module of the model can raise any error
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
