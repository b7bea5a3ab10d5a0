"""Plans: lists, made from the masks, of the planes that a unit computes and of their kept weights.

An activation inside a unit is not stored as a whole (it is *virtual*), because only one convolution
reads it. A plan is valid for one shape of the inputs and one set of channels that are not zero. It
does not depend on the values of the weights. A *live* weight is a kept weight whose input channel
is not zero.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from .planes import Grid, Planes, Scratch, Tiled
from .unit import Convolution, Indices, Unit

NONE: Indices = np.zeros(0, np.int64)


@dataclass
class Rows:
    """Kept weights of a layer, as arrays with one entry per weight.

    Args:
        filter, channel: output channel and input channel of each weight.
        dy, dx: offset of the pixel that each weight reads, in rows and columns.
        where: position of each weight in the memory of the weight tensor.
    """

    filter: Indices
    channel: Indices
    dy: Indices
    dx: Indices
    where: Indices

    def __getitem__(self, chosen: np.ndarray) -> "Rows":
        return Rows(*(getattr(self, name)[chosen] for name in Rows.__dataclass_fields__))


def kept_rows(convolution: Convolution, mask: Tensor) -> Rows:
    """Return all kept weights of a layer, in the order of its mask."""
    weight = convolution.layer.weight
    _, groups, _, padding, dilation = convolution.geometry()
    index = mask.nonzero().numpy()
    where = index @ np.array(weight.stride(), np.int64)
    if index.shape[1] == 2:  # a linear layer is a 1x1 convolution of 1x1 images
        index = np.pad(index, ((0, 0), (0, 2)))
    o, i, ky, kx = index.T
    per_group = weight.shape[0] // groups, weight.shape[1]
    channel = o // per_group[0] * per_group[1] + i
    return Rows(o, channel, ky * dilation[0] - padding[0], kx * dilation[1] - padding[1], where)


@dataclass
class Source:
    """Planes of an input that the convolutions of a unit read.

    They are channels of the input if the stride is 1. For a stride s, each plane is a phase: every
    s-th row and every s-th column of a channel, from one pixel on.

    Args:
        grid: grid of these planes.
        channel: channel of each plane.
        row, column: first pixel of the phase of each plane.
        stride: stride of the convolutions.
    """

    grid: Grid
    channel: Indices
    row: Indices
    column: Indices
    stride: int

    @cached_property
    def phases(self) -> Planes:
        """Layout of the phases, which are copies of the input."""
        return Planes(self.grid, len(self.channel))

    @cached_property
    def phases_base(self) -> Indices:
        """First position of each phase."""
        return self.phases.base(np.arange(len(self.channel)))

    def base(self, whole: Planes) -> Indices:
        """Return the first position of each plane. ``whole`` is the layout of the input."""
        return whole.base(self.channel) if self.stride == 1 else self.phases_base

    def step(self, whole: Planes) -> int:
        """Return the distance between two tiles of a plane. ``whole`` is the input's layout."""
        return whole.step if self.stride == 1 else self.phases.step


@dataclass
class Lists:
    """Live weights of a convolution, sorted by filter, and the positions of its outputs.

    Args:
        rows: live weights.
        number: index of the plane of the source that each weight reads.
        shift: distance from the point of the output to the point that each weight reads.
        filters: output channels with live weights.
        slots: output channels that are stored, in ascending order.
        y: layout of the stored outputs.
        d: layout of one tile of their gradients.
        start, offset, where: argument group ``weights`` of the kernels.
        y_base: first position of the output of each filter; -1 if nothing reads the output.
        slot_y: first position of the output of each stored channel; -1 if it has no live weights.
        slot_d: first position of the gradient of each stored channel.
    """

    rows: Rows
    number: Indices
    shift: Indices
    filters: Indices
    slots: Indices
    y: Tiled
    d: Scratch
    start: Indices
    offset: Indices
    where: Indices
    y_base: Indices
    slot_y: Indices
    slot_d: Indices


@dataclass(eq=False)
class Plan:
    """Data of a unit that is the same at every step.

    Args:
        unit: the unit.
        grid: grid of its output, and of all planes inside it.
        inputs: layout of each input.
        sources: planes of each input that the convolutions read.
        lists: live weights of each convolution.
        virtual: layout of the virtual activation that a convolution reads, by the index of the
            convolution.
        outs: output channels that are computed.
        out: layout of the output.
        alive: (C,) bool, whether each output channel is computed. The others are zero.
        residual: for each input that is a term of the sum, the first position of its plane for each
            computed output channel; -1 if this channel of the input is zero.
        checked: pairs (convolutions, channels). The plan is valid as long as the sum of the
            constants of these convolutions (see ``make_plan``) is at most 0 in these channels.
    """

    unit: Unit
    grid: Grid
    inputs: list[Planes]
    sources: list[Source]
    lists: list[Lists]
    virtual: dict[int, Scratch]
    outs: Indices
    out: Planes
    alive: np.ndarray
    residual: dict[int, Indices]
    checked: list[tuple[list[int], Indices]]
    number: int = field(default_factory=itertools.count().__next__)
    """Unique number of the plan, which is part of the keys of its buffers."""

    def __post_init__(self) -> None:
        grid, count = self.grid, len(self.outs)
        self.out_base = self.out.base(self.outs)
        self.dead = np.flatnonzero(~self.alive)
        self.virtual_base = {k: s.base(np.arange(s.planes)) for k, s in self.virtual.items()}
        self.tiles = (grid.mask, *grid.extent)
        """Argument group ``grid`` of the kernels."""
        self.no_planes = np.full(count, -1, np.int64)
        self.first_row = np.zeros(count, np.int64)
        self.unchanged = np.array([[1, 0]], grid.numpy)
        """Affine coefficients (1, 0) for a term of the sum that is an input."""
        self.nothing = np.zeros((1, 2), grid.numpy)


def make_plan(
    unit: Unit,
    masks: Sequence[Tensor],
    inputs: list[Planes],
    alive: Sequence[np.ndarray],
    constants: Sequence[np.ndarray],
) -> Plan:
    """Return the plan of a unit.

    Args:
        unit: the unit.
        masks: mask of each convolution.
        inputs: layout of each input.
        alive: (C,) bool for each input; the channels with False are exactly zero.
        constants: (C,) for each convolution, the output of its norm for a filter without live
            weights.
    """
    convolutions = unit.convolutions
    shapes = [planes.shape for planes in inputs]
    sizes: list[tuple[int, int]] = []
    for c in convolutions:
        sizes.append(c.output_size(shapes[-1 - c.source][2:] if c.source < 0 else sizes[c.source]))
    first = unit.terms[0]
    size = sizes[first] if first >= 0 else shapes[-1 - first][2:]
    grid = replace(inputs[0].grid, height=size[0], width=size[1])

    # In forward order: find the filters with live weights, and the channels that are not zero.
    rows: list[Rows] = []
    living: list[np.ndarray] = []
    checked: list[tuple[list[int], Indices]] = []
    for k, c in enumerate(convolutions):
        before = alive[-1 - c.source] if c.source < 0 else living[c.source]
        every = kept_rows(c, masks[k].cpu())
        rows.append(every[before[every.channel]])
        live = np.zeros(c.channels, bool)
        live[rows[k].filter] = True
        if k not in unit.terms:
            if c.relu:
                zero = ~live & (constants[k] <= 0)
                checked.append(([k], np.flatnonzero(zero)))
                live = ~zero
            else:
                live[:] = True
        living.append(live)
    terms = [k for k in unit.terms if k >= 0]
    shares = [living[k] if k >= 0 else alive[-1 - k] for k in unit.terms]
    if unit.relu:
        total = sum((constants[k] for k in terms), np.zeros(len(shares[0])))
        out_alive = np.logical_or.reduce([*shares, total > 0])
        checked.append((terms, np.flatnonzero(~out_alive)))
    else:
        out_alive = np.ones(len(shares[0]), bool)
    outs = np.flatnonzero(out_alive)

    # In backward order: find the channels that are read.
    stored: list[np.ndarray] = [np.zeros(0, bool)] * len(convolutions)
    for k in reversed(range(len(convolutions))):
        if k in unit.terms:
            stored[k] = out_alive
        else:
            reader = next(j for j, c in enumerate(convolutions) if c.source == k)
            stored[k] = np.zeros(convolutions[k].channels, bool)
            stored[k][rows[reader].channel] = True

    residual_of = {-1 - k for k in unit.terms if k < 0}
    sources = [
        _source(i, unit, rows, grid, alive[i], out_alive if i in residual_of else None)
        for i in range(unit.inputs)
    ]
    lists, virtual = [], {}
    for k, c in enumerate(convolutions):
        slots = np.flatnonzero(stored[k])
        if c.source < 0:
            source = sources[-1 - c.source]
            number, shift = _planes_of(rows[k], source, grid)
            base = source.base(inputs[-1 - c.source])
        else:
            before = np.flatnonzero(stored[c.source])
            virtual[k] = Scratch(grid, len(before))
            number = np.searchsorted(before, rows[k].channel)
            shift = rows[k].dy * grid.row + rows[k].dx
            base = virtual[k].base(np.arange(len(before)))
        lists.append(_lists(grid, rows[k], slots, number, shift, base))
    out = Planes(grid, len(out_alive))
    residual = {
        i: inputs[i].base(np.where(alive[i], np.arange(len(alive[i])), -1))[outs]
        for i in residual_of
    }
    return Plan(
        unit, grid, inputs, sources, lists, virtual, outs, out, out_alive, residual, checked
    )


def _source(
    i: int, unit: Unit, rows: list[Rows], grid: Grid, alive: np.ndarray, residual: np.ndarray | None
) -> Source:
    """Return the planes of an input that are read.

    Args:
        i: index of the input.
        unit: the unit.
        rows: live weights of each convolution.
        grid: grid of the unit's output.
        alive: (C,) bool, whether each channel of the input may differ from zero.
        residual: (C,) bool, whether each output channel is computed, if the input is a term of the
            sum; else None.
    """
    readers = [k for k, c in enumerate(unit.convolutions) if c.source == -1 - i]
    stride = unit.convolutions[readers[0]].geometry()[0] if readers else 1
    keys = [
        (rows[k].channel * stride + rows[k].dy % stride) * stride + rows[k].dx % stride
        for k in readers
    ]
    if residual is not None:
        keys.append(np.flatnonzero(residual & alive))
    used = np.unique(np.concatenate(keys)) if keys else NONE
    return Source(grid, used // stride // stride, used // stride % stride, used % stride, stride)


def _planes_of(rows: Rows, source: Source, grid: Grid) -> tuple[Indices, Indices]:
    """Return the index of the plane that each weight reads, and the shift in this plane."""
    s = source.stride
    known = (source.channel * s + source.row) * s + source.column
    asked = (rows.channel * s + rows.dy % s) * s + rows.dx % s
    return np.searchsorted(known, asked), rows.dy // s * grid.row + rows.dx // s


def _lists(
    grid: Grid,
    rows: Rows,
    slots: Indices,
    number: Indices,
    shift: Indices,
    base: Indices,
) -> Lists:
    """Return the lists of a convolution.

    Args:
        grid: grid of its output.
        rows: its live weights.
        slots, number, shift: as in ``Lists``.
        base: first position of each plane that it reads.
    """
    filters = np.unique(rows.filter)
    order = np.lexsort((shift, number, rows.filter))
    start = np.searchsorted(rows.filter[order], filters)
    y, d = Tiled(grid, len(slots)), Scratch(grid, len(slots))
    at = np.searchsorted(slots, filters)
    stored = np.isin(filters, slots)
    has = np.isin(slots, filters)
    return Lists(
        rows=rows,
        number=number,
        shift=shift,
        filters=filters,
        slots=slots,
        y=y,
        d=d,
        start=np.append(start, len(rows.filter)).astype(np.int64),
        offset=(base[number] + shift)[order].astype(np.int64),
        where=rows.where[order],
        y_base=y.base(np.where(stored, at, -1)),
        slot_y=y.base(np.where(has, np.arange(len(slots)), -1)),
        slot_d=d.base(np.arange(len(slots))),
    )
