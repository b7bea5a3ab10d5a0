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
    seconds: dict[str, list[float]] = {TORCH: [], BOTH: []}
    for _ in range(warmup + rounds):
        output = subprocess.check_output([sys.executable, "-c", CODE], text=True)
        for found, word in zip(seconds.values(), output.split(), strict=True):
            found.append(float(word))
    return summary("import", {n: s[warmup:] for n, s in seconds.items()}, clock="wall")
