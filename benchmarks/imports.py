"""What ``import ckasr`` adds to ``import torch``, in fresh processes."""

import resource
import subprocess
import sys
from statistics import median

import torch

from .timing import Timing


def measure(device: torch.device, rounds: int) -> list[Timing]:
    """CPU time of the children; device is of no matter. The two in turn, one warm-up each."""
    seconds: dict[str, list[float]] = {"import torch": [], "import torch, ckasr": []}
    for number in range(rounds + 1):
        for statement, values in seconds.items():
            before = _children()
            subprocess.run([sys.executable, "-c", statement], check=True)
            if number:
                values.append(_children() - before)
    reference = seconds["import torch"]
    timings = []
    for statement, values in seconds.items():
        ratios = sorted(v / r for v, r in zip(values, reference, strict=True))
        quartiles = ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]
        spread = 1e3 * median(values), 1e3 * min(values), 1e3 * max(values)
        timings.append(Timing("imports", statement, *spread, median(ratios), *quartiles, rounds))
    return timings


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
