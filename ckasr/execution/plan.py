"""From masks to lists: which planes of a unit are computed, from which kept weights, and where.

Activations inside a unit that only one convolution reads are not stored (*virtual*). A plan holds
for one shape of the inputs and one pattern of live channels. It does not depend on the values of
the weights.
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
    """Kept weights of a layer, one in each row.

    Args:
        filter, channel: output and input channel.
        dy, dx: offset of the pixel that the weight reads, in rows and columns.
        where: position in the weight's memory.
    """

    filter: Indices
    channel: Indices
    dy: Indices
    dx: Indices
    where: Indices

    def __getitem__(self, chosen: np.ndarray) -> "Rows":
        return Rows(*(getattr(self, name)[chosen] for name in Rows.__dataclass_fields__))


def kept_rows(convolution: Convolution, mask: Tensor) -> Rows:
    """Every kept weight of a layer, in the order of its mask."""
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
    """Planes of an input that convolutions read: its channels, or the phases of a stride.

    Args:
        grid: of these planes.
        channel, row, column: of each plane: its channel, and the pixel that its phase begins with.
        stride: of the convolutions.
    """

    grid: Grid
    channel: Indices
    row: Indices
    column: Indices
    stride: int

    @cached_property
    def phases(self) -> Planes:
        """The layout of phases, which are copied."""
        return Planes(self.grid, len(self.channel))

    @cached_property
    def phases_base(self) -> Indices:
        return self.phases.base(np.arange(len(self.channel)))

    def base(self, whole: Planes) -> Indices:
        """Where each plane begins. whole: the layout of the input."""
        return whole.base(self.channel) if self.stride == 1 else self.phases_base

    def step(self, whole: Planes) -> int:
        return whole.step if self.stride == 1 else self.phases.step


@dataclass
class Lists:
    """A convolution's kept weights, by filter.

    Args:
        rows: the kept weights that read live channels.
        number, shift: of each row: the plane of the source that it reads, and the distance from
            the point that it contributes to.
        filters: channels that have weights.
        slots: channels that are stored, in order.
        y: layout of the stored outputs.
        d: layout of one tile of their gradients.
        start, offset, where: the group ``weights`` of the kernels.
        y_base: of each filter, where its output begins; -1: nobody reads it.
        slot_y: of each slot, where its output begins; -1: it has no weights.
        slot_d: of each slot, where its gradient begins.
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
    """Everything about a unit that does not change from step to step.

    Args:
        unit: the unit.
        grid: of its output, and of all planes inside it.
        inputs: layout of the inputs.
        sources: planes that are read of each input.
        lists: kept weights of each convolution.
        virtual: layout of the activation that a convolution reads, if it is not stored.
        outs: output channels that are computed.
        out: layout of the output.
        alive: (C,) bool, output channels that are computed. The others are zero.
        residual: of each input that is a term of the sum: where the plane of each computed output
            channel begins; -1: it is zero.
        checked: (convolutions, channels): channels that count as zero. The sum of these
            convolutions' constants must stay at most 0 there.
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
    """Different for every plan. Its buffers are found by it."""

    def __post_init__(self) -> None:
        grid, count = self.grid, len(self.outs)
        self.out_base = self.out.base(self.outs)
        self.dead = np.flatnonzero(~self.alive)
        self.virtual_base = {k: s.base(np.arange(s.planes)) for k, s in self.virtual.items()}
        self.tiles = (grid.mask, *grid.extent)
        """The group ``grid`` of the kernels."""
        self.no_planes = np.full(count, -1, np.int64)
        self.first_row = np.zeros(count, np.int64)
        self.unchanged = np.array([[1, 0]], grid.numpy)
        """Affine form of a term that is an input, found in the first row."""
        self.nothing = np.zeros((1, 2), grid.numpy)


def make_plan(
    unit: Unit,
    masks: Sequence[Tensor],
    inputs: list[Planes],
    alive: Sequence[np.ndarray],
    constants: Sequence[np.ndarray],
) -> Plan:
    """The plan of a unit.

    Args:
        unit: the unit.
        masks: of each convolution.
        inputs: layout of each input.
        alive: of each input, (C,) bool: its other channels are exactly zero.
        constants: of each convolution, (C,): what comes out of its norm for a filter without live
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

    # Forward: which filters have live weights, which channels are then alive.
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

    # Backward: which of them are read.
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
    """Number of the plane that each weight reads, and its shift there."""
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
