"""Lists for the backward of a plan: weights by the plane they read, and planes with a gradient."""

from dataclasses import dataclass

import numpy as np

from .plan import Plan
from .unit import Indices


@dataclass
class BackLists:
    """Live weights of a convolution, sorted by the plane they read, for outputs with a gradient.

    Args:
        chosen: indices into ``Lists.slots`` of the output channels whose gradient is not zero.
        channels: these output channels.
        y, d: first positions of the output and of the gradient of each of these channels.
        g: first position of the gradient before the ReLU, if the activation is virtual.
        start, offset, where: argument group ``weights`` of the kernels.
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
    """The planes of an input for which a gradient is computed.

    Args:
        base: first position of each plane.
        target: first position of the gradient of each plane; with a stride, among the phases.
        residual: first position of the gradient of the sum that is added unchanged (residual
            connection); -1 if there is none.
        whole: first position of the gradient of the channel of each plane.
        channel: channel of each plane.
        row, column: first pixel of the phase of each plane.
        alive: (C,) bool, whether each channel has a gradient.
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
    """Lists for the backward of a plan, for one set of output channels with a gradient.

    Args:
        lists: lists of each convolution.
        inputs: planes of each input.
        g: first position of the gradient of each output channel that has one.
    """

    lists: list[BackLists]
    inputs: list[BackInput]
    g: Indices


def make_back(plan: Plan, alive: np.ndarray) -> Back:
    """Return the lists for the backward of a plan.

    Args:
        plan: the plan.
        alive: (C,) bool, whether the gradient of each output channel is not zero.
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
