"""A smaller network that computes what the masked one does: batch norm folded, dead filters gone.

Nothing is approximated. A filter goes only where its output is zero for every input, or where
nobody reads it (`channels`). One without inputs is not zero: its shift makes it a constant, which
the zero padding of the next convolution turns into a pattern along the border. It is zero, and
goes, where that constant is at most 0 and a ReLU follows.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from .channels import Network, count_calls
from .masks import CONVOLUTIONS, check_masks, prunable, unwrapped
from .report import default_input_shape, without_hooks

_FOLDS = {
    nn.Conv1d: (nn.BatchNorm1d, fuse_conv_bn_eval),
    nn.Conv2d: (nn.BatchNorm2d, fuse_conv_bn_eval),
    nn.Conv3d: (nn.BatchNorm3d, fuse_conv_bn_eval),
    nn.Linear: (nn.BatchNorm1d, fuse_linear_bn_eval),
}


def shrink(
    model: nn.Module, masks: Mapping[str, Tensor], input_shape: Sequence[int] | None = None
) -> nn.Module:
    """The masked model in eval mode as a smaller network; the given model stays as it was.

    The masks are applied, each batch norm is folded into the convolution or linear layer before
    it, and filters go whose output is zero for every input or read by nobody. Outputs equal those
    of the masked model in eval mode up to round-off. The result is a torch.fx.GraphModule with
    the layer names of the model, on its device and in its memory format; hooks stay behind. It
    takes (batch, *input_shape); without `input_shape` the first layer tells it, as in `report`.

    Followed are plain convolutions and linear layers and what joins them in ResNets and MLPs:
    sums, ReLU and its like, dropout, pooling, means and slices over pixels, flattening, zero
    padding. Around any other operation all channels are kept: exact, but larger than need be. So
    is a layer whose parameters the forward pass also reads by itself.
    Raises ValueError for masks that do not fit, a model that does not take the input shape, and
    one that torch.fx cannot trace faithfully (a branch on values, in-place changes of what others
    read).
    """
    model = unwrapped(model)
    weights = prunable(model)
    check_masks(weights, masks)
    shape = default_input_shape(model) if input_shape is None else tuple(input_shape)
    with torch.inference_mode(False), torch.no_grad():
        traced = _traced(model, masks, shape)
        _fold(traced)
        _cut(traced)
    # Built anew, as the norms that were folded are still modules of the traced one.
    small = fx.GraphModule(traced, traced.graph, type(model).__name__)
    if any(map(_is_channels_last, weights.values())):
        small.to(memory_format=torch.channels_last)
    return small


def _is_channels_last(weight: Tensor) -> bool:
    return (
        weight.ndim == 4
        and weight.is_contiguous(memory_format=torch.channels_last)
        and not weight.is_contiguous()
    )


class _Tracer(fx.Tracer):
    """Remembers in which module a trace failed."""

    failed: str | None = None

    def call_module(self, m: nn.Module, *args: object) -> object:
        try:
            return super().call_module(m, *args)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


def _traced(
    model: nn.Module, masks: Mapping[str, Tensor], input_shape: tuple[int, ...]
) -> fx.GraphModule:
    """A copy of the model as a graph, in eval mode, its masks applied and its shapes known."""
    copied = copy.deepcopy(model, without_hooks(model)).eval()
    for name, weight in prunable(copied).items():
        weight.masked_fill_(~masks[name].to(weight.device), 0)
    tracer = _Tracer()
    try:
        graph = tracer.trace(copied)
    except Exception as error:
        where = f"module {tracer.failed!r}" if tracer.failed else type(model).__name__
        raise ValueError(f"{where} cannot be followed by torch.fx: {_line(error)}") from error
    traced = fx.GraphModule(copied, graph)
    _run(copied, traced, input_shape)
    return traced


class _Recorder(fx.Interpreter):
    """Puts the shape of each tensor into its node's meta["shape"]."""

    stale: str = ""  # which operation reads what was changed since it was made

    def run_node(self, n: fx.Node) -> object:
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
    """Run the graph on noise to learn its shapes, and check that it computes what the model does.

    It may not: a trace knows one branch only, and takes ``x += y`` for ``x = x + y``, which is
    another thing where x is a view of what is read later.
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
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _fold(traced: fx.GraphModule) -> None:
    """Fold a batch norm into its layer where nothing else reads or calls that layer."""
    modules = dict(traced.named_modules())
    calls = count_calls(traced)
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or calls[before] != 1 or len(before.users) > 1:
            continue
        layer, norm = modules[before.target], modules[node.target]
        kind, fuse = _FOLDS.get(type(layer), (None, None))
        if type(norm) is not kind or norm.running_mean is None:
            continue
        # In three dimensions the norm takes the second and a linear layer the last.
        plain = len(node.meta["shape"]) == 2 and norm.affine
        if isinstance(layer, nn.Linear) and not plain:
            continue
        modules[before.target] = fuse(layer, norm)
        traced.set_submodule(before.target, modules[before.target])
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)


def _cut(traced: fx.GraphModule) -> None:
    """Take the channels that are not needed out of the layers."""
    network = Network(traced)
    for node, layer in network.layers.items():
        module = layer.module
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
