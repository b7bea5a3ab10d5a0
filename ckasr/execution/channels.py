"""Find the channels of a traced network on which its output depends.

For each channel, two properties are computed. The first is its sign, if it is the same for every
input; a channel that is both nonnegative and nonpositive is zero. The second is whether it is
needed. A channel is not needed if every operation that reads it multiplies it by zero, or if it is
zero and only convolutions or linear layers read it. Channels that are added to each other are
either all needed or all not needed, because the terms of a sum must have the same width.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ckasr.sparsity.layers import CONVOLUTIONS

_SIGN_PRESERVING = {"relu", "relu6", "gelu", "silu", "hardswish", "tanh", "identity"} | {
    "dropout", "dropout1d", "dropout2d", "dropout3d",
}  # fmt: skip
"""Elementwise functions that do not change the sign of a value, and map zero to zero."""
_POOLS = {
    f"{adaptive}{kind}pool{d}d"
    for adaptive in ("", "adaptive")
    for kind in ("avg", "max")
    for d in (1, 2, 3)
}

Parts = list[tuple[fx.Node, Tensor]]
"""Terms of a sum. Each term is a node and an index vector, which gives for each channel of the sum
the channel of the term, or -1 for a channel of zeros."""


@dataclass
class Channels:
    """The channels of one tensor in the graph. The bool vectors have one entry per channel."""

    dim: int
    """Dimension of the channels."""
    parts: Parts
    nonnegative: Tensor
    """Whether each channel is at least 0 for every input."""
    nonpositive: Tensor
    """Whether each channel is at most 0 for every input."""
    needed: Tensor
    """Whether each channel is needed."""

    @property
    def zero(self) -> Tensor:
        """Whether each channel is 0 for every input."""
        return self.nonnegative & self.nonpositive


@dataclass
class Layer:
    """A convolution or linear layer that is called once. Nothing else reads its parameters."""

    module: nn.Module
    source: fx.Node | None
    """Node of its input; None if the channels of the input are not followed."""
    positive: Tensor
    """(outputs, inputs) bool, whether any weight is above zero or NaN."""
    negative: Tensor
    """(outputs, inputs) bool, whether any weight is below zero or NaN."""


class Network:
    """The channels of a traced network.

    A tensor without an entry in ``channels`` is not followed, so all channels of its inputs are
    needed.

    Args:
        traced: the network. Each node has the shape of its tensor in ``meta["shape"]``.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        self.modules = dict(traced.named_modules())
        self.channels: dict[fx.Node, Channels] = {}
        self.layers: dict[fx.Node, Layer] = {}
        calls = count_calls(traced)
        for node in traced.graph.nodes:
            if calls[node] == 1 and self._is_layer(node):
                self._add_layer(node)
            elif (parts := self._parts(node)) is not None:
                self._add_sum(node, parts)
            else:
                self._need_inputs(node)
        self._settle()
        # A layer must have at least one channel: keep the one that reads the fewest channels.
        while empty := [node for node in self.layers if not self.channels[node].needed.any()]:
            layer = self.layers[empty[0]]
            reads = (layer.positive | layer.negative).sum(1)
            self.channels[empty[0]].needed[reads.argmin()] = True
            self._settle()

    def padding(self, node: fx.Node) -> tuple[int, int] | None:
        """Return the numbers of needed zero channels that a padding node adds before and after.

        The result is None for any other node.
        """
        if self._kind(node) != "pad" or node not in self.channels:
            return None
        ((_, index),) = self.channels[node].parts
        first = int((index >= 0).int().argmax())
        new = self.channels[node].needed & (index < 0)
        return int(new[:first].sum()), int(new[first:].sum())

    def _settle(self) -> None:
        """Mark the channels on which needed channels depend, until no channel is added."""
        count = -1
        while count != (count := sum(int(c.needed.sum()) for c in self.channels.values())):
            for node, channels in reversed(self.channels.items()):
                for term, index in channels.parts:
                    there, joined = self.channels[term].needed, index >= 0
                    channels.needed[joined] |= there[index[joined]]
                    there[index[joined & channels.needed]] = True
                layer = self.layers.get(node)
                if layer is not None and layer.source is not None:
                    source = self.channels[layer.source]
                    read = (layer.positive | layer.negative)[channels.needed].any(0)
                    source.needed |= read & ~source.zero

    def _need_inputs(self, node: fx.Node) -> None:
        """Mark all channels of the inputs of a node as needed."""
        for source in node.all_input_nodes:
            if source in self.channels:
                self.channels[source].needed[:] = True

    def _is_layer(self, node: fx.Node) -> bool:
        """Return whether a node calls a convolution or linear layer without groups."""
        module = self.modules[str(node.target)]
        plain = isinstance(module, (*CONVOLUTIONS, nn.Linear))
        return plain and getattr(module, "groups", 1) == 1 and len(node.args) == 1

    def _add_layer(self, node: fx.Node) -> None:
        """Add a layer, and the signs of its outputs, which follow from those of its inputs."""
        module: Any = self.modules[str(node.target)]
        weight = module.weight.detach().cpu()
        weight = weight.reshape(*weight.shape[:2], -1)
        positive, negative = (~(weight <= 0)).any(2), (~(weight >= 0)).any(2)
        outputs, inputs = positive.shape
        bias = torch.zeros(outputs) if module.bias is None else module.bias.detach().cpu()
        dim = len(node.meta["shape"]) - 1 if isinstance(module, nn.Linear) else 1
        (source,) = node.all_input_nodes
        known = self.channels.get(source)
        followed = known is not None and known.dim == dim
        if known is not None and followed:
            nonnegative, nonpositive = known.nonnegative, known.nonpositive
        else:
            self._need_inputs(node)
            nonnegative = nonpositive = torch.zeros(inputs, dtype=torch.bool)
        falls = (positive & ~nonnegative) | (negative & ~nonpositive)
        rises = (positive & ~nonpositive) | (negative & ~nonnegative)
        self.layers[node] = Layer(module, source if followed else None, positive, negative)
        self.channels[node] = Channels(
            dim,
            [],
            nonnegative=(bias >= 0) & ~falls.any(1),
            nonpositive=(bias <= 0) & ~rises.any(1),
            needed=torch.zeros(outputs, dtype=torch.bool),
        )

    def _add_sum(self, node: fx.Node, parts: Parts) -> None:
        """Add a tensor whose channels are sums of channels of other tensors, with their signs."""
        nonnegative = torch.ones(len(parts[0][1]), dtype=torch.bool)
        nonpositive = nonnegative.clone()
        for source, index in parts:
            nonnegative &= self.channels[source].nonnegative[index] | (index < 0)
            nonpositive &= self.channels[source].nonpositive[index] | (index < 0)
        if self._kind(node) in ("relu", "relu6"):
            nonnegative[:] = True
        dim = self.channels[parts[0][0]].dim
        needed = torch.zeros(len(nonnegative), dtype=torch.bool)
        self.channels[node] = Channels(dim, parts, nonnegative, nonpositive, needed)

    def _parts(self, node: fx.Node) -> Parts | None:
        """Return the terms of which a tensor is the sum; None if the operation is not followed."""
        sources = node.all_input_nodes
        if not node.args or not sources or any(s not in self.channels for s in sources):
            return None
        kind, source, shape = self._kind(node), sources[0], node.meta["shape"]
        if shape is None or node.args[0] is not source:
            return None
        dim, before = self.channels[source].dim, source.meta["shape"]
        same = torch.arange(before[dim])
        if kind in ("add", "iadd"):
            alike = all(s.meta["shape"] == shape and self.channels[s].dim == dim for s in sources)
            whole = len(node.args) == 2 and not node.kwargs
            if not (alike and whole and isinstance(node.args[1], fx.Node)):
                return None
            return [(s, same) for s in sources]
        if len(sources) > 1:
            return None
        if kind in _SIGN_PRESERVING:
            return [(source, same)]
        if dim != 1:
            return None
        if kind in _POOLS or (kind == "mean" and _is_spatial(node, len(before))):
            return [(source, same)]
        if kind == "getitem" and _keeps_channels(node):
            return [(source, same)]
        if kind == "flatten" and self._is_full_flatten(node):
            return [(source, same.repeat_interleave(math.prod(before[2:])))]
        if kind == "pad" and (amounts := _zero_channels(node, len(before))):
            front, behind = (torch.full((amount,), -1) for amount in amounts)
            return [(source, torch.cat([front, same, behind]))]
        return None

    def _kind(self, node: fx.Node) -> str:
        """Return one name for a module, function or method of the same operation; "" if unknown."""
        name, home = str(node.target), "torch"
        if node.op == "call_module":
            kind = type(self.modules[name])
            name, home = kind.__name__, kind.__module__
        elif callable(node.target):
            name, home = node.target.__name__, node.target.__module__ or "torch"
        elif node.op != "call_method":
            return ""
        known = home.split(".")[0] in ("torch", "_operator")
        return name.lower().replace("_", "") if known else ""

    def _is_full_flatten(self, node: fx.Node) -> bool:
        """Return whether the node flattens all dimensions after the batch dimension."""
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            return (module.start_dim, module.end_dim) == (1, -1)
        return (*node.args[1:], *node.kwargs.items()) in ((1,), (1, -1), (("start_dim", 1),))


def count_calls(traced: fx.GraphModule) -> dict[fx.Node, int]:
    """Return for each node how often the graph uses the module that the node calls, or 0.

    A use is a call of the module, a read of one of its parameters, or a call of another module
    that contains it. A module with more than one use must not be changed.
    """
    modules = dict(traced.named_modules())
    nodes = list(traced.graph.nodes)
    calls = Counter(str(n.target) for n in nodes if n.op == "call_module")
    inside = {
        part for name in calls for part in modules[name].modules() if part is not modules[name]
    }
    contained = Counter(name for name in calls if modules[name] in inside)
    reads = Counter(str(n.target).rpartition(".")[0] for n in nodes if n.op == "get_attr")
    uses = calls + contained + reads
    return {n: uses[str(n.target)] if n.op == "call_module" else 0 for n in nodes}


def _is_spatial(node: fx.Node, ndim: int) -> bool:
    """Return whether a mean is taken over dimensions after the channel dimension."""
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    return bool(dims) and all(d % ndim >= 2 for d in dims)


def _keeps_channels(node: fx.Node) -> bool:
    """Return whether an index consists of slices that keep all samples and all channels."""
    index = node.args[1]
    if not isinstance(index, tuple) or not all(isinstance(i, slice) for i in index):
        return False
    return all(i == slice(None) for i in index[:2])


def _zero_channels(node: fx.Node, ndim: int) -> tuple[int, int] | None:
    """Return the numbers of zero channels that a padding adds before and after the channels.

    The result is None for a padding with other values or with negative amounts.
    """
    arguments: tuple[Any, ...] = node.args[1:] or (None,)
    amounts, *rest = arguments
    settings = dict(zip(("mode", "value"), rest, strict=False)) | node.kwargs
    plain = settings.pop("mode", "constant") == "constant" and not settings.pop("value", None)
    if not plain or settings or amounts is None or min(amounts) < 0:
        return None
    amounts = [*amounts, *[0] * (2 * ndim - len(amounts))]
    return amounts[2 * (ndim - 2)], amounts[2 * (ndim - 2) + 1]
