"""Pools: several runs side by side, as processes on a CPU or as streams of one process on a GPU."""

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

from ckasr import devices
from ckasr.storage import ClaimedError

from . import records
from .runs import OutOfTime, run, run_interleaved
from .settings import Settings

ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456",
    "THP_MEM_ALLOC_ENABLE": "1",
}
"""Environment variables of the worker processes, for their memory allocator."""

Ended = list[tuple[Settings, records.Record | None]]
"""Cells that have ended, each with its record, or with None if a later sweep must go on with it."""


class Pool(Protocol):
    """Trains the cells of a sweep, several at a time."""

    @property
    def running(self) -> int:
        """Number of cells that have started and not ended."""

    def start(self, cell: Settings, deadline: float) -> None:
        """Start a cell. It stops after an epoch if ``time.monotonic()`` exceeds the deadline."""

    def ended(self) -> Ended:
        """Let all cells run for a while, and return those that ended. Raises what a run raises."""


def default_jobs(device: str) -> int:
    """Return the default number of parallel runs on a device."""
    return devices.find(device).default_jobs


def pool_of(
    jobs: int,
    results: Path,
    device: str,
    data: Path | str | None,
    progress: Callable[[str], None],
    execution: str = "auto",
) -> AbstractContextManager[Pool]:
    """Return a pool of processes for several jobs on a CPU, otherwise one in this process."""
    in_process = jobs == 1 or devices.find(device).runs_share_process
    kind = Interleaved if in_process else Workers
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


class Interleaved(_Base):
    """Runs that share this process, each with a stream of its own on a GPU.

    Each run queues some steps, then the next run does, so the GPU has work of all of them and the
    host waits for none. The result of a run is the same as alone. On a CPU, a run has one thread,
    as in ``Workers``: sums over more threads round differently, and then the last run of a sweep
    could not be compared with the others.
    """

    def __enter__(self) -> "Interleaved":
        self._all: list[tuple[Settings, Any, AbstractContextManager[Any]]] = []
        self._threads = torch.get_num_threads()
        if not devices.find(self.device).runs_share_process:
            torch.set_num_threads(1)
        return self

    def __exit__(self, *error: object) -> None:
        for _, epochs, _ in self._all:
            epochs.close()
        torch.set_num_threads(self._threads)

    @property
    def running(self) -> int:
        return len(self._all)

    def start(self, cell: Settings, deadline: float) -> None:
        epochs = run_interleaved(
            cell,
            self.results,
            device=self.device,
            progress=self.progress if self.jobs == 1 else _named(cell, self.progress),
            deadline=deadline,
            data=self.data,
            sharing=self.jobs,
            execution=self.execution,
        )
        self._all.append((cell, epochs, devices.find(self.device).stream()))

    def ended(self) -> Ended:
        found: Ended = []
        for item in list(self._all):
            cell, epochs, stream = item
            try:
                with stream:
                    next(epochs)
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
        # If the allocator keeps freed memory for the next step, a CPU step has no page faults for
        # its activations: a ResNet20 step takes 12 to 18 % less time. The workers read it when
        # they start.
        for name, value in ALLOCATOR.items():
            os.environ.setdefault(name, value)
        # Spawn, not fork: torch's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        # Lines come back through a queue, because a notebook does not show a worker's own output.
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
        # Seconds instead of the deadline, because the clocks of processes may differ.
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
                    "a process of the sweep was killed, often by lack of memory: use fewer --jobs"
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
