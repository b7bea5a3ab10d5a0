"""What ``import ckasr`` adds to ``import torch``: wall time of fresh processes."""

import subprocess
import sys
import time
from functools import partial

import torch

from .timing import Timing, in_turn, summary

TORCH, BOTH = "import torch", "import torch, ckasr"


def measure(device: torch.device, rounds: int, warmup: int = 1) -> list[Timing]:
    """The two in turn, after a warm-up; the device is of no matter."""
    calls = {statement: partial(_run, statement) for statement in (TORCH, BOTH)}
    seconds = in_turn(calls, rounds, lambda call: call(), warmup)
    return summary("import", seconds, clock="wall")


def _run(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start
