"""The backward of a plan: weights by the plane they read, and the planes with a gradient."""

from dataclasses import dataclass

import numpy as np

from .plan import Plan
from .unit import Indices


@dataclass
class BackLists:
    """A convolution's kept weights by plane of its source, for outputs whose gradient is not zero.

    Args:
        chosen: numbers of the slots (`Lists`) that have such a gradient.
        channels: of these slots.
        y, d: of each of them, where its output and its gradient begin.
        g: where the gradient in front of its ReLU begins, if that is not stored.
        start, offset, where: the group ``weights`` of the kernels.
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

    Args:
        base: where each of them begins.
        target: where its gradient begins: among the phases, if there is a stride.
        residual: where the gradient of the sum begins that reaches it as it is; -1: nowhere.
        whole: where the gradient of its channel begins.
        channel, row, column: of each plane: its channel, and the pixel its phase begins with.
        alive: (C,) bool, channels that get a gradient.
    """

    base: Indices
    target: Indices
    residual: Indices
    whole: Indices
    channel: Indices
    row: Indices
    column: Indices
    alive: np.ndarray


@dataclass(eq=False)
class Back:
    """What a backward needs of a plan, for one set of output channels with a gradient.

    Args:
        lists: of each convolution.
        inputs: of each input.
        g: where the gradient of the sum begins, for the chosen slots of its convolutions.
    """

    lists: list[BackLists]
    inputs: list[BackInput]
    g: Indices


def make_back(plan: Plan, alive: np.ndarray) -> Back:
    """Lists of a backward, from the output back to the inputs.

    alive: (C,) bool, output channels whose gradient is not zero.
    """
    convolutions = plan.unit.convolutions
    chosen: dict[int, Indices] = {}
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
        target = whole if source.stride == 1 else source.phases_base[number]
        inputs.append(
            BackInput(
                base=source.base(plan.inputs[i])[number],
                target=target,
                residual=residual[number],
                whole=whole,
                channel=channel,
                row=source.row[number],
                column=source.column[number],
                alive=lives,
            )
        )
        planes.append(number)
    found = []
    for k, c in enumerate(convolutions):
        lists, slots = plan.lists[k], chosen[k]
        rows, number, shift = lists.rows[kept[k]], lists.number[kept[k]], lists.shift[kept[k]]
        order = np.lexsort((shift, rows.filter, number))
        read = planes[-1 - c.source] if c.source < 0 else chosen[c.source]
        d = lists.slot_d[np.searchsorted(lists.slots, rows.filter)]
        start = np.searchsorted(number[order], read)
        found.append(
            BackLists(
                chosen=slots,
                channels=lists.slots[slots],
                y=lists.slot_y[slots],
                d=lists.slot_d[slots],
                g=lists.y.base(slots),
                start=np.append(start, len(number)).astype(np.int64),
                offset=(d - shift)[order].astype(np.int64),
                where=rows.where[order],
            )
        )
    slots = np.flatnonzero(alive[plan.outs])
    return Back(found, inputs, plan.out_base[slots])
