"""What a mask leaves of a network: weights on a live path, dead filters and classes, cost."""

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .masks import CONVOLUTIONS, check_masks, prunable, unwrapped
from .paths import Paths

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def report(
    model: nn.Module, masks: Mapping[str, Tensor], input_shape: Sequence[int] | None = None
) -> dict[str, object]:
    """Sparsity of a classifier under its masks, as the run record holds it.

    The model maps (batch, *input_shape) to (batch, classes) and is left as it was. In the result:
    `nominal` and `effective` are shares of zeros among all `weights`; `kept` counts the masks,
    `effective_kept` only weights on a path of kept weights from an input to an output. A filter
    (an output unit of any layer but the classifier) is dead when no such path enters it; a class
    is empty when its row in the classifier is, and dead when no path reaches it. `macs` are
    multiply-adds of the conv and linear layers for one input: weights times output positions.
    Without `input_shape` the first layer tells it: its inputs, and 32 x 32 pixels for a 2-d
    convolution; give it for anything else.

    Paths are followed through the model's own forward pass, operation by operation, so skips,
    pooling, attention and padding need no description (see `paths`). A path may lead through any
    function of a value whatever its slope, through each factor of a product unless the other one
    is zero, and from each value to all that are normalised with it (layer norm, group norm,
    softmax; a softmax at the model's end is left out). A value that is constant, such as a bias,
    starts no path. Raises ValueError, with the name of the layer, for an operation that cannot be
    followed (a branch or an index that the input decides, a custom autograd.Function,
    nn.MultiheadAttention, and any operation that `paths` does not list); and for masks that do not
    fit, a model without a weight to prune, or one that gives no (batch, classes).
    """
    model = unwrapped(model)
    weights = prunable(model)
    if not weights:
        raise ValueError(f"{type(model).__name__} has no conv or linear weight to report on")
    check_masks(weights, masks)
    masks = {name: masks[name].detach().cpu() for name in weights}
    shape = default_input_shape(model) if input_shape is None else tuple(input_shape)
    trace = _trace(model, weights, masks, shape)

    total = sum(mask.numel() for mask in masks.values())
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    live = {name: int(alive.sum()) for name, alive in trace.live.items()}
    hidden = [alive.flatten(1).any(1) for name, alive in trace.live.items() if name != trace.last]
    rows = masks[trace.last].flatten(1).any(1)
    return {
        "weights": total,
        "kept": sum(kept.values()),
        "nominal": 1 - sum(kept.values()) / total,
        "effective_kept": sum(live.values()),
        "effective": 1 - sum(live.values()) / total,
        "dead_layers": [name for name, count in live.items() if count == 0],
        "filters": sum(len(units) for units in hidden),
        "dead_filters": sum(int((~units).sum()) for units in hidden),
        "classes": len(trace.reached),
        "empty_classes": int((~rows).sum()),
        "dead_classes": int((~trace.reached).sum()),
        "macs_dense": sum(mask.numel() * trace.positions[name] for name, mask in masks.items()),
        "macs": sum(kept[name] * trace.positions[name] for name in masks),
        "layers": {
            name: {"shape": list(mask.shape), "kept": kept[name], "effective": live[name]}
            for name, mask in masks.items()
        },
    }


def default_input_shape(model: nn.Module) -> tuple[int, ...]:
    """The input's shape as the first layer tells it; ValueError where it cannot."""
    layers = (m for m in model.modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear)))
    first = next(layers, model)
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    if isinstance(first, nn.Conv2d):
        return (first.in_channels, 32, 32)
    raise ValueError(f"give input_shape: it cannot be told from a {type(first).__name__}")


class _Trace(NamedTuple):
    """What following the paths of a model finds: live weights, reached classes, positions."""

    live: dict[str, Tensor]  # bool masks of the weights on a path from input to output
    reached: Tensor  # (classes,) bool
    positions: dict[str, int]  # places at which each weight is used for one input
    last: str  # the weight that was used last: the classifier's


def _trace(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    masks: Mapping[str, Tensor],
    input_shape: tuple[int, ...],
) -> _Trace:
    """Follow every path through a copy of the model whose weights are its masks (see `Paths`)."""
    with torch.inference_mode(False):
        copied = _skeleton(model, weights, masks)
        params = prunable(copied)
        names = {id(param): name for name, param in params.items()}
        factors: list[tuple[Tensor, Tensor]] = []
        Paths(copied, names, True, factors).run(input_shape)
        paths = Paths(copied, names, False, factors)
        output = paths.run(input_shape)
        last = paths.last
        if not last or output.ndim != 2 or output.shape[1] != masks[last].shape[0]:
            raise ValueError(
                f"the model gives shape {tuple(output.shape)} from its last layer {last!r}: "
                "the report needs a classifier, (batch, classes)"
            )
        output.sum().backward()
    live = {
        name: masks[name] & (param.grad > 0) if param.grad is not None else masks[name] & False
        for name, param in params.items()
    }
    positions = {name: count // 2 for name, count in paths.positions.items()}
    return _Trace(live, output[0].detach() > 0, positions, last)


def _skeleton(
    model: nn.Module, weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]
) -> nn.Module:
    """A float64 copy on the CPU, in eval mode: weights are masks, other parameters ones."""
    # What the copy is to hold in place of an original goes into deepcopy's memo, so that no weight
    # is copied.
    memo = without_hooks(model)
    for param in model.parameters():
        ones = torch.ones(param.shape, dtype=torch.float64, device="cpu")
        memo[id(param)] = nn.Parameter(ones, requires_grad=False)
    for name, weight in weights.items():
        memo[id(weight)] = nn.Parameter(masks[name].double())
    try:
        copied = copy.deepcopy(model, memo).to("cpu", torch.float64).eval()
    except Exception as error:  # whatever its modules raise
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


def without_hooks(model: nn.Module) -> dict[int, object]:
    """A memo for deepcopy that leaves hooks behind: their closures may hold a graph, which cannot
    be copied."""
    return {
        id(hooks): type(hooks)()
        for module in model.modules()
        for hooks in (getattr(module, kind) for kind in _HOOKS)
    }
