"""Variants in their own processes, with their own number of threads and allocator settings."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

from ckasr.experiments.pools import ALLOCATOR

from .timing import Call, Timing, in_turn, once, summary


@dataclass(frozen=True)
class Variant:
    """Processes that make the same callable."""

    make: Callable[..., Call]  # function that makes the callable in the process
    processes: int = 1
    threads: int = 1  # of each process
    models: int = 1  # number of models that a callable trains
    allocator: bool = True  # whether the memory allocator has the settings of a sweep's workers


class Worker:
    """A process that makes the callable of a variant and calls it on request."""

    def __init__(self, variant: Variant, **arguments: Any) -> None:
        self.device, self.models = torch.device(arguments["device"]), variant.models
        # Spawn, not fork: the allocator reads the environment only when a process starts.
        self.pool = ProcessPoolExecutor(1, get_context("spawn"))
        outside = dict(os.environ)
        for name in ALLOCATOR:
            os.environ.pop(name, None)
        os.environ.update(ALLOCATOR if variant.allocator else {})
        os.environ["OMP_NUM_THREADS"] = str(variant.threads)
        make = partial(variant.make, **arguments)
        self.made = self.pool.submit(_make, make, variant.threads)  # This starts the process.
        os.environ.clear()
        os.environ.update(outside)

    def start(self) -> Future[float]:
        """Request one call. The result is its seconds, see `once`."""
        return self.pool.submit(_run, self.device)


_call: Call  # the callable of a worker process


def _make(make: Callable[[], Call], threads: int) -> None:
    global _call
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # so that fp32 is the same precision in both loops
    _call = make()


def _run(device: torch.device) -> float:
    return once(_call, device)


def together(workers: Sequence[Worker]) -> float:
    """Make one call in every worker at once and return the wall time per model in seconds."""
    begin = time.perf_counter()
    for call in [worker.start() for worker in workers]:
        call.result()
    return (time.perf_counter() - begin) / sum(worker.models for worker in workers)


def measure(
    benchmark: str,
    variants: Mapping[str, Variant],
    timer: Callable[[Sequence[Worker]], float],
    *,
    rounds: int,
    warmup: int,
    clock: str,
    per_call: int,
    **arguments: Any,
) -> list[Timing]:
    """Time variants in their own processes, which start together, see `timing.interleaved`.

    Args:
        timer: function that makes one call in the workers of a variant and returns the seconds.
        clock: clock of these seconds.
        per_call: number of images per call.
        arguments: arguments of the functions that make the callables. Their errors are raised.
    """
    workers = {
        name: [Worker(variant, **arguments) for _ in range(variant.processes)]
        for name, variant in variants.items()
    }
    every = [worker for found in workers.values() for worker in found]
    with ExitStack() as stack:
        for worker in every:
            stack.enter_context(worker.pool)
        for worker in every:
            worker.made.result()
        seconds = in_turn(workers, rounds, timer, warmup)
    return summary(benchmark, seconds, clock=clock, images=per_call)
