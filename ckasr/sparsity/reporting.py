"""Report on a masked network: its sparsity, its dead parts and its cost."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .layers import default_input_shape, prunable, unwrapped
from .masks import check_masks
from .paths import live_weights


def report(
    model: nn.Module, masks: Mapping[str, Tensor], input_shape: Sequence[int] | None = None
) -> dict[str, object]:
    """Return the sparsity, the dead parts and the cost of a masked classifier.

    A weight is *effective* if it is kept and is on a path of kept weights from an input to an
    output. A *filter* is an output unit of any layer except the classifier; it is *dead* if no such
    path goes through it. A class is *empty* if its row in the classifier has no kept weight, and
    *dead* if no path leads to it.

    Paths are followed through the forward pass of the model, operation by operation, so that skip
    connections, pooling, attention and padding need no description (see `ckasr.sparsity.paths`).
    A path goes through every elementwise function, for any slope of the function; through each
    factor of a product, unless the other factor is zero; and from each value to all values that are
    normalised together with it (layer norm, group norm, softmax). A softmax at the end of the model
    is ignored. A constant, such as a bias, is not the start of a path.

    Args:
        model: model from (batch, *input_shape) to (batch, classes). It is not changed.
        masks: bool mask of every prunable weight, by name.
        input_shape: shape of one input, without the batch dimension. By default, the first layer
            determines it: the inputs of a linear layer, or 32 x 32 pixels for a 2-d convolution.

    Returns:
        A dict of JSON values:

        - ``weights``, ``kept``, ``effective_kept``: numbers of weights;
        - ``nominal``, ``effective``: sparsity, 1 - kept / weights and 1 - effective_kept / weights;
        - ``dead_layers``: names of the weight tensors without an effective weight;
        - ``filters``, ``dead_filters``, ``classes``, ``empty_classes``, ``dead_classes``: numbers;
        - ``macs_dense``, ``macs``: multiply-accumulate operations of all layers for one input, with
          all weights and with the kept weights;
        - ``layers``: ``shape``, ``kept`` and ``effective`` of each weight tensor.

    Raises:
        ValueError: for an operation whose paths cannot be followed (a branch or an index that
            depends on the input, a custom autograd.Function, nn.MultiheadAttention, and any
            operation without a rule; the message contains the name of the layer), for a mask that
            is missing, unknown, of another shape than its weight or not bool, for a model without a
            prunable weight, and for an output that is not (batch, classes).
    """
    model = unwrapped(model)
    weights = prunable(model)
    if not weights:
        raise ValueError(f"{type(model).__name__} has no conv or linear weight to report on")
    check_masks(weights, masks)
    masks = {name: masks[name].detach().cpu() for name in weights}
    shape = default_input_shape(model) if input_shape is None else tuple(input_shape)
    found = live_weights(model, masks, shape)

    total = sum(mask.numel() for mask in masks.values())
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    live = {name: int(alive.sum()) for name, alive in found.weights.items()}
    hidden = [
        alive.flatten(1).any(1) for name, alive in found.weights.items() if name != found.classifier
    ]
    rows = masks[found.classifier].flatten(1).any(1)
    return {
        "weights": total,
        "kept": sum(kept.values()),
        "nominal": 1 - sum(kept.values()) / total,
        "effective_kept": sum(live.values()),
        "effective": 1 - sum(live.values()) / total,
        "dead_layers": [name for name, count in live.items() if count == 0],
        "filters": sum(len(units) for units in hidden),
        "dead_filters": sum(_count_false(units) for units in hidden),
        "classes": len(found.classes),
        "empty_classes": _count_false(rows),
        "dead_classes": _count_false(found.classes),
        "macs_dense": sum(mask.numel() * found.positions[name] for name, mask in masks.items()),
        "macs": sum(kept[name] * found.positions[name] for name in masks),
        "layers": {
            name: {"shape": list(mask.shape), "kept": kept[name], "effective": live[name]}
            for name, mask in masks.items()
        },
    }


def _count_false(values: Tensor) -> int:
    return int(torch.sum(~values))
