"""The forward of a unit, computed by the kernels."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from . import kernels
from .arguments import Arguments, Group, floor
from .plan import NONE
from .planes import Lease
from .workspace import Lent, Workspace


@dataclass(eq=False)
class Frame:
    """Data that a forward saves for its backward.

    Args:
        arguments: arguments of the kernels.
        lease: owner of the memory below, except that of the output and of inputs from other units.
        inputs: memory of each input, and its properties if a unit has computed it, else None.
        read: memory and step of the planes that convolutions read, for each input: those of the
            input itself, or those of its phases.
        y: output of each convolution.
        stats: statistics of the norm of each convolution.
        coef: affine coefficients of the norm of each convolution.
        out: memory of the output.
    """

    arguments: Arguments
    lease: Lease
    inputs: list[tuple[np.ndarray, Lent | None]] = field(default_factory=list)
    read: list[Group] = field(default_factory=list)
    y: list[np.ndarray] = field(default_factory=list)
    stats: list[np.ndarray] = field(default_factory=list)
    coef: list[np.ndarray] = field(default_factory=list)
    out: np.ndarray = field(default_factory=lambda: NONE)


def run_forward(
    arguments: Arguments, space: Workspace, inputs: list[Tensor], lent: list[Lent | None]
) -> tuple[Tensor, Frame]:
    """Compute the forward of a unit.

    Args:
        arguments: arguments of the kernels.
        space: workspace of the model's units.
        inputs: input tensors, (N, C, H, W).
        lent: properties of each input if a unit has computed it, else None.

    Returns:
        The output, and the data for the backward.
    """
    plan, unit = arguments.plan, arguments.plan.unit
    frame = Frame(arguments, Lease(space.buffers))
    for i, (x, known) in enumerate(zip(inputs, lent, strict=True)):
        memory = _pack_input(frame, i, x) if known is None else known.memory
        frame.inputs.append((memory, known))
        phases = plan.sources[i].stride > 1
        memory = _split_input(frame, i, memory) if phases else memory
        frame.read.append((memory, plan.sources[i].step(plan.inputs[i])))
    for k in range(len(unit.convolutions)):
        _convolve(frame, k)

    key = plan.number, "out"
    frame.out = space.buffers.take(key, plan.out.size, plan.grid.numpy)
    _clear_dead(frame, space)
    first, *others = [_term(frame, k) for k in unit.terms]
    nothing = frame.y[0], plan.no_planes, 0, plan.nothing, plan.first_row
    second = others[0] if others else nothing
    out = frame.out, plan.out_base, plan.out.step
    kernels.combine(first, second, out, floor(unit.relu, plan.grid.dtype), plan.tiles)
    found = Lent(frame.out, plan.out, plan.alive, unit.relu)
    return space.lend(key, found, unit.linear), frame


def _clear_dead(frame: Frame, space: Workspace) -> None:
    """Set the channels to zero that no kernel writes, unless they are known to be zero already."""
    plan, clean = frame.arguments.plan, space.buffers.clean
    if len(plan.dead):
        address = frame.out.ctypes.data
        if address not in clean:
            plan.out.view(frame.out)[:, plan.dead] = 0
        clean.discard(address)


def _pack_input(frame: Frame, i: int, x: Tensor) -> np.ndarray:
    plan = frame.arguments.plan
    planes = plan.inputs[i]
    memory = frame.lease.take((plan.number, "input", i), planes.size, plan.grid.numpy)
    torch.from_numpy(planes.view(memory)).copy_(x)
    return memory


def _split_input(frame: Frame, i: int, x: np.ndarray) -> np.ndarray:
    plan = frame.arguments.plan
    source, whole, phases = plan.sources[i], plan.inputs[i], plan.sources[i].phases
    memory = frame.lease.take((plan.number, "phases", i), phases.size, plan.grid.numpy)
    kernels.split_phases(
        whole.group(x, whole.base(source.channel)), phases.group(memory, source.phases_base),
        source.row, source.column, source.stride, plan.grid.images,
    )  # fmt: skip
    return memory


def _convolve(frame: Frame, k: int) -> None:
    arguments, plan = frame.arguments, frame.arguments.plan
    unit, lists, grid = plan.unit, plan.lists[k], plan.grid
    size = lists.y.size
    y = frame.lease.take(("y", size, grid.stored), size, grid.stored)
    channels = unit.convolutions[k].channels
    stats, coef = np.empty((channels, 2)), np.empty((channels, 2), grid.numpy)
    j = unit.convolutions[k].source
    source: Group
    before: Group
    if j < 0:
        source = frame.read[-1 - j]
        before = False, y, NONE, 0, plan.nothing, NONE, floor(True, grid.dtype), NONE
    else:
        first = plan.lists[j]
        source = frame.lease.buffers.scratch("activation", plan.virtual[k]), 0
        before = (
            True, frame.y[j], first.slot_y, first.y.step, frame.coef[j], first.slots,
            floor(unit.convolutions[j].relu, grid.dtype), plan.virtual_base[k],
        )  # fmt: skip
    kernels.convolve(
        source, arguments.weights[k], lists.filters, (y, lists.y_base, lists.y.step), before,
        arguments.norms[k], stats, coef, plan.tiles,
    )  # fmt: skip
    frame.y.append(y)
    frame.stats.append(stats)
    frame.coef.append(coef)


def _term(frame: Frame, k: int) -> Group:
    """Return the argument group of a term of the sum (see ``kernels.combine``)."""
    plan = frame.arguments.plan
    if k >= 0:
        lists = plan.lists[k]
        return frame.y[k], lists.slot_y, lists.y.step, frame.coef[k], lists.slots
    memory, _ = frame.inputs[-1 - k]
    step = plan.inputs[-1 - k].step
    return memory, plan.residual[-1 - k], step, plan.unchanged, plan.first_row
