"""One unit at work: forward and backward by the kernels, as one autograd function."""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import kernels
from .plan import NONE, Back, Convolution, Plan, Unit, make_plan
from .planes import Buffers, Grid, Planes

Take = Callable[[object, int], np.ndarray]
"""Gives memory by a name and a size."""


@dataclass
class Lent:
    """What is known of a tensor that a unit put out, or of a gradient that one returned.

    gate: for a gradient, the address of the output of the ReLU in front of which it is; 0: of none.
    version: autograd's count of changes in place, when it was lent.
    """

    memory: np.ndarray
    planes: Planes
    alive: np.ndarray
    relu: bool
    gate: int = 0
    version: int = 0


class Workspace:
    """What the units of one model share: buffers, and what is known of the tensors made of them."""

    def __init__(self, masks: Callable[[str], Tensor], border: int) -> None:
        self.masks = masks
        self.border = border
        self.buffers = Buffers()
        self.known: dict[int, Lent] = {}
        self.enabled = True

    def lend(self, key: object, lent: Lent, flat: bool) -> Tensor:
        tensor = lent.planes.tensor(self.buffers.lend(key, lent.memory), flat)
        lent.version = tensor._version
        self.known[tensor.data_ptr()] = lent
        return tensor

    def find(self, tensor: Tensor, planes: Planes) -> Lent | None:
        """The planes behind a tensor of ours that nobody has changed; None for any other."""
        lent = self.known.get(tensor.data_ptr())
        if lent is None or tensor._version != lent.version:
            return None
        if lent.planes is not planes and lent.planes != planes:
            return None
        if tensor.stride() == planes.strides:
            return lent
        strides = zip(tensor.shape, tensor.stride(), planes.strides, strict=True)
        return lent if all(size == 1 or ours == theirs for size, ours, theirs in strides) else None

    def changed(self) -> None:
        """Forget all plans, as the masks have changed, and the memory that was theirs."""
        self.buffers = Buffers()
        self.known = {}


@dataclass(eq=False)
class Frame:
    """What a forward leaves to its backward. Its memory is used again once it is gone."""

    plan: Plan
    inputs: list[tuple[np.ndarray, Lent | None]]
    read: list[np.ndarray] = field(default_factory=list)
    y: list[np.ndarray] = field(default_factory=list)
    stats: list[np.ndarray] = field(default_factory=list)
    coef: list[np.ndarray] = field(default_factory=list)
    frozen: list[bool] = field(default_factory=list)
    out: np.ndarray = field(default_factory=lambda: NONE)


@dataclass
class Pass:
    """A backward on its way through a frame.

    g: planes in front of the last ReLU. behind: for each convolution, the gradient behind its norm
    (memory, planes, step) and the affine form of the gradient of its output.
    """

    frame: Frame
    back: Back
    g: np.ndarray
    buffers: Buffers
    behind: dict[int, tuple[np.ndarray, np.ndarray, int, np.ndarray]] = field(default_factory=dict)
    parameters: dict[int, list[Tensor | None]] = field(default_factory=dict)


class BoundUnit:
    """A unit on its model: called with the input tensors, it returns the output tensor.

    Falls back to the layers themselves where the kernels do not apply: other types, devices or
    layouts, autocast, hooks on a layer inside, or a batch too small to normalise.
    """

    def __init__(self, unit: Unit, workspace: Workspace) -> None:
        self.unit = unit
        self.workspace = workspace
        self.border = 0 if unit.linear else workspace.border
        self._buffers = workspace.buffers
        self._plans: dict[object, tuple[Plan, list[Any]]] = {}
        """With what the key names by its identity, so that nothing else gets its name."""
        self._planes: dict[tuple[Any, ...], list[Planes]] = {}
        self._norms = [c.norm for c in unit.convolutions if c.norm is not None]
        self._hooks = [table for module in unit.modules for table in _hook_tables(module)]
        self.plain_calls = 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        if not self.applies(inputs):
            self.plain_calls += self.workspace.enabled
            return self.plain(*inputs)
        parameters = list(_parameters(self.unit))
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *parameters)):
            return _Function.apply(self, len(inputs), *inputs, *parameters)
        return self.forward(list(inputs))[0]

    def applies(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether the kernels can compute this call."""
        first = inputs[0]
        weight = self.unit.convolutions[0].layer.weight
        if not self.workspace.enabled or any(self._hooks) or torch.is_autocast_enabled("cpu"):
            return False
        if first.dtype not in (torch.float32, torch.float64):
            return False
        for x in inputs:
            if type(x) not in (Tensor, nn.Parameter) or x.device.type != "cpu":
                return False
            if x.dtype != weight.dtype or x.ndim != first.ndim or not x.numel():
                return False
        wide = isinstance(self.unit.convolutions[0].layer, nn.Linear)
        if first.ndim != (2 if wide else 4):
            return False
        for c in self.unit.convolutions:
            if c.source < 0:
                channels = c.layer.weight.shape[1] * c.geometry()[1]
                if inputs[-1 - c.source].shape[1] != channels:
                    return False
        return self._batch_suffices(first)

    def _batch_suffices(self, x: Tensor) -> bool:
        """More than one value a channel, or the layers say what is wrong."""
        if not any(c.norm is not None and c.norm.training for c in self.unit.convolutions):
            return True
        strides = [c.geometry()[0] for c in self.unit.convolutions]
        smallest = math.prod(-(-n // max(strides)) for n in x.shape[2:])
        return len(x) * smallest > 1

    def plain(self, *inputs: Tensor) -> Tensor:
        """The same by the layers themselves."""
        values: list[Tensor] = []
        for k, c in enumerate(self.unit.convolutions):
            x = c.layer(inputs[-1 - c.source] if c.source < 0 else values[c.source])
            if c.norm is not None:
                x = c.norm(x)
            values.append(torch.relu(x) if c.relu and k not in self.unit.terms else x)
        terms = [values[k] if k >= 0 else inputs[-1 - k] for k in self.unit.terms]
        out = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        return torch.relu(out) if self.unit.relu else out

    def plan(self, inputs: list[Tensor]) -> tuple[Plan, list[Lent | None]]:
        """The plan for these inputs, and what is known of those that are ours."""
        space = self.workspace
        if self._buffers is not space.buffers:
            self._plans.clear()
            self._buffers = space.buffers
        shapes = inputs[0].dtype, *(x.shape for x in inputs)
        if shapes not in self._planes:
            self._planes[shapes] = [
                Planes(Grid(len(x), *x.shape[2:], self.border, x.dtype), x.shape[1]) for x in inputs
            ]
        planes = self._planes[shapes]
        masks = [space.masks(c.name) for c in self.unit.convolutions]
        lent = [space.find(x, p) for x, p in zip(inputs, planes, strict=True)]
        alive = [None if known is None else known.alive for known in lent]
        key = (
            shapes,
            # By identity: a plan puts out the same array at every step, and is kept with it.
            tuple(map(id, alive)),
            tuple(n.training for n in self._norms),
            tuple(c.layer.weight.stride() for c in self.unit.convolutions),
            # Masks that somebody changed, in place or for others, without a word.
            tuple((id(m), m._version) for m in masks),
        )
        plan, _ = self._plans.get(key, (None, None))
        if plan is None or not plan.holds():
            every = [
                np.ones(p.channels, bool) if a is None else a
                for p, a in zip(planes, alive, strict=True)
            ]
            plan = make_plan(self.unit, masks, planes, every)
            self._plans[key] = plan, [*alive, *masks]
        return plan, lent

    def forward(self, inputs: list[Tensor]) -> tuple[Tensor, Frame]:
        if self.unit.linear:
            inputs = [x[:, :, None, None] for x in inputs]
        plan, lent = self.plan(inputs)
        buffers, grid = self.workspace.buffers, plan.grid
        taken: list[tuple[object, np.ndarray]] = []

        def take(key: object, size: int) -> np.ndarray:
            memory = buffers.take(key, size, grid.numpy)
            taken.append((key, memory))
            return memory

        frame = Frame(plan, [])
        weakref.finalize(frame, _give_back, buffers, taken).atexit = False
        for i, (x, known) in enumerate(zip(inputs, lent, strict=True)):
            memory = self._pack_input(plan, i, x, take) if known is None else known.memory
            frame.inputs.append((memory, known))
            phases = plan.sources[i].stride > 1
            frame.read.append(self._split_input(plan, i, memory, take) if phases else memory)
        for k in range(len(self.unit.convolutions)):
            y = take(("y", plan.lists[k].y.size, grid.numpy), plan.lists[k].y.size)
            self._convolve(frame, k, y)

        key = plan.number, "out"
        frame.out = buffers.take(key, plan.out.size, grid.numpy)
        self._clear_dead(plan, frame.out)
        terms = [self._term(frame, k) for k in self.unit.terms]
        if len(terms) == 1:
            terms.append((terms[0][0], plan.no_planes, 0, _rows(grid, 2, len(plan.outs))))
        kernels.combine(
            *terms[0], *terms[1], frame.out, plan.out_base, plan.out.step,
            _floor(self.unit.relu, grid), grid.mask, *grid.extent,
        )  # fmt: skip
        lent_out = Lent(frame.out, plan.out, plan.alive, self.unit.relu)
        return self.workspace.lend(key, lent_out, self.unit.linear), frame

    def _clear_dead(self, plan: Plan, memory: np.ndarray) -> None:
        """Zero the channels that no kernel writes, unless a backward has found them unchanged."""
        if len(plan.dead):
            address = memory.ctypes.data
            if address not in self.workspace.buffers.clean:
                outputs = plan.out.tensor(torch.from_numpy(memory))
                outputs[:, torch.from_numpy(plan.dead)] = 0
            self.workspace.buffers.clean.discard(address)

    def _pack_input(self, plan: Plan, i: int, x: Tensor, take: Take) -> np.ndarray:
        planes = plan.inputs[i]
        memory = take((plan.number, "input", i), planes.size)
        planes.tensor(torch.from_numpy(memory)).copy_(x)
        return memory

    def _split_input(self, plan: Plan, i: int, x: np.ndarray, take: Take) -> np.ndarray:
        source, whole, phases = plan.sources[i], plan.inputs[i], plan.sources[i].phases
        memory = take((plan.number, "phases", i), phases.size)
        kernels.split_phases(
            x, whole.base(source.channel), whole.image, whole.grid.row, whole.grid.height,
            whole.grid.width, source.row, source.column, source.stride, memory,
            plan.read_base(i), phases.image, plan.grid.row, plan.grid.height, plan.grid.width,
            plan.grid.images,
        )  # fmt: skip
        return memory

    def _convolve(self, frame: Frame, k: int, y: np.ndarray) -> None:
        plan, c, lists = frame.plan, self.unit.convolutions[k], frame.plan.lists[k]
        grid = plan.grid
        weight = np.empty(len(lists.where), grid.numpy)
        kernels.kept_values(_flat(c.layer.weight), lists.where, weight)
        sums = np.empty((len(lists.filters), 2))
        if c.source < 0:
            x, step = frame.read[-1 - c.source], plan.read_step(-1 - c.source)
            virtual: tuple[Any, ...] = (
                False, y, NONE, 0, _rows(grid, 2), _floor(True, grid), y, NONE,
            )  # fmt: skip
        else:
            before, layout = plan.lists[c.source], plan.virtual[k]
            x, step = self.workspace.buffers.scratch("activation", layout), 0
            virtual = (
                True, frame.y[c.source], before.slot_y, before.y.step,
                frame.coef[c.source][before.slots],
                _floor(self.unit.convolutions[c.source].relu, grid), x,
                plan.virtual_base[k],
            )  # fmt: skip
        kernels.convolve(
            x, step, lists.start, lists.offset, weight, y, lists.y_base, lists.y.step, *virtual,
            sums, grid.mask, *grid.extent,
        )  # fmt: skip
        stats, coef, frozen = _normalise(c, sums, lists.filters, grid)
        frame.y.append(y)
        frame.stats.append(stats)
        frame.coef.append(coef)
        frame.frozen.append(frozen)

    def _term(self, frame: Frame, k: int) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
        """Memory, planes of the outputs, step and affine form of a term of the sum."""
        plan = frame.plan
        if k >= 0:
            lists = plan.lists[k]
            return frame.y[k], lists.slot_y, lists.y.step, frame.coef[k][lists.slots]
        coef = _rows(plan.grid, 2, len(plan.outs))
        coef[:, 0] = 1
        return frame.inputs[-1 - k][0], plan.residual[-1 - k], plan.inputs[-1 - k].step, coef

    def backward(
        self, frame: Frame, grad: Tensor, wanted: list[bool]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Gradients of the inputs (None where not wanted) and of the parameters, in their order."""
        plan, unit = frame.plan, self.unit
        taken: list[tuple[object, np.ndarray]] = []
        buffers = self._buffers

        def take(key: object, size: int) -> np.ndarray:
            memory = buffers.take(key, size, plan.grid.numpy)
            taken.append((key, memory))
            return memory

        g, alive = self._incoming(frame, grad, take)
        at = Pass(frame, plan.back(alive), g, buffers)
        for k in unit.terms:
            if k >= 0:
                lists, c = at.back.lists[k], unit.convolutions[k]
                sums = np.zeros((len(lists.chosen), 2))
                if c.norm is not None or c.layer.bias is not None:
                    kernels.gradient_sums(
                        g, at.back.g, plan.out.step, frame.y[k], lists.y, plan.lists[k].y.step,
                        sums, *plan.grid.extent,
                    )  # fmt: skip
                self._through_norm(at, k, (g, at.back.g, plan.out.step), sums)
        readers: list[list[int]] = [[] for _ in plan.sources]
        for k in reversed(range(len(unit.convolutions))):
            j = unit.convolutions[k].source
            if j < 0:
                readers[-1 - j].insert(0, k)
            else:
                size = plan.lists[j].y.size
                self._to_virtual(at, k, j, take(("y", size, plan.grid.numpy), size))
        found: list[Tensor | None] = []
        for i in range(len(plan.sources)):
            if wanted[i]:
                found.append(self._to_input(at, i, readers[i], take))
                continue
            found.append(None)
            for k in readers[i]:
                self._to_weight(at, i, k)
        _give_back(buffers, taken)
        if unit.relu:  # autograd refuses a backward where its output was changed
            buffers.clean.add(frame.out.ctypes.data)
        return found, [g for k in range(len(unit.convolutions)) for g in at.parameters[k]]

    def _incoming(
        self, frame: Frame, grad: Tensor, take: Take
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The planes of the gradient in front of the last ReLU, and which of them are not zero."""
        plan, grid = frame.plan, frame.plan.grid
        if self.unit.linear:
            grad = grad[:, :, None, None]
        known = self.workspace.find(grad, plan.out)
        gate = frame.out.ctypes.data if self.unit.relu else 0
        if known is not None and known.gate == gate:
            return known.memory, known.alive
        memory = take((plan.number, "gradient"), plan.out.size)
        plan.out.tensor(torch.from_numpy(memory)).copy_(grad)
        if self.unit.relu:
            kernels.gate(
                memory, frame.out, plan.out_base, plan.out.step, _floor(True, grid), *grid.extent
            )  # fmt: skip
        return memory, None

    def _through_norm(
        self, at: Pass, k: int, behind: tuple[np.ndarray, np.ndarray, int], sums: np.ndarray
    ) -> None:
        """Gradients of bias, scale and shift, and the affine form of the gradient of the output."""
        frame, c = at.frame, self.unit.convolutions[k]
        slots = at.back.lists[k].channels
        coef = _rows(frame.plan.grid, 3, len(slots))
        found: list[Tensor | None] = [None]  # the weight's: comes later
        if c.norm is None:
            coef[:, 0] = 1
            if c.layer.bias is not None:
                bias = torch.zeros_like(c.layer.bias)
                bias.numpy()[slots] = sums[:, 0]
                found.append(bias)
        else:
            zeros = np.zeros((2, c.channels), frame.plan.grid.numpy)
            scale, shift = torch.from_numpy(zeros[0]), torch.from_numpy(zeros[1])
            kernels.norm_backward(
                sums, slots, frame.plan.grid.pixels, frame.stats[k],
                _or(c.norm.weight, c.norm.running_mean, 1), frame.frozen[k], *zeros, coef,
            )  # fmt: skip
            if c.layer.bias is not None:
                # Batch statistics take the bias out again; running ones scale its gradient.
                a = torch.from_numpy(frame.coef[k][:, 0].copy())
                found.append(shift * a if frame.frozen[k] else torch.zeros_like(shift))
            if c.norm.weight is not None:
                found += [scale, shift]
        at.behind[k] = *behind, coef
        at.parameters[k] = found

    def _fill(self, at: Pass, k: int, scratch: str = "gradient") -> tuple[Any, ...]:
        """What a kernel needs to make the gradient of a convolution's output, tile by tile."""
        lists, back = at.frame.plan.lists[k], at.back.lists[k]
        d = at.buffers.scratch(scratch, lists.d)
        g, base, step, coef = at.behind[k]
        return g, base, step, at.frame.y[k], back.y, lists.y.step, coef, d, back.d

    def _back_weight(self, at: Pass, k: int) -> np.ndarray:
        where = at.back.lists[k].where
        weight = np.empty(len(where), at.frame.plan.grid.numpy)
        kernels.kept_values(_flat(self.unit.convolutions[k].layer.weight), where, weight)
        return weight

    def _set_weight(self, at: Pass, k: int, dw: np.ndarray) -> None:
        weight = self.unit.convolutions[k].layer.weight
        gradient = np.zeros(weight.numel(), at.frame.plan.grid.numpy)
        kernels.scatter_weight(gradient, at.back.lists[k].where, dw)
        dense = torch.from_numpy(gradient).as_strided(weight.shape, weight.stride())
        at.parameters[k][0] = dense

    def _to_virtual(self, at: Pass, k: int, j: int, g: np.ndarray) -> None:
        frame, grid = at.frame, at.frame.plan.grid
        lists, before = at.back.lists[k], at.back.lists[j]
        step = frame.plan.lists[j].y.step
        dw, sums = np.empty(len(lists.where)), np.empty((len(before.chosen), 2))
        kernels.backward_to_virtual(
            *self._fill(at, k), lists.offset, self._back_weight(at, k), lists.start, dw,
            frame.y[j], before.y, step, frame.coef[j][before.channels],
            _floor(self.unit.convolutions[j].relu, grid), g, before.g, step, sums, grid.mask,
            *grid.extent,
        )  # fmt: skip
        self._set_weight(at, k, dw)
        self._through_norm(at, j, (g, before.g, step), sums)

    def _to_weight(self, at: Pass, i: int, k: int) -> None:
        plan, lists = at.frame.plan, at.back.lists[k]
        dw = np.empty(len(lists.where))
        kernels.backward_weight(
            *self._fill(at, k), lists.offset, lists.start, dw, at.frame.read[i],
            at.back.inputs[i].base, plan.read_step(i), plan.grid.mask, *plan.grid.extent,
        )  # fmt: skip
        self._set_weight(at, k, dw)

    def _to_input(self, at: Pass, i: int, readers: list[int], take: Take) -> Tensor:
        frame, plan, grid = at.frame, at.frame.plan, at.frame.plan.grid
        source, whole, back = plan.sources[i], plan.inputs[i], at.back.inputs[i]
        memory, known = frame.inputs[i]
        gated = known is not None and known.relu
        # Its zeros stay zeros: what is written depends on the plan and on these channels.
        key = plan.number, "to input", i, back.alive.tobytes()
        out = at.buffers.take(key, whole.size, grid.numpy)
        target, step = out, whole.step
        if source.stride > 1:
            target, step = (
                take((plan.number, "to phases", i), source.phases.size),
                plan.read_step(i),
            )
        dws = [np.empty(len(at.back.lists[k].where)) for k in readers]
        parts = [
            (
                *self._fill(at, k, f"gradient {n}"), at.back.lists[k].offset,
                self._back_weight(at, k), at.back.lists[k].start, dws[n],
            )
            for n, k in enumerate(readers)
        ]  # fmt: skip
        nothing = np.zeros(0, grid.numpy)
        while len(parts) < 2:
            parts.append(
                (
                    nothing, NONE, 0, nothing, NONE, 0, _rows(grid, 3), nothing, NONE, NONE,
                    nothing, np.zeros(len(back.base) + 1, np.int64), np.empty(0),
                )
            )  # fmt: skip
        kernels.backward_to_input(
            *parts[0], len(readers) == 2, *parts[1], at.g, back.residual, plan.out.step,
            frame.read[i], back.base, plan.read_step(i), gated, _floor(True, grid), target,
            back.target, step, grid.mask, *grid.extent,
        )  # fmt: skip
        for k, dw in zip(readers, dws, strict=True):
            self._set_weight(at, k, dw)
        if source.stride > 1:
            kernels.merge_phases(
                target, back.target, source.phases.image, grid.row, grid.height, grid.width,
                back.row, back.column, source.stride, out, back.whole, whole.image,
                whole.grid.row, whole.grid.height, whole.grid.width, grid.images,
            )  # fmt: skip
        gate = memory.ctypes.data if gated else 0
        lent = Lent(out, whole, back.alive, False, gate)
        return self.workspace.lend(key, lent, self.unit.linear)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bound: BoundUnit, inputs: int, *tensors: Tensor) -> Tensor:
        out, frame = bound.forward([t.detach() for t in tensors[:inputs]])
        ctx.bound, ctx.frame, ctx.inputs = bound, frame, inputs
        # Autograd then refuses a backward after any of them was changed in place.
        ctx.save_for_backward(*tensors, *([out] if bound.unit.relu else []))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        _ = ctx.saved_tensors  # raises where one of them was changed, or the graph was freed
        wanted = list(ctx.needs_input_grad[2 : 2 + ctx.inputs])
        found, parameters = ctx.bound.backward(ctx.frame, grad, wanted)
        return None, None, *found, *parameters


def _parameters(unit: Unit) -> list[Tensor]:
    found = []
    for c in unit.convolutions:
        found.append(c.layer.weight)
        if c.layer.bias is not None:
            found.append(c.layer.bias)
        if c.norm is not None and c.norm.weight is not None:
            found += [c.norm.weight, c.norm.bias]
    return found


def _hook_tables(module: nn.Module) -> list[Any]:
    """The dictionaries in which a module keeps its hooks: one that is not empty must be heeded."""
    return [
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    ]


def _give_back(buffers: Buffers, taken: list[tuple[object, np.ndarray]]) -> None:
    for key, memory in taken:
        buffers.give(key, memory)
    taken.clear()


def _normalise(
    c: Convolution, sums: np.ndarray, filters: np.ndarray, grid: Grid
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Statistics, affine form, and whether the statistics were the running ones."""
    stats, coef, norm = np.zeros((c.channels, 2)), _rows(grid, 2, c.channels), c.norm
    if norm is None:
        coef[:, 0] = 1
        if c.layer.bias is not None:
            coef[:, 1] = c.layer.bias.detach().numpy()
        return stats, coef, True
    mean, var = norm.running_mean, norm.running_var
    bias = _or(c.layer.bias, mean, 0)
    affine = _or(norm.weight, mean, 1), _or(norm.bias, mean, 0)
    if not norm.training:
        kernels.running_statistics(
            bias, *affine, norm.eps, mean.numpy(), var.numpy(), stats, coef
        )  # fmt: skip
        return stats, coef, True
    norm.num_batches_tracked += 1
    kernels.batch_statistics(
        sums, filters, grid.pixels, bias, *affine, norm.eps, norm.momentum, mean.numpy(),
        var.numpy(), stats, coef,
    )  # fmt: skip
    return stats, coef, False


def _or(value: Tensor | None, like: Tensor, otherwise: float) -> np.ndarray:
    if value is None:
        return _constant_vector(len(like), like.dtype, otherwise)
    return value.detach().numpy()


@lru_cache
def _constant_vector(size: int, dtype: torch.dtype, value: float) -> np.ndarray:
    """Never written to."""
    return torch.full((size,), value, dtype=dtype).numpy()


def _rows(grid: Grid, columns: int, rows: int = 0) -> np.ndarray:
    return np.zeros((rows, columns), grid.numpy)


def _floor(relu: bool, grid: Grid) -> Any:
    """What an activation does not fall below, as a number of the planes' type."""
    return grid.numpy.type(0 if relu else -math.inf)


def _flat(weight: Tensor) -> np.ndarray:
    """A dense tensor's memory as a vector."""
    return weight.detach().as_strided((weight.numel(),), (1,)).numpy()
