"""The same step as one CUDA graph: its few hundred kernels are launched by one call.

On a GPU a step of a CIFAR network is over sooner than the host can launch its kernels one by one.
Not used where Python has to run in the middle of a step: by methods that read the gradient or add
a penalty of their own.
"""

from collections.abc import Callable
from typing import Any

import torch

from ckasr.data import Plan
from ckasr.methods import Method

from .step import Step

WARM_UP = 3
"""Plain steps of each kind before its capture: state is allocated in them, and kernels chosen."""

Capture = Callable[[Callable[[], None]], Callable[[], Any]]
"""Takes the work of a step and returns what replays it; must not run it itself."""


def can_capture(method: Method) -> bool:
    """Return whether a step of this method can be captured: it must not act inside the step."""
    kind = type(method)
    return kind.penalty is Method.penalty and kind.after_backward is Method.after_backward


class CapturedStep(Step):
    """A step that is captured after its warm-up: once with the term and once without.

    What changes between steps lives in tensors of fixed address: the draws, which are copied in,
    learning rates (the engine makes them tensors), masks, weights, momentum and the sums.
    """

    def __init__(self, *args: Any, capture: Capture) -> None:
        super().__init__(*args)
        self.capture = capture
        self.draws: Plan | None = None
        self.plain_steps = {True: 0, False: 0}
        self.replays: dict[bool, Callable[[], Any]] = {}

    def _run(self, draws: Plan, due: bool) -> None:
        whole = len(draws.order) == self.batches.batch_size
        if self.plain_steps[due] < WARM_UP or not whole:
            self.plain_steps[due] += whole
            self._work(draws, due)
            return
        if self.draws is None:
            self.draws = Plan(*(draw.clone() for draw in draws))
        torch._foreach_copy_(list(self.draws), list(draws))
        if due not in self.replays:
            self.replays[due] = self.capture(lambda: self._work(self.draws, due))
        self.replays[due]()
