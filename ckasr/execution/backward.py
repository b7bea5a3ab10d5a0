"""The backward of a unit, computed by the kernels."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from . import kernels
from .arguments import Group, floor, no_convolution
from .back import Back
from .forward import Frame
from .planes import Lease
from .workspace import Lent, Workspace

_UNKNOWN = np.zeros(0)


@dataclass(eq=False)
class Pass:
    """State of one backward of a unit.

    Args:
        frame: data that the forward has saved.
        space: workspace of the model's units.
        lease: owner of the memory that is needed until the end of this backward.
        back: lists of this backward.
        weights: argument group ``weights`` of each convolution, from these lists.
        g: memory of the gradient before the last ReLU of the unit.
        behind: argument group ``behind`` of each convolution.
        gradients: gradients of each convolution's weight (as a vector), scale and shift.
    """

    frame: Frame
    space: Workspace
    lease: Lease
    back: Back
    weights: list[Group]
    g: np.ndarray
    behind: dict[int, Group] = field(default_factory=dict)
    gradients: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=dict)


def run_backward(
    frame: Frame, space: Workspace, grad: Tensor, wanted: list[bool]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Compute the backward of a unit.

    Args:
        frame: data that the forward has saved.
        space: workspace of the model's units.
        grad: gradient of the output, of its shape.
        wanted: whether the gradient of each input is needed.

    Returns:
        The gradients of the inputs, None where not wanted, and the gradients of the parameters in
        the order of ``Convolution.parameters``, without those that do not exist.
    """
    arguments, plan = frame.arguments, frame.arguments.plan
    unit, lease = plan.unit, Lease(frame.lease.buffers)
    g, alive, totals = _incoming(frame, space, lease, grad)
    at = Pass(frame, space, lease, *arguments.back(alive), g)
    for k in unit.terms:
        if k >= 0:
            _through_norm(at, k, totals)
    readers: list[list[int]] = [[] for _ in plan.sources]
    for k in reversed(range(len(unit.convolutions))):
        j = unit.convolutions[k].source
        if j < 0:
            readers[-1 - j].insert(0, k)
        else:
            _to_virtual(at, k, j)
    found: list[Tensor | None] = []
    for i in range(len(plan.sources)):
        if wanted[i]:
            found.append(_to_input(at, i, readers[i]))
            continue
        found.append(None)
        for k in readers[i]:
            _to_weight(at, i, k)
    if unit.relu:  # otherwise the output may have been changed in place
        lease.buffers.clean.add(frame.out.ctypes.data)
    return found, [g for k in range(len(unit.convolutions)) for g in _parameters(at, k)]


def _incoming(
    frame: Frame, space: Workspace, lease: Lease, grad: Tensor
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return the gradient before the last ReLU, its channels that are not zero, and their sums.

    The last two are None if they are not known.
    """
    plan, unit = frame.arguments.plan, frame.arguments.plan.unit
    if unit.linear:
        grad = grad[:, :, None, None]
    known = space.find(grad, plan.out)
    gate = frame.out.ctypes.data if unit.relu else 0
    if known is not None and known.gate == gate:
        return known.memory, known.alive, known.totals
    memory = lease.take((plan.number, "gradient"), plan.out.size, plan.grid.numpy)
    torch.from_numpy(plan.out.view(memory)).copy_(grad)
    if unit.relu:
        planes = memory, plan.out_base, plan.out.step
        kernels.gate(planes, frame.out, floor(True, plan.grid.dtype), plan.tiles)
    return memory, None, None


def _new_gradients(at: Pass, k: int) -> tuple[Group, np.ndarray]:
    """Return the argument group ``found`` and the memory for the gradient of the weight."""
    plan = at.frame.arguments.plan
    c, kind = plan.unit.convolutions[k], plan.grid.numpy
    scale, shift = np.zeros((2, c.channels), kind)
    weight = np.zeros(math.prod(at.frame.arguments.parameters[k][0]), kind)
    at.gradients[k] = weight, scale, shift
    return (scale, shift, np.empty((len(at.back.lists[k].chosen), 3), kind)), weight


def _through_norm(at: Pass, k: int, totals: np.ndarray | None) -> None:
    """Compute the backward of the norm of convolution k, which is a term of the sum."""
    frame, arguments, plan = at.frame, at.frame.arguments, at.frame.arguments.plan
    lists, c, step = at.back.lists[k], plan.unit.convolutions[k], plan.lists[k].y.step
    found, _ = _new_gradients(at, k)
    if c.norm is None and c.layer.bias is None:
        found[2][:] = 1, 0, 0
    else:
        kernels.norm_backward(
            (at.g, at.back.g, plan.out.step), (frame.y[k], lists.y, step), totals is not None,
            _UNKNOWN if totals is None else totals, arguments.norms[k], frame.stats[k],
            lists.channels, found, plan.tiles,
        )  # fmt: skip
    at.behind[k] = at.g, at.back.g, plan.out.step, frame.y[k], lists.y, step, found[2]


def _one_tile(at: Pass, k: int, name: str = "gradient") -> Group:
    layout = at.frame.arguments.plan.lists[k].d
    return at.lease.buffers.scratch(name, layout), at.back.lists[k].d


def _to_virtual(at: Pass, k: int, j: int) -> None:
    """Compute the gradient of the output of convolution j, whose activation convolution k reads."""
    frame, arguments, plan = at.frame, at.frame.arguments, at.frame.arguments.plan
    lists, layout = at.back.lists[j], plan.lists[j].y
    g = at.lease.buffers.scratch(f"behind {j}", layout, plan.grid.stored)
    found, _ = _new_gradients(at, j)
    relu = floor(plan.unit.convolutions[j].relu, plan.grid.dtype)
    kernels.backward_to_virtual(
        at.behind[k], _one_tile(at, k), at.weights[k], at.gradients[k][0],
        (frame.y[j], lists.y, layout.step, frame.coef[j], relu), (g, lists.g, layout.step),
        arguments.norms[j], frame.stats[j], lists.channels, found, plan.tiles,
    )  # fmt: skip
    at.behind[j] = g, lists.g, layout.step, frame.y[j], lists.y, layout.step, found[2]


def _to_weight(at: Pass, i: int, k: int) -> None:
    """Compute the gradient of the weight of convolution k, without the gradient of its input."""
    memory, step = at.frame.read[i]
    source = memory, at.back.inputs[i].base, step
    kernels.backward_weight(
        at.behind[k], _one_tile(at, k), at.weights[k], at.gradients[k][0], source,
        at.frame.arguments.plan.tiles,
    )  # fmt: skip


def _to_input(at: Pass, i: int, readers: list[int]) -> Tensor:
    """Compute the gradient of input i from the gradients of the convolutions that read it."""
    frame, plan = at.frame, at.frame.arguments.plan
    source, whole, back = plan.sources[i], plan.inputs[i], at.back.inputs[i]
    memory, known = frame.inputs[i]
    behind_relu = known is not None and known.relu
    # Memory with this key is always written at the same positions, so other points remain zero.
    pattern = (at.back, i) if source.stride > 1 else back.alive.tobytes()
    key = "to input", whole, pattern
    out = at.lease.buffers.take(key, whole.size, plan.grid.numpy)
    target, step = out, whole.step
    if source.stride > 1:
        key_of_phases = plan.number, "to phases", i
        target = at.lease.take(key_of_phases, source.phases.size, plan.grid.numpy)
        step = source.phases.step
    parts = [
        (at.behind[k], _one_tile(at, k, f"gradient {n}"), at.weights[k], at.gradients[k][0])
        for n, k in enumerate(readers)
    ]
    while len(parts) < 2:
        parts.append(no_convolution(plan.grid, len(back.base)))
    read, read_step = frame.read[i]
    totals = np.zeros(whole.channels)
    kernels.backward_to_input(
        parts[0], len(readers) == 2, parts[1], (at.g, back.residual, plan.out.step),
        (read, back.base, read_step, back.channel, behind_relu, floor(True, plan.grid.dtype)),
        (target, back.target, step), totals, plan.tiles,
    )  # fmt: skip
    if source.stride > 1:
        kernels.merge_phases(
            source.phases.group(target, back.target), whole.group(out, back.whole),
            back.row, back.column, source.stride, plan.grid.images,
        )  # fmt: skip
    gate = memory.ctypes.data if behind_relu else 0
    lent = Lent(out, whole, back.alive, gate=gate, totals=totals)
    return at.space.lend(key, lent, plan.unit.linear)


def _parameters(at: Pass, k: int) -> list[Tensor | None]:
    """Return the gradients of a convolution's weight, bias, scale and shift, if they exist."""
    frame, arguments = at.frame, at.frame.arguments
    shape, strides, has_bias, has_scale = arguments.parameters[k]
    flat, scale, shift = at.gradients[k]
    found: list[Tensor | None] = [torch.from_numpy(np.ndarray(shape, flat.dtype, flat, 0, strides))]
    d_shift = torch.from_numpy(shift)
    if has_bias:
        mode = arguments.norms[k][0]
        if mode == kernels.NO_NORM:
            found.append(d_shift)
        elif mode == kernels.TRAINING:
            # The output does not depend on the bias, because the batch mean is subtracted.
            found.append(torch.zeros_like(d_shift))
        else:
            found.append(d_shift * torch.from_numpy(frame.coef[k][:, 0].copy()))
    if has_scale:
        found += [torch.from_numpy(scale), d_shift]
    return found
