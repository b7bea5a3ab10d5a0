"""Time that ``import ckasr`` adds to ``import torch``, measured as wall time in new processes."""

import subprocess
import sys

import torch

from .timing import Timing, summary

TORCH, BOTH = "import torch", "import torch, ckasr"
CODE = """
from time import perf_counter
start = perf_counter()
import torch
middle = perf_counter()
import ckasr
print(middle - start, perf_counter() - start)
"""


def measure(device: torch.device, rounds: int, warmup: int = 1) -> list[Timing]:
    """Time both imports in one new process per round. The device has no effect."""
    pairs = [_run() for _ in range(warmup + rounds)][warmup:]
    seconds = zip(*pairs, strict=True)
    return summary("import", dict(zip((TORCH, BOTH), seconds, strict=True)), clock="wall")


def _run() -> list[float]:
    output = subprocess.run(
        [sys.executable, "-c", CODE], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return [float(word) for word in output.split()]
