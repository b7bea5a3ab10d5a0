"""Variants in their own processes, with their own number of threads and allocator settings.

All workers start together. A worker computes on request only and waits for a line of input between
requests.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ckasr.experiments.pools import ALLOCATOR

from .timing import once


class Worker:
    """A process that makes a callable and calls it on request.

    Args:
        make: function that makes the callable, ``module:function`` of this package.
        threads: number of threads.
        fast: whether to use the allocator settings of a sweep's workers, not those of the system.
        arguments: arguments of the function.
    """

    def __init__(self, make: str, threads: int, fast: bool, **arguments: Any) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in ALLOCATOR}
        environment |= {"OMP_NUM_THREADS": str(threads)} | (ALLOCATOR if fast else {})
        self.make, self.ready = make, False
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.workers", make, json.dumps(arguments)],
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


def together(workers: Sequence[Worker], models: int = 1) -> float:
    """Make one call in every worker at the same time and return the wall time per model in seconds.

    Args:
        workers: workers.
        models: number of models per worker.
    """
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.result()
    return (time.perf_counter() - start) / (len(workers) * models)


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
