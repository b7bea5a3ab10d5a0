"""From masks to lists: which planes of a unit are computed, from which kept weights, and where.

A *unit* is what one autograd function computes: one or two sums of convolutions, each with its
batch norm, and a ReLU behind the sum. Activations inside a unit that only one convolution reads
are not stored (*virtual*). A plan holds for one shape of the inputs and one pattern of live
channels; it says nothing of the values of the weights.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from .planes import Grid, Planes, Scratch, Tiled

Indices = np.ndarray  # int64, one-dimensional
NONE = np.zeros(0, np.int64)


@dataclass
class Convolution:
    """A convolution or linear layer with what follows it.

    name: of its weight among the masks. source: the convolution of the same unit whose activation
    it reads, or -1 - i for the unit's input i. relu: whether a ReLU follows; for a convolution
    that is read within the unit.
    """

    name: str
    layer: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm2d | None
    source: int
    relu: bool = True

    def geometry(self) -> tuple[int, int, tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Stride, groups, kernel size, padding and dilation."""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return 1, 1, (1, 1), (0, 0), (1, 1)
        padding = layer.padding
        if isinstance(padding, str):
            half = [
                d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
            ]
            padding = (half[0], half[1]) if padding == "same" else (0, 0)
        return layer.stride[0], layer.groups, layer.kernel_size, padding, layer.dilation

    @cached_property
    def channels(self) -> int:
        return self.layer.weight.shape[0]

    def constants(self, channels: Indices | slice = slice(None)) -> np.ndarray:
        """What comes out of the norm for filters without live weights: their input is their bias.

        The same for every pixel; in train mode the shift alone, as a batch without variance has no
        deviation from its mean.
        """
        norm = self.norm

        def chosen(value: Tensor | None, otherwise: float) -> np.ndarray:
            if value is None:
                return np.full(self.channels, otherwise)[channels]
            return value.detach().numpy()[channels]

        if norm is None:
            return chosen(self.layer.bias, 0)
        shift = chosen(norm.bias, 0)
        if norm.training:
            return shift
        deviation = np.float64(chosen(self.layer.bias, 0)) - chosen(norm.running_mean, 0)
        scale = chosen(norm.weight, 1) / np.sqrt(chosen(norm.running_var, 1) + norm.eps)
        return shift + deviation * scale


@dataclass
class Unit:
    """Convolutions in the order of computation, and the sum that is put out.

    terms: what is summed: convolutions by number, inputs as -1 - i.
    """

    name: str
    convolutions: list[Convolution]
    terms: list[int]
    relu: bool
    inputs: int
    modules: list[nn.Module] = field(default_factory=list)
    """All modules that are computed within it, in whatever way."""

    @property
    def linear(self) -> bool:
        """Whether its tensors are (N, features)."""
        return isinstance(self.convolutions[0].layer, nn.Linear)


@dataclass
class Rows:
    """Kept weights of a layer: filter, input channel, offsets in rows and columns, memory."""

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
    """Planes that an input's readers read: channels as they are, or the phases of a stride.

    channel, row, column: of each plane. planes: their layout where they are copied (phases, or an
    input that is packed). lists hold plane numbers.
    """

    grid: Grid
    channel: Indices
    row: Indices
    column: Indices
    stride: int

    @property
    def phases(self) -> Planes:
        return Planes(self.grid, len(self.channel))


@dataclass
class Lists:
    """A convolution's kept weights, by filter.

    slots: channels that are stored, in order. filters: channels that have weights. start, offset,
    where: as `convolve` reads them. y_base: of each filter, -1 where nobody reads it. slot_y: of
    each slot, where its output is; -1: no weights. number, shift: the plane of the source that
    each row reads, and how far from the point it computes.
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


@dataclass
class BackLists:
    """The same by plane of the source, for the slots whose gradient is not zero.

    chosen: numbers of these slots; channels, y, d, g: theirs, as in `Lists`; g: their planes where
    they are virtual.
    """

    chosen: Indices
    channels: Indices
    y: Indices
    d: Indices
    g: Indices
    start: Indices
    offset: Indices
    where: Indices


@dataclass
class BackInput:
    """The planes of an input that get a gradient.

    base: where each is read. target: where its gradient is written (of a stride: as of the
    phases). residual: where the gradient of a sum begins that reaches it as it is; -1: nowhere.
    whole, row, column: channel's plane in the gradient, and its phase. alive: (C,) bool.
    """

    base: Indices
    target: Indices
    residual: Indices
    whole: Indices
    row: Indices
    column: Indices
    alive: np.ndarray


@dataclass
class Back:
    """What of a plan a backward needs, for one set of output channels with a gradient."""

    lists: list[BackLists]
    inputs: list[BackInput]
    g: Indices
    """Planes of the gradient at the output, for the slots of its convolutions that are chosen."""


@dataclass
class Plan:
    """Everything about a unit that does not change from step to step."""

    unit: Unit
    grid: Grid
    inputs: list[Planes]
    sources: list[Source | None]
    lists: list[Lists]
    virtual: dict[int, Scratch]
    outs: Indices
    out: Planes
    alive: np.ndarray
    residual: dict[int, Indices]
    """Of each input that is a term of the sum: where the plane of each output channel begins."""
    checked: list[tuple[list[int], Indices]] = field(default_factory=list)
    """(convolutions, channels): channels taken for zero; their constants must stay at most 0."""
    number: int = field(default_factory=itertools.count().__next__)
    """Different for every plan: what its buffers are called by."""
    backs: dict[bytes, Back] = field(default_factory=dict)

    @cached_property
    def out_base(self) -> Indices:
        return self.out.base(self.outs)

    @cached_property
    def dead(self) -> Indices:
        """Output channels that are zero and not computed."""
        return np.flatnonzero(~self.alive)

    @cached_property
    def no_planes(self) -> Indices:
        """For each output channel: no plane."""
        return np.full(len(self.outs), -1, np.int64)

    @cached_property
    def virtual_base(self) -> dict[int, Indices]:
        return {k: s.base(np.arange(s.planes)) for k, s in self.virtual.items()}

    def back(self, alive: np.ndarray | None) -> Back:
        """For a gradient that is zero in the channels that are not alive; None: in no channel."""
        if alive is None:
            alive = np.ones(self.out.channels, bool)
        key = alive.tobytes()
        if key not in self.backs:
            self.backs[key] = make_back(self, alive)
        return self.backs[key]

    @cached_property
    def _read_bases(self) -> list[Indices]:
        return [self._read_base(i) for i in range(len(self.sources))]

    def read_base(self, i: int) -> Indices:
        """Where each plane begins that is read of an input: its own, or of its phases."""
        return self._read_bases[i]

    def _read_base(self, i: int) -> Indices:
        source = self.sources[i]
        if source.stride == 1:
            return self.inputs[i].base(source.channel)
        return source.phases.base(np.arange(len(source.channel)))

    def read_step(self, i: int) -> int:
        source = self.sources[i]
        return self.inputs[i].step if source.stride == 1 else source.phases.step

    def holds(self) -> bool:
        """Whether the channels taken for zero still are."""
        convolutions = self.unit.convolutions
        for terms, channels in self.checked:
            if len(channels):
                total = sum(convolutions[k].constants(channels) for k in terms)
                if not np.all(total <= 0):
                    return False
        return True


def output_size(convolution: Convolution, size: tuple[int, int]) -> tuple[int, int] | None:
    """Height and width behind a layer that keeps them, but for its stride; None for another."""
    stride, _, kernel, padding, dilation = convolution.geometry()
    for k, p, d in zip(kernel, padding, dilation, strict=True):
        if 2 * p != d * (k - 1):
            return None
    return -(-size[0] // stride), -(-size[1] // stride)


def make_plan(
    unit: Unit,
    masks: Sequence[Tensor],
    inputs: list[Planes],
    alive: Sequence[np.ndarray],
) -> Plan:
    """The plan of a unit for inputs (N, C, H, W) whose channels are alive or exactly zero.

    masks: of each convolution.
    """
    convolutions = unit.convolutions
    shapes = [planes.shape for planes in inputs]
    sizes: list[tuple[int, int]] = []
    for c in convolutions:
        size = shapes[-1 - c.source][2:] if c.source < 0 else sizes[c.source]
        sizes.append(output_size(c, size))
    first = unit.terms[0]
    size = sizes[first] if first >= 0 else shapes[-1 - first][2:]
    grid = Grid(shapes[0][0], *size, inputs[0].grid.border, inputs[0].grid.dtype)

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
                zero = ~live & (c.constants() <= 0)
                checked.append(([k], np.flatnonzero(zero)))
                live = ~zero
            else:
                live[:] = True
        living.append(live)
    terms = [k for k in unit.terms if k >= 0]
    shares = [living[k] if k >= 0 else alive[-1 - k] for k in unit.terms]
    if unit.relu:
        constants = sum((convolutions[k].constants() for k in terms), np.zeros(len(shares[0])))
        out_alive = np.logical_or.reduce([*shares, constants > 0])
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
            whole = inputs[-1 - c.source]
            base = (
                whole.base(source.channel)
                if source.stride == 1
                else source.phases.base(np.arange(len(source.channel)))
            )
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


def make_back(plan: Plan, alive: np.ndarray) -> Back:
    """Lists of a backward, from the output's channels that have a gradient back to the inputs."""
    convolutions = plan.unit.convolutions
    chosen: dict[int, Indices] = {}
    found: list[BackLists | None] = [None] * len(convolutions)
    for k in plan.unit.terms:
        if k >= 0:
            chosen[k] = np.flatnonzero(alive[plan.lists[k].slots])
    kept: dict[int, np.ndarray] = {}
    for k in reversed(range(len(convolutions))):
        lists = plan.lists[k]
        gets = np.zeros(convolutions[k].channels, bool)
        gets[lists.slots[chosen[k]]] = True
        kept[k] = gets[lists.rows.filter]
        if convolutions[k].source >= 0:
            chosen[convolutions[k].source] = np.unique(lists.number[kept[k]])
    inputs, planes = [], []
    for i, source in enumerate(plan.sources):
        reaches = np.zeros(len(source.channel), bool)
        for k, c in enumerate(convolutions):
            if c.source == -1 - i:
                reaches[plan.lists[k].number[kept[k]]] = True
        residual = np.full(len(source.channel), -1, np.int64)
        if i in plan.residual:
            position = np.full(plan.out.channels, -1, np.int64)
            position[plan.outs] = plan.out_base
            position[~alive] = -1
            residual = position[source.channel]
            reaches |= residual >= 0
        number = np.flatnonzero(reaches)
        channel = source.channel[number]
        whole = plan.inputs[i].base(channel)
        lives = np.zeros(plan.inputs[i].channels, bool)
        lives[channel] = True
        target = whole if source.stride == 1 else source.phases.base(number)
        inputs.append(
            BackInput(
                base=plan.read_base(i)[number],
                target=target,
                residual=residual[number],
                whole=whole,
                row=source.row[number],
                column=source.column[number],
                alive=lives,
            )
        )
        planes.append(number)
    for k, c in enumerate(convolutions):
        lists, slots = plan.lists[k], chosen[k]
        rows, number, shift = lists.rows[kept[k]], lists.number[kept[k]], lists.shift[kept[k]]
        order = np.lexsort((shift, rows.filter, number))
        read = planes[-1 - c.source] if c.source < 0 else chosen[c.source]
        d = lists.slot_d[np.searchsorted(lists.slots, rows.filter)]
        start = np.searchsorted(number[order], read)
        found[k] = BackLists(
            chosen=slots,
            channels=lists.slots[slots],
            y=lists.slot_y[slots],
            d=lists.slot_d[slots],
            g=lists.y.base(slots),
            start=np.append(start, len(number)).astype(np.int64),
            offset=(d - shift)[order].astype(np.int64),
            where=rows.where[order],
        )
    slots = np.flatnonzero(alive[plan.outs])
    return Back([b for b in found if b is not None], inputs, plan.out_base[slots])
