"""Multiply-adds of sparse execution in one training step, from the plans of its kernels."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ckasr.execution import SparseExecution
from ckasr.execution.bound import BoundUnit
from ckasr.execution.forward import Frame


def multiply_adds(handle: SparseExecution, step: Callable[[], object]) -> int:
    """Count the multiply-adds of convolutions and linear layers, forward and backward.

    Args:
        handle: sparse execution of the model.
        step: function that takes one training step.

    Raises:
        RuntimeError: if a part of the network does not run on the sparse kernels.
    """
    counts: list[int] = []

    def watched(
        bound: BoundUnit, frame: Frame, grad: Tensor, wanted: list[bool]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        counts.append(_of_unit(bound, frame, grad, wanted))
        return BoundUnit.backward(bound, frame, grad, wanted)

    for bound in handle.units:
        bound.backward = partial(watched, bound)
    try:
        step()
    finally:
        for bound in handle.units:
            del bound.backward
    late = any(bound.plain_calls for bound in handle.units)
    if handle.dense or late or not handle.units:
        raise RuntimeError(f"not all of the network runs on the sparse kernels:\n{handle}")
    return sum(counts)


def _of_unit(bound: BoundUnit, frame: Frame, grad: Tensor, wanted: list[bool]) -> int:
    """Multiply-adds of one unit, when its backward pass begins."""
    plan = frame.arguments.plan
    known = bound.workspace.find(grad[:, :, None, None] if bound.unit.linear else grad, plan.out)
    back, _ = frame.arguments.back(None if known is None else known.alive)
    products = 0
    for k, convolution in enumerate(plan.unit.convolutions):
        inner = convolution.source >= 0
        # The gradient of the weights, and that of the input where it is needed.
        gradients = 2 if inner or wanted[-1 - convolution.source] else 1
        products += len(plan.lists[k].where) + gradients * len(back.lists[k].where)
    return products * plan.grid.pixels
