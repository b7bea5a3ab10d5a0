"""A unit as a function of tensors: one autograd function that calls the kernels if possible."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .arguments import Arguments, constants, norm_group
from .backward import run_backward
from .forward import Frame, Use
from .plan import make_plan
from .planes import Grid, Planes
from .unit import Unit, hook_tables
from .workspace import Lent, Workspace


class BoundUnit:
    """Function that computes a unit: called with the input tensors, it returns the output tensor.

    It calls the layers of the model instead of the kernels if the kernels do not support the call:
    for other types, devices or shapes, under autocast, if a layer of the unit has hooks, and if a
    batch is too small for batch statistics.

    Args:
        unit: the unit.
        workspace: workspace of the model's units.
    """

    def __init__(self, unit: Unit, workspace: Workspace) -> None:
        self.unit = unit
        self.workspace = workspace
        self.border = 0 if unit.linear else workspace.border
        self._buffers = workspace.buffers
        self._plans: dict[object, tuple[Arguments, list[Any]]] = {}
        """Arguments by key. The list keeps the objects alive whose ids are part of the key."""
        self._fitting: dict[object, bool] = {}
        self._frames: list[Frame] = workspace.frames()
        self._norms = [c.norm for c in unit.convolutions if c.norm is not None]
        # Reading the dictionaries of a module is much faster than reading its attributes.
        self._weights: list[dict[str, Any]] = [c.layer._parameters for c in unit.convolutions]
        self._parameters: list[tuple[dict[str, Any], str]] = []
        for c in unit.convolutions:
            for module in (c.layer, c.norm):
                if module is not None:
                    self._parameters += [(module._parameters, name) for name in ("weight", "bias")]
        names = "running_mean", "running_var", "num_batches_tracked"
        self._statistics = [(n._buffers, name) for n in self._norms for name in names]
        self._hooks = [table for module in unit.modules for table in hook_tables(module)]
        self.plain_calls = 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        if not self.applies(inputs):
            self.plain_calls += self.workspace.enabled
            return self.plain(*inputs)
        parameters = [p for table, name in self._parameters if (p := table[name]) is not None]
        statistics = [b for table, name in self._statistics if (b := table[name]) is not None]
        addresses = [t.data_ptr() for t in (*parameters, *statistics)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *parameters)):
            return _Function.apply(self, addresses, len(inputs), *inputs, *parameters)
        images = self.planar(inputs)
        arguments, lent = self._prepare(images, addresses)
        return Frame(arguments, self.workspace.buffers, lent).run(self.workspace, images)

    def planar(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the inputs as (N, C, H, W)."""
        return [x[:, :, None, None] for x in inputs] if self.unit.linear else inputs

    def applies(self, inputs: tuple[Tensor, ...]) -> bool:
        """Return whether the kernels can compute the output for these inputs."""
        if not self.workspace.enabled or any(self._hooks) or torch.is_autocast_enabled("cpu"):
            return False
        if torch.is_inference_mode_enabled():  # tensors then have no version counter
            return False
        if not all(name in table for table, name in self._parameters):  # one is parametrized
            return False
        dtype = self._weights[0]["weight"].dtype
        if dtype not in (torch.float32, torch.float64):
            return False
        for x in inputs:
            if type(x) not in (Tensor, nn.Parameter) or not x.is_cpu or x.dtype != dtype:
                return False
        key = *(x.shape for x in inputs), *(n.training and n.momentum for n in self._norms)
        if key not in self._fitting:
            self._fitting[key] = self._fits([x.shape for x in inputs])
        return self._fitting[key]

    def _fits(self, shapes: list[torch.Size]) -> bool:
        """Return whether the kernels support these shapes and the present modes of the norms."""
        dimensions = 2 if self.unit.linear else 4
        if any(len(shape) != dimensions or not shape.numel() for shape in shapes):
            return False
        for c in self.unit.convolutions:
            if c.source < 0 and shapes[-1 - c.source][1] != c.input_channels:
                return False
        if len(self.unit.term_shapes(shapes)) > 1:  # a sum that broadcasts
            return False
        training = [n for n in self._norms if n.training]
        if any(n.momentum is None for n in training):  # a cumulative average
            return False
        # One value per channel cannot be normalised; the layers of the model raise the error.
        return not training or shapes[0][0] * self.unit.smallest_plane(shapes[0][2:]) > 1

    def plain(self, *inputs: Tensor) -> Tensor:
        """Return the output of the unit, computed by the layers of the model."""
        values: list[Tensor] = []
        for k, c in enumerate(self.unit.convolutions):
            x = c.layer(inputs[-1 - c.source] if c.source < 0 else values[c.source])
            if c.norm is not None:
                x = c.norm(x)
            values.append(torch.relu(x) if c.relu and k not in self.unit.terms else x)
        terms = [values[k] if k >= 0 else inputs[-1 - k] for k in self.unit.terms]
        out = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        return torch.relu(out) if self.unit.relu else out

    def forward(self, inputs: Sequence[Tensor], addresses: list[int]) -> tuple[Tensor, Frame]:
        """Return the output, and the frame that its backward needs.

        Args:
            inputs: input tensors, (N, C, H, W).
            addresses: addresses of the parameters and buffers.
        """
        arguments, lent = self._prepare(inputs, addresses)
        while self._frames:
            frame = self._frames.pop()
            if frame.usable(arguments, lent):
                break
        else:
            frame = Frame(arguments, self.workspace.buffers, lent)
        return frame.run(self.workspace, inputs), frame

    def use(self, frame: Frame) -> Use:
        """Return the owner of a frame, which can be used again when the owner is deleted."""
        return Use(frame, self._frames)

    def backward(
        self, frame: Frame, grad: Tensor, wanted: list[bool]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Return the gradients of the inputs (None if not wanted) and of the parameters."""
        return run_backward(frame, self.workspace, grad, wanted)

    def _prepare(
        self, inputs: Sequence[Tensor], addresses: list[int]
    ) -> tuple[Arguments, list[Lent | None]]:
        """Return the arguments of the kernels, and the ``Lent`` objects of the inputs.

        An input that no unit has computed has None instead.
        """
        space, convolutions = self.workspace, self.unit.convolutions
        if self._buffers is not space.buffers:
            self._plans.clear()
            self._buffers = space.buffers
        masks = [space.masks(c.name) for c in convolutions]
        lent = [self._known(x) for x in inputs]
        # By id: a plan returns the same array at every step, and self._plans keeps it alive.
        key: list[object] = [
            (x.shape, x.dtype) if known is None else id(known.alive)
            for x, known in zip(inputs, lent, strict=True)
        ]
        for n in self._norms:
            key += n.training, n.eps, n.momentum
        for table in self._weights:
            key.append(table["weight"].stride())
        for mask in masks:  # They can be replaced or changed in place without a call of `update`.
            key += id(mask), mask._version
        name = tuple(key)
        arguments, _ = self._plans.get(name, (None, None))
        if arguments is not None and arguments.addresses != addresses:
            arguments = Arguments(arguments.plan, addresses)
            self._plans[name] = arguments, [*lent, *masks]
        if arguments is None or not arguments.holds():
            planes = [
                self._planes(x) if known is None else known.planes
                for x, known in zip(inputs, lent, strict=True)
            ]
            alive = [
                np.ones(p.channels, bool) if known is None else known.alive
                for p, known in zip(planes, lent, strict=True)
            ]
            shifts = [constants(norm_group(c, planes[0].grid)) for c in convolutions]
            plan = make_plan(self.unit, masks, planes, alive, shifts)
            arguments = Arguments(plan, addresses)
            self._plans[name] = arguments, [*lent, *masks]
        return arguments, lent

    def _known(self, x: Tensor) -> Lent | None:
        """Return the properties of an input that a unit has computed, in this unit's layout."""
        known = self.workspace.known(x)
        if known is None or known.planes.grid.border != self.border:
            return None
        return known if known.planes.grid.dtype == x.dtype else None

    def _planes(self, x: Tensor) -> Planes:
        """Return the layout of an input that no unit has computed."""
        half = self.workspace.half and x.dtype == torch.float32
        return Planes(Grid(len(x), x.shape[2], x.shape[3], self.border, x.dtype, half), x.shape[1])


class _Function(torch.autograd.Function):
    """Autograd function of a unit. Its tensors are the inputs and the parameters of the unit."""

    @staticmethod
    def forward(
        ctx: Any, bound: BoundUnit, addresses: list[int], inputs: int, *tensors: Tensor
    ) -> Tensor:
        out, frame = bound.forward(bound.planar(tensors[:inputs]), addresses)
        ctx.bound, ctx.use, ctx.inputs = bound, bound.use(frame), inputs
        # Autograd then raises an error in the backward if one of them was changed in place.
        ctx.save_for_backward(*tensors, *([out] if bound.unit.relu else []))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        _ = ctx.saved_tensors  # raises an error if a tensor was changed or the graph was freed
        wanted = list(ctx.needs_input_grad[3 : 3 + ctx.inputs])
        found, parameters = ctx.bound.backward(ctx.use.frame, grad, wanted)
        return None, None, None, *found, *parameters
