"""Find units, which are the parts of a forward pass that the kernels can compute, with torch.fx."""

import operator
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .unit import Convolution, Unit

LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU, nn.Identity)
RELUS = (torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu_)
SUMS = (operator.add, operator.iadd, torch.add)


@dataclass
class Found:
    """A module whose forward was traced, with the units in its graph."""

    module: nn.Module
    graph: fx.Graph
    units: dict[fx.Node, tuple[Unit, list[fx.Node]]]
    """Each unit and the nodes that are its inputs, by the last node of the unit."""
    inside: set[fx.Node]
    """Nodes that are computed within units."""
    pools: dict[fx.Node, bool]
    """Nodes of global average poolings, and whether each keeps the averaged dimensions."""


def inlined(module: nn.Module) -> bool:
    """Return whether a module is traced as part of its parent: a Sequential of plain layers."""
    plain = type(module) is nn.Sequential and all(type(child) in LAYERS for child in module)
    return plain and not (module._forward_hooks or module._forward_pre_hooks)


class _Tracer(fx.Tracer):
    """Tracer that records the call of a child as one node, unless the child is `inlined`."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not inlined(m)


def follow(module: nn.Module, prefix: str, masks: Collection[str]) -> Found | None:
    """Return the graph of a module's forward and the units in it; None if there is no unit.

    The result is also None if the forward depends on the values of tensors, uses random numbers, or
    reads parameters directly.

    Args:
        module: the module.
        prefix: name of the module in the model, with a dot at the end.
        masks: names of the masked weights.
    """
    states = torch.get_rng_state(), random.getstate()
    try:
        graph = _Tracer().trace(module)
    except Exception:  # a user's forward can raise any error when it is called with proxies
        return None
    finally:
        same = torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
        torch.set_rng_state(states[0])
        random.setstate(states[1])
    if not same or any(node.op == "get_attr" for node in graph.nodes):
        return None
    matcher = _Matcher(module, graph, prefix, masks)
    units = matcher.units()
    return Found(module, graph, units, matcher.absorbed, matcher.pools()) if units else None


@dataclass
class _Activation:
    """Nodes of a graph that compute a sum of one or two terms, optionally with a ReLU."""

    last: fx.Node
    relu: bool
    terms: list[fx.Node]
    nodes: list[fx.Node]


class _Matcher:
    """Finder of the units and global average poolings in the graph of a module's forward.

    Args:
        module: the module.
        graph: graph of its forward.
        prefix: name of the module in the model, with a dot at the end.
        masks: names of the masked weights.

    Attributes:
        absorbed: nodes that are part of a unit which ``units`` has found.
    """

    def __init__(
        self, module: nn.Module, graph: fx.Graph, prefix: str, masks: Collection[str]
    ) -> None:
        self.modules: dict[str, Any] = dict(module.named_modules())
        self.graph, self.prefix, self.masks = graph, prefix, masks
        self.absorbed: set[fx.Node] = set()

    def units(self) -> dict[fx.Node, tuple[Unit, list[fx.Node]]]:
        """Return each unit and its input nodes, by the last node of the unit."""
        found = {}
        # In reverse order, so that a unit with a ReLU is found before the sum inside it.
        for node in reversed(list(self.graph.nodes)):
            if node not in self.absorbed and (activation := self.activation(node)):
                found[node] = self.unit(activation)
        return found

    def pools(self) -> dict[fx.Node, bool]:
        """Return the nodes of global average poolings, and whether each keeps its dimensions."""
        kinds = {node: self._pool(node) for node in self.graph.nodes}
        return {node: keep for node, keep in kinds.items() if keep is not None}

    def _pool(self, node: fx.Node) -> bool | None:
        """Return whether a global average pooling keeps its dimensions; None for other nodes."""
        if self._is_layer(node, nn.AdaptiveAvgPool2d):
            return True if _one(self.modules[str(node.target)].output_size) else None
        if not node.args or node.all_input_nodes != [node.args[0]]:
            return None
        values = dict(zip(("", "dim", "keepdim"), node.args, strict=False)) | node.kwargs
        if node.target == nn.functional.adaptive_avg_pool2d and len(node.args) == 2:
            return True if _one(node.args[1]) else None
        if node.target not in ("mean", torch.mean) or values.keys() - {"", "dim", "keepdim"}:
            return None
        keep = values.get("keepdim", False)
        global_mean = values.get("dim") in ((2, 3), [2, 3], (-2, -1), [-2, -1])
        return keep if global_mean and isinstance(keep, bool) else None

    def unit(self, activation: _Activation) -> tuple[Unit, list[fx.Node]]:
        """Return the unit that ends with an activation, and its input nodes."""
        convolutions: list[Convolution] = []
        inputs: list[fx.Node] = []
        modules: list[nn.Module] = []

        def input_number(node: fx.Node) -> int:
            """Return the number of an input of the unit, as in ``Unit.terms``."""
            while self._is_layer(node, nn.Identity):
                node = node.all_input_nodes[0]
            if node not in inputs:
                inputs.append(node)
            return -1 - inputs.index(node)

        def take(activation: _Activation) -> list[int]:
            """Add an activation to the unit, and return the numbers of its terms."""
            self.absorbed.update(activation.nodes)
            for node in activation.nodes:
                if node.op == "call_module":
                    modules.append(self.modules[str(node.target)])
            return [add(t) if self._term(t) else input_number(t) for t in activation.terms]

        def add(term: fx.Node) -> int:
            """Add a convolution and all that it reads within the unit, and return its number."""
            conv, *norms = self._term(term)
            before = conv.all_input_nodes[0]
            virtual = self._virtual(before, conv)
            source = take(virtual)[0] if virtual else input_number(before)
            if virtual:
                convolutions[source].relu = virtual.relu
            layer = self.modules[str(conv.target)]
            name = f"{self.prefix}{conv.target}.weight"
            norm = self.modules[str(norms[0].target)] if norms else None
            convolutions.append(Convolution(name, layer, norm, source))
            return len(convolutions) - 1

        terms = take(activation)
        name = f"{self.prefix}{activation.last.name}"
        unit = Unit(name, convolutions, terms, activation.relu, len(inputs), modules)
        return unit, inputs

    def activation(self, node: fx.Node) -> _Activation | None:
        """Return the activation that ends at a node; None if no convolution is right before it."""
        nodes, inner = [node], node
        relu = self._is_relu(node)
        if relu:
            if len(node.all_input_nodes) != 1:
                return None
            inner = node.all_input_nodes[0]
            if len(inner.users) > 1:
                return None
            nodes.append(inner)
        if self._is_sum(inner):
            terms = inner.all_input_nodes
            if len(terms) == 1:  # x + x
                return None
            layers = [t for t in terms if self._term(t) and len(t.users) == 1]
            # The terms that this unit computes come first; it reads the others as inputs.
            terms = layers + [t for t in terms if t not in layers]
            if not layers or any(self._term(t) for t in terms if t not in layers):
                return None
            if self._kinds(layers) == {nn.Linear}:
                return None
        elif self._term(inner):
            terms = layers = [inner]
        else:
            return None
        for term in layers:
            nodes += self._term(term)
        if any(n in self.absorbed for n in nodes):
            return None
        return _Activation(node, relu, terms, list(dict.fromkeys(nodes)))

    def _kinds(self, terms: list[fx.Node]) -> set[type]:
        """Return the types of the layers that compute these terms."""
        return {type(self.modules[str(self._term(t)[0].target)]) for t in terms}

    def _virtual(self, before: fx.Node, conv: fx.Node) -> _Activation | None:
        """Return the activation that a convolution reads if nothing else reads it, else None."""
        if before in self.absorbed or len(before.users) > 1 or self._stride(conv) > 1:
            return None
        activation = self.activation(before)
        if activation is None or len(activation.terms) > 1:
            return None
        inner = self._term(activation.terms[0])[0]
        same = type(self.modules[str(inner.target)]) is type(self.modules[str(conv.target)])
        return activation if same else None

    def _stride(self, conv: fx.Node) -> int:
        layer = self.modules[str(conv.target)]
        return layer.stride[0] if isinstance(layer, nn.Conv2d) else 1

    def _term(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """Return the nodes of a convolution and its batch norm, if any; () for other nodes."""
        if self._is_layer(node, nn.BatchNorm2d) and len(node.all_input_nodes) == 1:
            norm, before = self.modules[str(node.target)], node.all_input_nodes[0]
            supported = norm.track_running_stats and norm.momentum is not None
            if supported and self._followed(before, nn.Conv2d) and len(before.users) == 1:
                return before, node
            return ()
        return (node,) if self._followed(node, nn.Conv2d, nn.Linear) else ()

    def _followed(self, node: fx.Node, *kinds: type) -> bool:
        """Return whether a node calls a masked layer of these types that the kernels support."""
        if not self._is_layer(node, *kinds) or len(node.args) != 1:
            return False
        name, layer = str(node.target), self.modules[str(node.target)]
        if f"{self.prefix}{name}.weight" not in self.masks or len(node.all_input_nodes) != 1:
            return False
        if isinstance(layer, nn.Linear):
            return True
        probe = Convolution(name, layer, None, -1)
        square = layer.stride[0] == layer.stride[1] and layer.padding_mode == "zeros"
        return square and probe.keeps_size

    def _is_layer(self, node: fx.Node, *kinds: type) -> bool:
        """Return whether a node calls a module of exactly one of these types."""
        if node.op != "call_module" or node.kwargs:
            return False
        return type(self.modules.get(str(node.target))) in kinds

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_function" and node.target in RELUS:
            return True
        if node.op == "call_method" and node.target in ("relu", "relu_"):
            return True
        return self._is_layer(node, nn.ReLU)

    def _is_sum(self, node: fx.Node) -> bool:
        functions = node.op == "call_function" and node.target in SUMS
        methods = node.op == "call_method" and node.target in ("add", "add_")
        nodes = len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args)
        return (functions or methods) and nodes and not node.kwargs


def _one(size: Any) -> bool:
    """Return whether the output size of a pooling is one pixel."""
    return size in (1, (1, 1), [1, 1])


def rewritten(
    found: Found,
    bind: Callable[[Unit], Callable[..., Tensor]],
    bind_pool: Callable[[Callable[..., Tensor], bool], Callable[..., Tensor]],
) -> Callable[..., Any]:
    """Return a forward of the module in which units and poolings replace their nodes.

    Args:
        found: the traced module.
        bind: function that returns the callable for a unit.
        bind_pool: function that returns the callable for a global average pooling, from the pooling
            of the model and whether it keeps the averaged dimensions.
    """
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    targets: dict[str, Any] = {}
    for node in found.graph.nodes:
        if node in found.units:
            unit, inputs = found.units[node]
            name = f"unit_{len(targets)}"
            targets[name] = bind(unit)
            values[node] = graph.call_module(name, tuple(values[i] for i in inputs))
        elif node in found.pools:
            name = f"pool_{len(targets)}"
            targets[name] = bind_pool(_call(found.module, node), found.pools[node])
            values[node] = graph.call_module(name, (values[node.all_input_nodes[0]],))
        elif node not in found.inside:
            values[node] = graph.node_copy(node, lambda n: values[n])
            if node.op == "call_module":
                targets[str(node.target)] = found.module.get_submodule(str(node.target))
    return fx.GraphModule(targets, graph).forward


def _call(module: nn.Module, node: fx.Node) -> Callable[[Tensor], Tensor]:
    """Return the operation of a node as a function of its first argument."""
    rest, kwargs = node.args[1:], node.kwargs
    if node.op == "call_module":
        return module.get_submodule(str(node.target))
    if node.op == "call_method":
        return lambda x: getattr(x, str(node.target))(*rest, **kwargs)
    function: Any = node.target
    return lambda x: function(x, *rest, **kwargs)
