"""What a mask leaves of a network: weights on a live path, dead filters and classes, cost."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .masks import CONVOLUTIONS, check_masks, prunable, unwrapped

_NORMS = (
    nn.modules.batchnorm._NormBase,  # batch norm and instance norm
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
_ACTIVATIONS = tuple(
    getattr(nn.modules.activation, name)
    for name in nn.modules.activation.__all__
    if name not in ("MultiheadAttention", "GLU")
)
_AVERAGES = {
    nn.MaxPool1d: nn.AvgPool1d,
    nn.MaxPool2d: nn.AvgPool2d,
    nn.MaxPool3d: nn.AvgPool3d,
    nn.AdaptiveMaxPool1d: nn.AdaptiveAvgPool1d,
    nn.AdaptiveMaxPool2d: nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool3d: nn.AdaptiveAvgPool3d,
}
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

    Paths are followed through the model's own forward pass, so skips, pooling and padding need
    no description (see `_trace`). Raises ValueError for masks that do not fit, for a model that
    gives no (batch, classes), and for attention, whose paths this cannot follow.
    """
    model = unwrapped(model)
    weights = prunable(model)
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


class _Trace:
    """What one pass over a model finds: live weights, reached classes, output positions."""

    live: dict[str, Tensor]  # bool masks of the weights on a path from input to output
    reached: Tensor  # (classes,) bool
    positions: dict[str, int]  # places at which each weight is used for one input
    last: str  # the layer that ran last: the classifier

    def __init__(self, names: Sequence[str]) -> None:
        self.positions = dict.fromkeys(names, 0)
        self.last = ""


def _trace(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    masks: Mapping[str, Tensor],
    input_shape: tuple[int, ...],
) -> _Trace:
    """Follow every path through a copy of the model whose weights are its masks.

    Two inputs go in, black (zeros) and white (ones). A unit is reached when it tells them apart,
    so whatever is constant (shifts, position embeddings, sigmoid(0)) reaches nothing. Where they
    enter a prunable layer, values and gradients are clipped to {0, 1}: all that is asked is
    whether there is a path, and the number of paths would overflow. As nothing is negative,
    nothing cancels, and the gradient of a mask's entry is positive exactly where a path uses it.
    """
    copied = _skeleton(model, weights, masks)
    trace = _Trace(list(weights))
    params = prunable(copied)
    names = {id(param): name for name, param in params.items()}

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_Clip.apply(args[0]), *args[1:])

    def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        name = names[id(module.weight)]
        trace.positions[name] += output[0].numel() // module.weight.shape[0]
        trace.last = name

    for module in copied.modules():
        if id(getattr(module, "weight", None)) in names:
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)

    white = torch.ones(input_shape, dtype=torch.float64, device="cpu")
    with torch.enable_grad():
        output = copied(torch.stack([torch.zeros_like(white), white]))
        if output.ndim != 2 or output.shape[1] != masks[trace.last].shape[0]:
            raise ValueError(
                f"the model gives shape {tuple(output.shape)} from its last layer {trace.last!r}: "
                "the report needs a classifier, (batch, classes)"
            )
        output[1].sum().backward()
    trace.reached = output[1].detach() > output[0].detach()
    trace.live = {
        name: masks[name] & (param.grad > 0) if param.grad is not None else masks[name] & False
        for name, param in params.items()
    }
    return trace


def _skeleton(
    model: nn.Module, weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]
) -> nn.Module:
    """A float64 copy on the CPU, in eval mode: weights are masks, gains 1, biases 0."""
    # What the copy is to hold in place of an original goes into deepcopy's memo, so that no weight
    # is copied.
    memo = without_hooks(model)
    for path, param in model.named_parameters():
        fill = torch.zeros if path.split(".")[-1] == "bias" else torch.ones
        memo[id(param)] = nn.Parameter(fill(param.shape, dtype=torch.float64), requires_grad=False)
    for name, weight in weights.items():
        memo[id(weight)] = nn.Parameter(masks[name].double())
    copied = copy.deepcopy(model, memo).to("cpu", torch.float64).eval()
    for path, module in list(copied.named_modules()):
        if isinstance(module, nn.MultiheadAttention):
            raise ValueError(f"layer {path!r} is attention: its paths cannot be followed")
        if isinstance(module, _NORMS + _ACTIVATIONS) and path:
            copied.set_submodule(path, nn.Identity())
        elif isinstance(module, tuple(_AVERAGES)) and path:
            # A maximum passes its gradient to one of equal inputs, an average to all.
            copied.set_submodule(path, _average(path, module))
    return copied


def without_hooks(model: nn.Module) -> dict[int, object]:
    """A memo for deepcopy that leaves hooks behind: their closures may hold a graph, which cannot
    be copied."""
    return {
        id(hooks): type(hooks)()
        for module in model.modules()
        for hooks in (getattr(module, kind) for kind in _HOOKS)
    }


def _average(path: str, pool: nn.Module) -> nn.Module:
    average = next(new for old, new in _AVERAGES.items() if isinstance(pool, old))
    if hasattr(pool, "output_size"):
        return average(pool.output_size)
    if pool.dilation not in (1, (1,), (1, 1), (1, 1, 1)):
        raise ValueError(f"layer {path!r} is a dilated pooling: its paths cannot be followed")
    return average(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)


class _Clip(torch.autograd.Function):
    """(black, white) values to (0, is white brighter); gradients likewise."""

    @staticmethod
    def forward(ctx: object, pair: Tensor) -> Tensor:
        reached = (pair[1] > pair[0]).to(pair.dtype)
        return torch.stack([torch.zeros_like(reached), reached])

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return (grad > 0).to(grad.dtype)
