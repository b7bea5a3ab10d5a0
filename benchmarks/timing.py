"""Interleaved timing: all variants in turn, round after round, so that a drift hits them alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Timing:
    """One variant over all rounds. Milliseconds are of one call: CPU time of this process on a CPU,
    wall time between synchronisations on a GPU. Ratios are to the first variant of the same round.
    """

    benchmark: str
    variant: str
    milliseconds: float  # median
    lowest: float
    highest: float
    ratio: float  # median of the rounds' ratios
    ratio_low: float  # quartiles of the rounds' ratios
    ratio_high: float
    rounds: int


def interleaved(
    benchmark: str,
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    device: torch.device,
    warmup: int = 2,
) -> list[Timing]:
    """Time the variants in turn; the first one is the reference of the ratios."""
    for _ in range(warmup):
        for call in variants.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            seconds[name].append(_time(call, device))
    reference = seconds[next(iter(variants))]
    timings = []
    for name, values in seconds.items():
        ratios = sorted(v / r for v, r in zip(values, reference, strict=True))
        timings.append(
            Timing(
                benchmark,
                name,
                1e3 * median(values),
                1e3 * min(values),
                1e3 * max(values),
                median(ratios),
                ratios[len(ratios) // 4],
                ratios[(3 * len(ratios)) // 4],
                rounds,
            )
        )
    return timings


def _time(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start
    start = time.process_time()
    call()
    return time.process_time() - start


def table(timings: list[Timing]) -> str:
    """The timings as a markdown table."""
    lines = [
        "| benchmark | variant | ms, median (min-max) | ratio, median (quartiles) | rounds |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {t.benchmark} | {t.variant} | {t.milliseconds:.2f} ({t.lowest:.2f}-{t.highest:.2f}) "
        f"| {t.ratio:.3f} ({t.ratio_low:.3f}-{t.ratio_high:.3f}) | {t.rounds} |"
        for t in timings
    ]
    return "\n".join(lines)
