"""Inference with a smaller network: batch norms are folded, and dead filters are removed.

The outputs are not approximated. A filter is removed only if its output is zero for every input, or
if nothing reads it (see `channels`). A filter without kept weights is not always zero: its output
is a constant, because its batch norm has a shift. The next convolution pads this constant with
zeros, so that its effect is different at the border, and the constant cannot be folded into a bias.
Such a filter is removed if the constant is at most 0 and a ReLU follows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ckasr.sparsity import prunable
from ckasr.sparsity.layers import CONVOLUTIONS, default_input_shape, unwrapped
from ckasr.sparsity.masks import check_masks

from .channels import Network, count_calls
from .masked import masked_copy

_FUSIONS: dict[type[nn.Module], tuple[type[nn.Module], Callable[..., nn.Module]]] = {
    nn.Conv1d: (nn.BatchNorm1d, fuse_conv_bn_eval),
    nn.Conv2d: (nn.BatchNorm2d, fuse_conv_bn_eval),
    nn.Conv3d: (nn.BatchNorm3d, fuse_conv_bn_eval),
    nn.Linear: (nn.BatchNorm1d, fuse_linear_bn_eval),
}
"""Batch norm that can be folded into each kind of layer, and the function that folds it."""


def shrink(
    model: nn.Module, masks: Mapping[str, Tensor], input_shape: Sequence[int] | None = None
) -> nn.Module:
    """Return a smaller network with the same outputs as the masked model in eval mode.

    The masks are applied, each batch norm is folded into the convolution or linear layer before
    it, and filters are removed whose output is zero for every input or is not read. The outputs
    equal those of the masked model in eval mode up to rounding errors.

    Channels are removed from plain convolutions and linear layers that are connected by the
    operations of ResNets and MLPs: sums, activations like ReLU, dropout, pooling, means and slices
    over pixels, flattening and zero padding. All channels that any other operation reads or writes
    are kept, and so are those of a layer whose parameters the forward pass also reads directly. The
    outputs are then still exact, but the network may be larger than necessary.

    Args:
        model: model from (batch, *input_shape) to a tensor. It is not changed.
        masks: bool mask of every weight of `ckasr.sparsity.prunable`, by name.
        input_shape: shape of one input, without the batch dimension. By default, the first layer
            determines it: the inputs of a linear layer, or 32 x 32 pixels for a 2-d convolution.

    Returns:
        A torch.fx.GraphModule with the layer names of the model, on the same device and in the
        same memory format, without hooks.

    Raises:
        ValueError: if a mask is missing, unknown, of another shape than its weight or not bool, if
            the model does not accept the input shape, and if torch.fx cannot trace the model
            correctly (a branch that depends on values, or a tensor that is changed in place before
            another operation reads it).
    """
    model = unwrapped(model)
    weights = prunable(model)
    check_masks(weights, masks)
    shape = default_input_shape(model) if input_shape is None else tuple(input_shape)
    with torch.inference_mode(False), torch.no_grad():
        traced = _traced(masked_copy(model, masks), shape)
        _fold(traced)
        _remove_channels(traced)
    # A new module, because the traced one still contains the folded batch norms.
    small = fx.GraphModule(traced, traced.graph, type(model).__name__)
    if any(map(_is_channels_last, weights.values())):
        small.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return small.eval()


def _is_channels_last(weight: Tensor) -> bool:
    return (
        weight.ndim == 4
        and weight.is_contiguous(memory_format=torch.channels_last)
        and not weight.is_contiguous()
    )


class _Tracer(fx.Tracer):
    """Tracer that stores the name of the module in which tracing failed."""

    failed: str | None = None

    def call_module(self, m: nn.Module, *args: Any) -> Any:
        try:
            return super().call_module(m, *args)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


def _traced(model: nn.Module, input_shape: tuple[int, ...]) -> fx.GraphModule:
    """Return the graph of a model, in which each node has the shape of its tensor."""
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:
        where = f"module {tracer.failed!r}" if tracer.failed else type(model).__name__
        raise ValueError(f"{where} cannot be followed by torch.fx: {_line(error)}") from error
    traced = fx.GraphModule(model, graph)
    _run(model, traced, input_shape)
    return traced


class _Recorder(fx.Interpreter):
    """Run a graph, and store the shape of each tensor in its node's ``meta["shape"]``."""

    stale: str = ""
    """The first operation that reads a tensor which was changed in place, or an empty string."""

    def run_node(self, n: fx.Node) -> Any:
        for source in n.all_input_nodes:
            value = self.env[source]
            if isinstance(value, Tensor) and value._version != source.meta["version"]:
                self.stale = self.stale or f"{n.name!r} reads {source.name!r}"
        value = super().run_node(n)
        tensor = isinstance(value, Tensor)
        n.meta["shape"] = tuple(value.shape) if tensor else None
        n.meta["version"] = value._version if tensor else None
        return value


def _run(model: nn.Module, traced: fx.GraphModule, input_shape: tuple[int, ...]) -> None:
    """Run the graph on noise to find its shapes, and check that its output is that of the model.

    The output can differ, because a graph contains only one branch of a condition. It also computes
    ``x = x + y`` instead of ``x += y``, which differs if x is a view and its base is read later.
    """
    like = next(traced.parameters(), torch.zeros(()))
    noise = torch.randn((1, *input_shape), generator=torch.Generator().manual_seed(0))
    noise = noise.to(like)
    recorder = _Recorder(traced)
    try:
        want, got = model(noise), recorder.run(noise)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"the model does not take one tensor of shape {tuple(noise.shape)}: give its "
            f"input_shape ({_line(error)})"
        ) from error
    if recorder.stale:
        raise ValueError(
            f"{type(model).__name__} cannot be followed: {recorder.stale}, which another operation "
            "has changed in place meanwhile; write that one out of place"
        )
    try:
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-4, equal_nan=True)
    except AssertionError as error:
        raise ValueError(
            f"{type(model).__name__} cannot be followed: the graph that torch.fx traces computes "
            "something else (in-place operations on views?)"
        ) from error


def _line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _fold(traced: fx.GraphModule) -> None:
    """Fold each batch norm into its layer, if nothing else reads or calls that layer."""
    modules = dict(traced.named_modules())
    calls = count_calls(traced)
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or calls[before] != 1 or len(before.users) > 1:
            continue
        name = str(before.target)
        layer, norm = modules[name], modules[node.target]
        norm_type, fuse = _FUSIONS.get(type(layer), (None, None))
        if fuse is None or type(norm) is not norm_type or norm.running_mean is None:
            continue
        # For a 3-d tensor, the channels of a batch norm are in dimension 1, and the features of a
        # linear layer are in dimension 2.
        plain = len(node.meta["shape"]) == 2 and norm.affine
        if isinstance(layer, nn.Linear) and not plain:
            continue
        modules[name] = fuse(layer, norm)
        traced.set_submodule(name, modules[name])
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)


def _remove_channels(traced: fx.GraphModule) -> None:
    """Remove the channels that are not needed from all layers and paddings."""
    network = Network(traced)
    for node, layer in network.layers.items():
        module: Any = layer.module
        rows = network.channels[node].needed.to(module.weight.device)
        weight = module.weight[rows]
        if layer.source is not None:
            weight = weight[:, network.channels[layer.source].needed.to(rows.device)]
        module.weight = nn.Parameter(weight, module.weight.requires_grad)
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias[rows], module.bias.requires_grad)
        if isinstance(module, CONVOLUTIONS):
            module.out_channels, module.in_channels = weight.shape[:2]
        else:
            module.out_features, module.in_features = weight.shape
    for node in traced.graph.nodes:
        if (padding := network.padding(node)) is not None:
            amounts = list(node.args[1])
            at = 2 * (len(node.meta["shape"]) - 2)
            if len(amounts) > at:
                amounts[at : at + 2] = padding
                node.update_arg(1, amounts)
