"""Variants in their own processes, with their own number of threads and allocator settings.

All workers start together. A worker computes on request only and waits for a line of input between
requests.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ckasr.experiments.pools import ALLOCATOR

from .timing import Clock, Timing, in_turn, once, summary


@dataclass(frozen=True)
class Variant:
    """Processes that make the same callable.

    Args:
        make: function that makes the callable, ``module:function`` of this package.
        processes: number of processes.
        threads: number of threads of each process.
        arguments: arguments of the function.
    """

    make: str
    processes: int = 1
    threads: int = 1
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Worker:
    """A process that makes the callable of a variant and calls it on request.

    The plain loop has the allocator settings of the system, and everything else has those of a
    sweep's workers.
    """

    def __init__(self, variant: Variant, **common: Any) -> None:
        arguments = {**common, **variant.arguments}
        environment = {k: v for k, v in os.environ.items() if k not in ALLOCATOR}
        environment |= {} if variant.make.startswith("plain:") else ALLOCATOR
        environment |= {"OMP_NUM_THREADS": str(variant.threads)}
        self.make, self.models = variant.make, arguments.get("models", 1)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.workers", self.make, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).resolve().parents[1],
        )

    def start(self) -> None:
        """Request one call."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def result(self) -> float:
        """Wait for the end of the call and return its seconds: CPU time, or wall time on a GPU.

        Raises:
            RuntimeError: if the process has ended.
        """
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"worker {self.make} ended with status {self.process.wait()}")
        return float(line)

    def __call__(self) -> float:
        """Make one call and return its seconds, see `result`."""
        self.start()
        return self.result()

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def together(workers: Sequence[Worker]) -> float:
    """Make one call in every worker at once and return the wall time per model in seconds."""
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.result()
    return (time.perf_counter() - start) / sum(worker.models for worker in workers)


def measure(
    benchmark: str,
    variants: Mapping[str, Variant],
    timer: Callable[[Sequence[Worker]], float],
    *,
    rounds: int,
    warmup: int,
    clock: Clock,
    per_call: int,
    **common: Any,
) -> list[Timing]:
    """Time variants in their own processes, see `timing.interleaved`.

    Args:
        benchmark, rounds, warmup: see `timing.interleaved`.
        variants: variants by name; the first is the reference.
        timer: function that makes one call in the workers of a variant and returns the seconds.
        clock: clock of these seconds.
        per_call: number of images per call.
        common: arguments that all variants have.
    """
    with ExitStack() as stack:
        workers = {
            label: [stack.enter_context(closing(Worker(v, **common))) for _ in range(v.processes)]
            for label, v in variants.items()
        }
        seconds = in_turn(workers, rounds, timer, warmup=warmup)
    return summary(benchmark, seconds, clock=clock, images=per_call)


def serve(make: str, arguments: str) -> None:
    """The loop of the worker process: for each line of input, make one call and print its seconds.

    Args:
        make: function that makes the callable, ``module:function`` of this package.
        arguments: arguments of the function, as JSON.
    """
    values = json.loads(arguments)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.backends.cudnn.allow_tf32 = False  # so that fp32 is the same precision in both loops
    module, function = make.split(":")
    call = getattr(import_module(f"benchmarks.{module}"), function)(**values)
    for _ in sys.stdin:
        print(once(call, torch.device(values["device"])), flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
