"""Interleaved timing: all variants in turn, round after round, so that a drift hits them alike."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch

from ckasr import devices

Calls = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Timing:
    """One variant over all rounds; times are of one call, ratios to the first variant's same round.

    clock: ``CPU`` is the time of the process's processors, ``wall`` that of the clock on the wall.
    images: how many a call works through; 0: not a matter of images. x: what a scaling varies.
    work: what a call has to do, where that is counted, by the name of its column.
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
    clock: str = "CPU"
    images: int = 0
    x: float | None = None
    work: dict[str, float] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        return 1e3 * self.images / self.milliseconds


def interleaved(
    benchmark: str,
    variants: Calls,
    *,
    rounds: int,
    device: torch.device,
    warmup: int = 2,
    calls: int = 1,
    images: int = 0,
    x: float | None = None,
) -> list[Timing]:
    """Time the variants in turn; the first one is the reference of the ratios.

    calls: how many a variant makes when it is its turn; the time of one is their mean.
    """
    seconds = in_turn(
        variants, rounds, lambda call: once(call, device, calls) / calls, warmup=warmup
    )
    clock = "wall" if device.type == "cuda" else "CPU"
    return summary(benchmark, seconds, clock=clock, images=images, x=x)


def in_turn(
    variants: Calls, rounds: int, timer: Callable[[Callable[[], object]], float], warmup: int
) -> dict[str, list[float]]:
    """Seconds of every variant in every round after the first `warmup`, as `timer` tells them.

    Every second round goes backwards: no variant gains by its place behind another.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warmup + rounds):
        for name in list(variants)[:: -1 if number % 2 else 1]:
            spent = timer(variants[name])
            if number >= warmup:
                seconds[name].append(spent)
    return seconds


def summary(
    benchmark: str,
    seconds: Mapping[str, Sequence[float]],
    *,
    clock: str,
    images: int = 0,
    x: float | None = None,
) -> list[Timing]:
    """Medians, spreads and ratios of what was measured; the first variant is the reference."""
    reference = next(iter(seconds.values()))
    timings = []
    for name, values in seconds.items():
        ratios = sorted(v / r for v, r in zip(values, reference, strict=True))
        times = (1e3 * pick(values) for pick in (median, min, max))
        spread = median(ratios), ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]
        numbers = (float(f"{number:.5g}") for number in (*times, *spread))
        timings.append(Timing(benchmark, name, *numbers, len(values), clock, images, x))
    return timings


def once(call: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds of so many calls: wall time between synchronisations on a GPU, else CPU time."""
    if device.type != "cpu":
        devices.of(device).synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        devices.of(device).synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    for _ in range(calls):
        call()
    return time.process_time() - start


def table(timings: Iterable[Timing]) -> str:
    """The timings as a markdown table."""
    lines = [
        "| benchmark | variant | ms, median (min-max) | clock | images/s "
        "| ratio, median (quartiles) | rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    for t in timings:
        name = t.variant if t.x is None else f"{t.variant}, {t.x:g}"
        speed = f"{t.images_per_second:,.0f}" if t.images else ""
        lines.append(
            f"| {t.benchmark} | {name} | {t.milliseconds:.2f} ({t.lowest:.2f}-{t.highest:.2f}) "
            f"| {t.clock} | {speed} | {t.ratio:.3f} ({t.ratio_low:.3f}-{t.ratio_high:.3f}) "
            f"| {t.rounds} |"
        )
    return "\n".join(lines)


def work_table(timings: Iterable[Timing]) -> str:
    """What the calls have to do, as a markdown table; empty where nothing was counted."""
    counted = [t for t in timings if t.work]
    if not counted:
        return ""
    columns = list(dict.fromkeys(name for t in counted for name in t.work))
    lines = [f"| benchmark | variant | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for t in counted:
        cells = [f"{t.work[name]:,.5g}" if name in t.work else "" for name in columns]
        lines.append(f"| {t.benchmark} | {t.variant} | {' | '.join(cells)} |")
    return "\n".join(lines)
