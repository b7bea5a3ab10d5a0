"""A training step that is captured as a CUDA graph, so that one call launches all its kernels.

A step of a CIFAR network has hundreds of kernels, and the host needs more time to launch them one
by one than the GPU needs to compute them. A step cannot be captured if it must run Python code in
the middle: with a method that reads the gradient or adds a penalty, and with batches that read
files.
"""

from collections.abc import Callable
from typing import Any

import torch

from ckasr.data import Batches, Indices
from ckasr.methods import Method

from .step import Step

WARM_UP = 3
"""Number of steps with the term, and of steps without it, before the capture. They allocate the
state of the optimiser and choose kernels."""

Capture = Callable[[Callable[[], None]], Callable[[], Any]]
"""Function that captures the device operations of a step without running them, and returns a
function that replays them."""


def can_capture(method: Method, batches: Batches) -> bool:
    """Return whether a step can be captured: batch and method must run no Python code inside it."""
    kind = type(method)
    acts = kind.penalty is not Method.penalty or kind.after_backward is not Method.after_backward
    return batches.can_capture and not acts


class CapturedStep(Step):
    """A step that is captured after a warm-up, once with the term and once without it.

    All values that change between steps are tensors with constant addresses: the indices of the
    batch, which are copied into one tensor, the learning rates, which the engine stores in tensors,
    the masks, weights, momentum and sums.

    Args:
        capture: function that captures a step; see ``Capture``.
        args: arguments of ``Step``.
    """

    def __init__(self, *args: Any, capture: Capture) -> None:
        super().__init__(*args)
        self.capture = capture
        self.indices: Indices | None = None
        self.plain_steps = {True: 0, False: 0}
        self.replays: dict[bool, Callable[[], Any]] = {}

    def _run(self, indices: Indices, with_term: bool) -> None:
        full = len(indices[0]) == self.batches.batch_size
        if self.plain_steps[with_term] < WARM_UP or not full:
            self.plain_steps[with_term] += full
            self._work(indices, with_term)
            return
        if self.indices is None:
            self.indices = tuple(numbers.clone() for numbers in indices)
        fixed = self.indices
        torch._foreach_copy_(list(fixed), list(indices))
        if with_term not in self.replays:
            self.replays[with_term] = self.capture(lambda: self._work(fixed, with_term))
        self.replays[with_term]()
