"""The backward of a unit, computed by the kernels."""

import itertools

import numpy as np
import torch
from torch import Tensor

from . import kernels
from .arguments import Group, floor, no_convolution
from .forward import Call, Frame, call
from .workspace import Lent, Workspace

_UNKNOWN = np.zeros(0)
_PASSES = 8
"""Number of passes that a frame keeps. A training step with a term uses another pass than one
without, and gradients can alternate between two memories."""


class Pass:
    """The calls of kernels of a backward, for one memory of the incoming and outgoing gradients.

    Args:
        frame: memory of the forward.
        known: properties of the gradient of the output if a unit has computed it, else None.
        outs: memory for the gradient of each input; None if it is not wanted.

    Attributes:
        back: lists of this backward.
        lent: properties of the gradient of each input; None if it is not wanted.
        calls: kernels of the backward.
        copy: tensor to which the gradient of the output is copied if no unit has computed it.
        kept: gradients of the kept weights, (n,) float64, by convolution.
        scales: gradients of scale and shift of the norms, by convolution.
    """

    def __init__(self, frame: Frame, known: Lent | None, outs: list[np.ndarray | None]) -> None:
        arguments, plan = frame.arguments, frame.arguments.plan
        unit, kind = plan.unit, plan.grid.numpy
        self.known, self.out = known, frame.out  # The frame finds a pass by the ids of these.
        self.back, self._weights = arguments.back(None if known is None else known.alive)
        self.calls: list[Call] = []
        self.copy: Tensor | None = None
        self._behind: dict[int, Group] = {}
        counts = np.cumsum([0, *(len(lists.where) for lists in self.back.lists)])
        self.kept = np.zeros(counts[-1])
        self._dw = [self.kept[a:b] for a, b in itertools.pairwise(counts)]
        self.scales = np.zeros(2 * sum(c.channels for c in unit.convolutions), kind)
        self._found = [
            (*self.scales[part].reshape(2, -1), np.empty((len(lists.chosen), 3), kind))
            for part, lists in zip(arguments.layout.scales, self.back.lists, strict=True)
        ]
        self.where = np.concatenate(
            [
                lists.where + start
                for lists, start in zip(self.back.lists, arguments.layout.weights, strict=True)
            ]
        )
        """Position of each kept weight's gradient in the memory of all gradients."""

        if known is None:
            self._g = self._incoming(frame)
        else:
            self._g = known.memory
        for k in unit.terms:
            if k >= 0:
                self._through_norm(frame, k)
        readers: list[list[int]] = [[] for _ in plan.sources]
        for k in reversed(range(len(unit.convolutions))):
            j = unit.convolutions[k].source
            if j < 0:
                readers[-1 - j].insert(0, k)
            else:
                self._to_virtual(frame, k, j)
        self.lent: list[Lent | None] = []
        for i, out in enumerate(outs):
            if out is not None:
                self.lent.append(self._to_input(frame, i, readers[i], out))
                continue
            self.lent.append(None)
            for k in readers[i]:
                self._to_weight(frame, i, k)

    def _incoming(self, frame: Frame) -> np.ndarray:
        """Return the memory of the gradient before the last ReLU."""
        plan = frame.arguments.plan
        memory = frame.memory("gradient", 0, plan.out.size, plan.grid.numpy)
        self.copy = torch.from_numpy(plan.out.view(memory, plan.unit.linear))
        if plan.unit.relu:
            planes = memory, plan.out_base, plan.out.step
            zero = floor(True, plan.grid.dtype)
            self.calls.append(call(kernels.gate, planes, frame.out, zero, plan.tiles))
        return memory

    def _through_norm(self, frame: Frame, k: int) -> None:
        """Compute the backward of the norm of convolution k, which is a term of the sum."""
        arguments, plan, g = frame.arguments, frame.arguments.plan, self._g
        lists, c, step = self.back.lists[k], plan.unit.convolutions[k], plan.lists[k].y.step
        totals = None if self.known is None else self.known.totals
        if c.norm is None and c.layer.bias is None:
            self._found[k][2][:] = 1, 0, 0
        else:
            self.calls.append(call(
                kernels.norm_backward, (g, self.back.g, plan.out.step),
                (frame.y[k], lists.y, step), totals is not None,
                _UNKNOWN if totals is None else totals, arguments.norms[k], frame.stats[k],
                lists.channels, self._found[k], plan.tiles,
            ))  # fmt: skip
        coef = self._found[k][2]
        self._behind[k] = g, self.back.g, plan.out.step, frame.y[k], lists.y, step, coef

    def _one_tile(self, frame: Frame, k: int, name: str = "gradient") -> Group:
        """Return the argument group ``one_tile`` of convolution k, in temporary memory."""
        layout = frame.arguments.plan.lists[k].d
        return frame.buffers.scratch(name, layout), self.back.lists[k].d

    def _to_virtual(self, frame: Frame, k: int, j: int) -> None:
        """Compute the gradient of the output of convolution j, whose activation k reads."""
        arguments, plan = frame.arguments, frame.arguments.plan
        lists, layout = self.back.lists[j], plan.lists[j].y
        g = frame.buffers.scratch(f"behind {j}", layout, plan.grid.stored)
        relu = floor(plan.unit.convolutions[j].relu, plan.grid.dtype)
        self.calls.append(call(
            kernels.backward_to_virtual, self._behind[k], self._one_tile(frame, k),
            self._weights[k], self._dw[k],
            (frame.y[j], lists.y, layout.step, frame.coef[j], relu), (g, lists.g, layout.step),
            arguments.norms[j], frame.stats[j], lists.channels, self._found[j], plan.tiles,
        ))  # fmt: skip
        coef = self._found[j][2]
        self._behind[j] = g, lists.g, layout.step, frame.y[j], lists.y, layout.step, coef

    def _to_weight(self, frame: Frame, i: int, k: int) -> None:
        """Compute the gradient of the weight of convolution k, without that of its input."""
        memory, step = frame.read[i]
        source = memory, self.back.inputs[i].base, step
        self.calls.append(call(
            kernels.backward_weight, self._behind[k], self._one_tile(frame, k), self._weights[k],
            self._dw[k], source, frame.arguments.plan.tiles,
        ))  # fmt: skip

    def _to_input(self, frame: Frame, i: int, readers: list[int], out: np.ndarray) -> Lent:
        """Compute the gradient of input i from those of the convolutions that read it."""
        plan = frame.arguments.plan
        source, whole, back = plan.sources[i], plan.inputs[i], self.back.inputs[i]
        memory, known = frame.inputs[i]
        behind_relu = known is not None and known.relu
        target, step = out, whole.step
        if source.stride > 1:
            target = frame.memory("to phases", i, source.phases.size, plan.grid.numpy)
            step = source.phases.step
        parts = [
            (self._behind[k], self._one_tile(frame, k, f"gradient {n}"), self._weights[k],
             self._dw[k])
            for n, k in enumerate(readers)
        ]  # fmt: skip
        while len(parts) < 2:
            parts.append(no_convolution(plan.grid, len(back.base)))
        read, read_step = frame.read[i]
        totals = np.zeros(whole.channels)
        self.calls.append(call(
            kernels.backward_to_input, parts[0], len(readers) == 2, parts[1],
            (self._g, back.residual, plan.out.step),
            (read, back.base, read_step, back.channel, behind_relu, floor(True, plan.grid.dtype)),
            (target, back.target, step), totals, plan.tiles,
        ))  # fmt: skip
        if source.stride > 1:
            self.calls.append(call(
                kernels.merge_phases, source.phases.group(target, back.target),
                whole.group(out, back.whole), back.row, back.column, source.stride,
                plan.grid.images,
            ))  # fmt: skip
        gate = memory if behind_relu else None
        return Lent(out, whole, back.alive, gate=gate, totals=totals)


def run_backward(
    frame: Frame, space: Workspace, grad: Tensor, wanted: list[bool]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Compute the backward of a unit.

    Args:
        frame: memory of the forward.
        space: workspace of the model's units.
        grad: gradient of the output, of its shape.
        wanted: whether the gradient of each input is needed.

    Returns:
        The gradients of the inputs, None where not wanted, and the gradients of the parameters in
        the order of ``Convolution.parameters``, without those that do not exist.
    """
    arguments, plan = frame.arguments, frame.arguments.plan
    unit, buffers = plan.unit, frame.buffers
    known = space.find(grad[:, :, None, None] if unit.linear else grad, plan.out)
    if known is not None and known.gate is not (frame.out if unit.relu else None):
        known = None
    keys = arguments.gradient_keys(None if known is None else known.alive)
    outs = [
        buffers.take(key, planes.size, plan.grid.numpy) if want else None
        for key, planes, want in zip(keys, plan.inputs, wanted, strict=True)
    ]
    name = id(known), id(frame.out), *map(id, outs)
    recorded = frame.passes.get(name)
    if recorded is None:
        if len(frame.passes) >= _PASSES:
            frame.passes.clear()
        recorded = frame.passes[name] = Pass(frame, known, outs)
    if recorded.copy is not None:
        recorded.copy.copy_(grad)
    for code, group in recorded.calls:
        code(*group)
    if unit.relu:  # otherwise the output may have been changed in place
        buffers.clean.add(id(frame.out))
    found = [
        None if lent is None else space.lend(key, lent, unit.linear)
        for key, lent in zip(keys, recorded.lent, strict=True)
    ]
    return found, arguments.gradients(recorded.where, recorded.kept, recorded.scales, frame.coef)
