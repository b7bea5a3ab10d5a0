"""A training step that is captured as a graph, so that one call launches its hundreds of kernels.

On a GPU, a step of a CIFAR network takes less time than the host needs to launch its kernels one by
one. A step cannot be captured if Python must run in the middle of it: in methods that read the
gradient or add a penalty, and with batches that read files.
"""

from collections.abc import Callable
from typing import Any

import torch

from ckasr.data import Batches, Indices
from ckasr.methods import Method

from .step import Step

WARM_UP = 3
"""Steps of each kind to run before the capture. They allocate state and choose kernels."""

Capture = Callable[[Callable[[], None]], Callable[[], Any]]
"""Captures the device operations of a step, without running them, and returns their replay."""


def can_capture(method: Method, batches: Batches) -> bool:
    """Return whether a step can be captured: its batch and its method run no Python inside it."""
    kind = type(method)
    acts = kind.penalty is not Method.penalty or kind.after_backward is not Method.after_backward
    return batches.can_capture and not acts


class CapturedStep(Step):
    """A step that is captured after its warm-up, once with the term and once without.

    Whatever changes between steps is a tensor of fixed address: the batch indices, which are copied
    into one, learning rates (the engine makes them tensors), masks, weights, momentum and the sums.

    Args:
        capture: captures a step; see ``Capture``.
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
