"""The forward of a unit, computed by the kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from . import kernels
from .arguments import Arguments, Group, floor
from .plan import NONE
from .planes import Buffers, Lease
from .workspace import Lent, Workspace

Call = tuple[Callable[..., None], Group]
"""The compiled code of a kernel and its arguments."""

_codes: dict[Group, Callable[..., None]] = {}
"""Compiled code of the kernels, by the kernel and the types of its arguments (``_types``)."""


def call(kernel: Any, *arguments: Any) -> Call:
    """Return the code of a kernel that is compiled for the types of these arguments, with them.

    If the kernel itself is called, numba finds the types of about 40 arrays at every call, which
    takes 3 % of a training step of ResNet20 at sparsity 0.998. Numba needs ten times as long to
    find the code for given arguments, so it is asked only once for each combination of types.
    """
    key = kernel, _types(arguments)
    if key not in _codes:
        _codes[key] = kernel.compile(tuple(map(numba.typeof, arguments)))
    return _codes[key], arguments


def _types(arguments: Group) -> Group:
    """Return a key that is equal for two argument groups if numba sees the same types in them."""
    return tuple(
        [
            (a.dtype.char, a.ndim, a.flags.num)
            if isinstance(a, np.ndarray)
            else _types(a)
            if isinstance(a, tuple)
            else type(a)
            for a in arguments
        ]
    )


class Frame:
    """Memory of a forward and its backward, and the calls of kernels on this memory.

    A frame is used again at the next step, if its inputs have the same memory. To collect the
    arguments of all kernels anew takes 8 % of a training step of ResNet20 at sparsity 0.998. This
    is necessary if the batch size changes, or if outputs of the last step still exist.

    Args:
        arguments: arguments of the kernels.
        buffers: pool from which the memory is taken until the frame is deleted.
        lent: properties of each input if a unit has computed it, else None.

    Attributes:
        inputs: memory of each input, and its properties if a unit has computed it, else None.
        read: memory and step of the planes that convolutions read, for each input: those of the
            input itself, or those of its phases.
        y: output of each convolution.
        stats: statistics of the norm of each convolution.
        coef: affine coefficients of the norm of each convolution.
        out: memory of the output of the latest forward.
        outs: properties of the output and the kernel that writes it, by the id of its memory.
        calls: all other kernels of the forward.
        passes: the backward passes (``backward.Pass``), by what differs between them.
    """

    def __init__(self, arguments: Arguments, buffers: Buffers, lent: list[Lent | None]) -> None:
        self.arguments = arguments
        self.buffers = buffers
        self.lent = lent
        self.growth = buffers.growth
        self.inputs: list[tuple[np.ndarray, Lent | None]] = []
        self.read: list[Group] = []
        self.y: list[np.ndarray] = []
        self.stats: list[np.ndarray] = []
        self.coef: list[np.ndarray] = []
        self.out = NONE
        self.outs: dict[int, tuple[Lent, Call]] = {}
        self.calls: list[Call] = []
        self.passes: dict[tuple[int, ...], Any] = {}
        self._lease = Lease(buffers)
        self._memory: dict[tuple[Any, ...], np.ndarray] = {}
        self._copies: list[tuple[int, Tensor]] = []

        plan, unit = arguments.plan, arguments.plan.unit
        for i, known in enumerate(lent):
            memory = self._packed(i) if known is None else known.memory
            self.inputs.append((memory, known))
            memory = self._split(i, memory) if plan.sources[i].stride > 1 else memory
            self.read.append((memory, plan.sources[i].step(plan.inputs[i])))
        for k in range(len(unit.convolutions)):
            self._convolve(k)
        first, *others = [self._term(k) for k in unit.terms]
        nothing = self.y[0], plan.no_planes, 0, plan.nothing, plan.first_row
        self._terms = first, others[0] if others else nothing
        self._floor = floor(unit.relu, plan.grid.dtype)
        self._key = plan.number, "out"

    def usable(self, arguments: Arguments, lent: list[Lent | None]) -> bool:
        """Return whether a forward with these arguments of ``Frame`` can use this frame.

        A frame from before temporary memory was replaced is not used, so that all units share it.
        """
        same = all(a is b for a, b in zip(self.lent, lent, strict=True))
        return same and self.arguments is arguments and self.growth == self.buffers.growth

    def memory(self, name: str, i: int, size: int, dtype: np.dtype) -> np.ndarray:
        """Return the memory of this name, which the frame keeps."""
        key = self.arguments.plan.number, name, i
        if key not in self._memory:
            self._memory[key] = self._lease.take(key, size, dtype)
        return self._memory[key]

    def run(self, space: Workspace, inputs: Sequence[Tensor]) -> Tensor:
        """Compute the forward and return the output.

        Args:
            space: workspace of the model's units.
            inputs: input tensors, (N, C, H, W).
        """
        plan = self.arguments.plan
        for i, copy in self._copies:
            copy.copy_(inputs[i])
        for code, arguments in self.calls:
            code(*arguments)
        self.out = out = self.buffers.take(self._key, plan.out.size, plan.grid.numpy)
        if len(plan.dead):
            self._clear_dead(out)
        if id(out) not in self.outs:
            lent = Lent(out, plan.out, plan.alive, plan.unit.relu)
            planes = out, plan.out_base, plan.out.step
            combine = call(kernels.combine, *self._terms, planes, self._floor, plan.tiles)
            self.outs[id(out)] = lent, combine
        lent, (code, arguments) = self.outs[id(out)]
        code(*arguments)
        return space.lend(self._key, lent, plan.unit.linear)

    def _clear_dead(self, out: np.ndarray) -> None:
        """Set the channels to zero that no kernel writes, unless they are known to be zero."""
        if id(out) not in self.buffers.clean:
            plan = self.arguments.plan
            plan.out.view(out)[:, plan.dead] = 0
        self.buffers.clean.discard(id(out))

    def _packed(self, i: int) -> np.ndarray:
        """Return the memory to which an input is copied."""
        planes = self.arguments.plan.inputs[i]
        memory = self.memory("input", i, planes.size, planes.grid.numpy)
        self._copies.append((i, torch.from_numpy(planes.view(memory))))
        return memory

    def _split(self, i: int, x: np.ndarray) -> np.ndarray:
        """Return the memory to which the phases of input i are copied from its memory x."""
        plan = self.arguments.plan
        source, whole, phases = plan.sources[i], plan.inputs[i], plan.sources[i].phases
        memory = self.memory("phases", i, phases.size, plan.grid.numpy)
        self.calls.append(call(
            kernels.split_phases, whole.group(x, whole.base(source.channel)),
            phases.group(memory, source.phases_base), source.row, source.column, source.stride,
            plan.grid.images,
        ))  # fmt: skip
        return memory

    def _convolve(self, k: int) -> None:
        """Collect the call of the kernel that computes convolution k and the norm after it."""
        arguments, plan = self.arguments, self.arguments.plan
        unit, lists, grid = plan.unit, plan.lists[k], plan.grid
        size = lists.y.size
        y = self._lease.take(("y", size, grid.stored), size, grid.stored)
        channels = unit.convolutions[k].channels
        stats, coef = np.empty((channels, 2)), np.empty((channels, 2), grid.numpy)
        j = unit.convolutions[k].source
        source: Group
        before: Group
        if j < 0:
            source = self.read[-1 - j]
            before = False, y, NONE, 0, plan.nothing, NONE, floor(True, grid.dtype), NONE
        else:
            first = plan.lists[j]
            source = self.buffers.scratch("activation", plan.virtual[k]), 0
            before = (
                True, self.y[j], first.slot_y, first.y.step, self.coef[j], first.slots,
                floor(unit.convolutions[j].relu, grid.dtype), plan.virtual_base[k],
            )  # fmt: skip
        self.calls.append(call(
            kernels.convolve, source, arguments.weights[k], lists.filters,
            (y, lists.y_base, lists.y.step), before, arguments.norms[k], stats, coef, plan.tiles,
        ))  # fmt: skip
        self.y.append(y)
        self.stats.append(stats)
        self.coef.append(coef)

    def _term(self, k: int) -> Group:
        """Return the argument group of a term of the sum (see ``kernels.combine``)."""
        plan = self.arguments.plan
        if k >= 0:
            lists = plan.lists[k]
            return self.y[k], lists.slot_y, lists.y.step, self.coef[k], lists.slots
        memory, _ = self.inputs[-1 - k]
        step = plan.inputs[-1 - k].step
        return memory, plan.residual[-1 - k], step, plan.unchanged, plan.first_row


class Use:
    """A frame in use. When this object is deleted, the frame is put back into the list ``free``."""

    def __init__(self, frame: Frame, free: list[Frame]) -> None:
        self.frame = frame
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.frame)
