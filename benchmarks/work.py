"""Operations and bytes of sparse execution in one training step, from the plans of its kernels.

The number of bytes is an estimate for storage in float32: every plane that a kernel reads or writes
counts once for this kernel. A kernel processes tiles of images whose planes stay in the cache, so
it loads a plane once for any number of weights. Data that is still in the cache from the previous
kernel counts too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from ckasr.execution import SparseExecution
from ckasr.execution.bound import BoundUnit
from ckasr.execution.forward import Frame
from ckasr.execution.planes import Grid


@dataclass
class Work:
    """Planes computed, multiply-adds, bytes read and bytes written in one training step."""

    planes: int = 0
    multiply_adds: int = 0
    read: int = 0
    written: int = 0


def work(handle: SparseExecution, step: Callable[[], object]) -> Work:
    """Count the operations and bytes of one training step of a model with sparse execution.

    Raises RuntimeError if a part of the network does not run on the sparse kernels.
    """
    total = Work()
    for bound in handle.units:
        bound.backward = partial(_counted_backward, total, bound)
    try:
        step()
    finally:
        for bound in handle.units:
            del bound.backward
    late = [bound.unit.name for bound in handle.units if bound.plain_calls]
    if handle.dense or late or not handle.units:
        raise RuntimeError(f"not all of the network runs on the sparse kernels:\n{handle}")
    return total


def _counted_backward(
    total: Work, bound: BoundUnit, frame: Frame, grad: Tensor, wanted: list[bool]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Run the backward pass of a unit, and add the work of both of its passes to the total."""
    _count(total, bound, frame, grad, wanted)
    return BoundUnit.backward(bound, frame, grad, wanted)


def _count(total: Work, bound: BoundUnit, frame: Frame, grad: Tensor, wanted: list[bool]) -> None:
    """Add the operations and bytes of one unit, in the order in which its kernels are called."""
    images = grad[:, :, None, None] if bound.unit.linear else grad
    plan = frame.arguments.plan
    known = bound.workspace.find(images, plan.out)
    foreign = known is None  # The gradient of the output comes from outside the kernels.
    back, _ = frame.arguments.back(None if known is None else known.alive)
    unit, grid = plan.unit, plan.grid

    def move(read: int, written: int, planes: Grid = grid) -> None:
        size = planes.images * planes.image * planes.numpy.itemsize
        total.read += int(read) * size
        total.written += int(written) * size

    for i, (source, whole) in enumerate(zip(plan.sources, plan.inputs, strict=True)):
        if frame.inputs[i][1] is None:  # from outside the kernels
            move(whole.channels, whole.channels, whole.grid)
        if source.stride > 1:  # The kernel splits the input into phases.
            move(len(np.unique(source.channel)), 0, whole.grid)
            move(0, len(source.channel))
    for k, c in enumerate(unit.convolutions):
        lists = plan.lists[k]
        total.multiply_adds += len(lists.where) * grid.pixels
        total.planes += len(lists.filters) if k not in unit.terms and not unit.linear else 0
        inner = c.source >= 0
        read = _exist(plan.lists[c.source].slot_y) if inner else len(np.unique(lists.number))
        move(read, _exist(lists.y_base))
    total.planes += 0 if unit.linear else len(plan.outs)
    terms = [plan.lists[k].slot_y if k >= 0 else plan.residual[-1 - k] for k in unit.terms]
    move(sum(map(_exist, terms)), len(plan.outs))  # norm, sum and ReLU

    if foreign:
        move(plan.out.channels, plan.out.channels)
        if unit.relu:
            move(2 * len(plan.outs), len(plan.outs))
    for k, c in enumerate(unit.convolutions):
        lists = back.lists[k]
        inner = c.source >= 0
        products = 2 if inner or wanted[-1 - c.source] else 1
        total.multiply_adds += products * len(lists.where) * grid.pixels
        if k in unit.terms and (c.norm is not None or c.layer.bias is not None):
            # Sums of the gradient. A gradient of our kernels already has its sums over channels.
            move((len(lists.chosen) if foreign else _exist(lists.y)) + _exist(lists.y), 0)
        # The gradient before the norm is computed from that after it and the convolution's output.
        move(_exist(lists.y) * (1 if c.norm is None else 2), 0)
        if inner:
            before = back.lists[c.source]
            move(_exist(before.y), len(before.g))
    for i, (source, found) in enumerate(zip(plan.sources, back.inputs, strict=True)):
        readers = [k for k, c in enumerate(unit.convolutions) if c.source == -1 - i]
        if not wanted[i]:
            # The planes of the source that at least one kept weight reads.
            move(sum((np.diff(back.lists[k].start) > 0).sum() for k in readers), 0)
            continue
        move(len(found.base) + _exist(found.residual), len(found.target))
        if source.stride > 1:  # The kernel merges the phases.
            move(len(found.target), 0)
            move(0, len(np.unique(found.whole)), plan.inputs[i].grid)


def _exist(base: np.ndarray) -> int:
    """Number of planes that exist; an entry of -1 means that there is no plane."""
    return int((base >= 0).sum())
