"""Several runs side by side: processes on a CPU, streams of one process on a GPU."""

import math
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

from ckasr.storage import ClaimedError

from . import records
from .run import OutOfTime, on_gpu, own_stream, run, turns
from .settings import Settings

ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456",
    "THP_MEM_ALLOC_ENABLE": "1",
}


GPU_JOBS = 4
"""Models that fill a large GPU at batch 128, by estimate: two to five; not measured yet."""

Ended = list[tuple[Settings, records.Record | None]]
"""Cells that came to an end, each with its record; None: for a later sweep, as a line has said."""


class Pool(Protocol):
    """What a sweep hands its cells to."""

    @property
    def running(self) -> int:
        """Cells started and not ended."""

    def start(self, cell: Settings, deadline: float) -> None:
        """Begin a cell, which is to stop once ``time.monotonic()`` passes the deadline."""

    def ended(self) -> Ended:
        """Let all go on a little; raises what a run raises."""


def default_jobs(device: str) -> int:
    """One process a core on a CPU, where two of one thread beat one of two."""
    return GPU_JOBS if on_gpu(device) else os.cpu_count() or 1


def pool_of(
    jobs: int,
    results: Path,
    device: str,
    data: Path | str | None,
    progress: Callable[[str], None],
    execution: str = "auto",
) -> AbstractContextManager[Pool]:
    """Processes where there are several jobs on a CPU, else turns in this process."""
    kind = Turns if jobs == 1 or on_gpu(device) else Workers
    return kind(jobs, results, device, data, progress, execution)


class _Base:
    def __init__(
        self,
        jobs: int,
        results: Path,
        device: str,
        data: Path | str | None,
        progress: Callable[[str], None],
        execution: str = "auto",
    ) -> None:
        self.jobs, self.results, self.device, self.data = jobs, results, device, data
        self.progress, self.execution = progress, execution

    def later(self, cell: Settings, why: str) -> tuple[Settings, None]:
        self.progress(f"{cell.id}: {why}")
        return cell, None


class Turns(_Base):
    """Runs of this process in turn, each with a CUDA stream of its own on a GPU.

    Each queues an epoch and gives way, so the GPU has work of all of them while the host waits for
    none. Nothing else changes: a run draws, computes and rounds as it would alone. On a CPU it is
    one run of one thread, as in ``Workers``: sums of more threads round differently, so that the
    last cell of a sweep would be no partner of one before.
    """

    def __enter__(self) -> "Turns":
        self._all: list[tuple[Settings, Any, AbstractContextManager[Any]]] = []
        self._threads = torch.get_num_threads()
        if not on_gpu(self.device):
            torch.set_num_threads(1)
        return self

    def __exit__(self, *error: object) -> None:
        for _, turn, _ in self._all:
            turn.close()
        torch.set_num_threads(self._threads)

    @property
    def running(self) -> int:
        return len(self._all)

    def start(self, cell: Settings, deadline: float) -> None:
        turn = turns(
            cell,
            self.results,
            device=self.device,
            progress=self.progress if self.jobs == 1 else _named(cell, self.progress),
            deadline=deadline,
            data=self.data,
            sharing=self.jobs,
            execution=self.execution,
        )
        self._all.append((cell, turn, own_stream(self.device)))

    def ended(self) -> Ended:
        found: Ended = []
        for item in list(self._all):
            cell, turn, stream = item
            try:
                with stream:
                    next(turn)
                continue
            except StopIteration as end:
                found.append((cell, end.value))
            except OutOfTime:
                found.append(self.later(cell, "stopped at the budget; the next sweep resumes it"))
            except ClaimedError as error:
                found.append(self.later(cell, str(error)))
            self._all.remove(item)
        return found


class Workers(_Base):
    """Processes of one thread each."""

    def __enter__(self) -> "Workers":
        # Keeping freed memory for the next step saves a CPU step the page faults of its
        # activations: 12 to 18 % less time of a ResNet20 step. Read at start-up, so it is set for
        # the workers.
        for name, value in ALLOCATOR.items():
            os.environ.setdefault(name, value)
        # Spawn, not fork: torch's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        # Lines come back through a queue: in a notebook, a worker's own output would go astray.
        self._lines = context.Queue()
        self._pool = ProcessPoolExecutor(
            self.jobs, mp_context=context, initializer=_start_worker, initargs=(self._lines,)
        )
        self._all: dict[Future[records.Record], Settings] = {}
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    @property
    def running(self) -> int:
        return len(self._all)

    def start(self, cell: Settings, deadline: float) -> None:
        # Not the deadline itself: clocks of processes need not agree.
        left = deadline - time.monotonic() if math.isfinite(deadline) else math.inf
        future = self._pool.submit(
            _in_worker, cell, self.results, self.device, left, self.data, self.execution
        )
        self._all[future] = cell

    def ended(self) -> Ended:
        done = wait(self._all, timeout=0.5, return_when=FIRST_COMPLETED).done
        while not self._lines.empty():
            self.progress(self._lines.get())
        found: Ended = []
        for future in done:
            cell = self._all.pop(future)
            try:
                found.append((cell, future.result()))
            except OutOfTime:
                found.append(self.later(cell, "stopped at the budget; the next sweep resumes it"))
            except ClaimedError as error:
                found.append(self.later(cell, str(error)))
            except BrokenProcessPool:
                raise ChildProcessError(
                    "a process of the sweep was killed, often for want of memory: use fewer --jobs"
                ) from None
        return found


def _named(cell: Settings, progress: Callable[[str], None]) -> Callable[[str], None]:
    return lambda line: progress(f"{cell.id}  {line.removeprefix(cell.id).strip()}")


_worker_lines: Any = None  # the queue to the sweep, in its worker processes


def _start_worker(queue: Any) -> None:
    global _worker_lines
    _worker_lines = queue
    torch.set_num_threads(1)


def _in_worker(
    cell: Settings,
    results: Path,
    device: str,
    seconds: float,
    data: Path | str | None,
    execution: str,
) -> records.Record:
    return run(
        cell,
        results,
        device=device,
        progress=_named(cell, _worker_lines.put),
        deadline=time.monotonic() + seconds,
        data=data,
        execution=execution,
    )
