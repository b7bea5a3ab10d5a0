"""Interleaved timing: every round measures all variants, so that a drift affects them equally.

The ratio is a variant's time divided by the first variant's time in the same round; the reported
ratio is the median over the rounds. The reported time is the first variant's median time multiplied
by that ratio, and the images per second are computed from the reported time.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch

from ckasr import devices
from ckasr.analysis.tables import NOTHING, markdown
from ckasr.choices import check_count

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Times of one variant, summarised over all rounds."""

    benchmark: str  # name of the group of variants that are compared
    variant: str
    milliseconds: float  # per call
    lowest: float  # smallest and largest time of a round, in milliseconds
    highest: float
    ratio: float  # time relative to the first variant, and the quartiles over all rounds
    ratio_low: float
    ratio_high: float
    rounds: int
    clock: str = "CPU"  # CPU time of the process, or wall time
    images: int = 0  # number of images per call; 0 if not applicable
    x: float | None = None  # value of the quantity that a scaling benchmark varies
    work: dict[str, float] = field(default_factory=dict)  # counts per call, by name of the column

    @property
    def images_per_second(self) -> float:
        return 1e3 * self.images / self.milliseconds


def interleaved(
    benchmark: str,
    variants: Mapping[str, Call],
    *,
    rounds: int,
    device: torch.device,
    warmup: int = 2,
    calls: int = 1,
    untimed: int = 0,
    **fields: Any,
) -> list[Timing]:
    """Time all variants in every round. The first variant is the reference of the ratios.

    Args:
        benchmark, fields: name and other fields of each `Timing`.
        rounds, warmup: number of measured rounds, and of rounds before these.
        calls: number of calls per variant and round; the result is their mean time.
        untimed: number of calls before these that are not timed. They fill the caches with the data
            of the variant, as in a training run, whose steps are all of one kind.
    """

    def timer(call: Call) -> float:
        for _ in range(untimed):
            call()
        return once(call, device, calls)

    seconds = in_turn(variants, rounds, timer, warmup)
    return summary(benchmark, seconds, clock=clock_of(device), **fields)


def in_turn(
    variants: Mapping[str, Any], rounds: int, timer: Callable[[Any], float], warmup: int
) -> dict[str, list[float]]:
    """Measure the seconds of every variant in every round with ``timer(variant)``.

    Every second round runs in reverse order, so that the order of the variants has no effect on
    average. Raises ValueError if ``rounds`` is below 1.
    """
    check_count("rounds", rounds, 1)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warmup + rounds):
        for name in list(variants)[:: -1 if number % 2 else 1]:
            spent = timer(variants[name])
            if number >= warmup:
                seconds[name].append(spent)
    return seconds


def clock_of(device: torch.device) -> str:
    """The clock that `once` uses on a device."""
    return "wall" if device.type == "cuda" else "CPU"


def once(call: Call, device: torch.device, calls: int = 1) -> float:
    """Mean seconds of ``calls`` calls: CPU time, or wall time between synchronisations on a GPU."""
    clock = time.perf_counter if clock_of(device) == "wall" else time.process_time
    synchronize = devices.of(device).synchronize  # On a CPU it does nothing.
    synchronize()
    start = clock()
    for _ in range(calls):
        call()
    synchronize()
    return (clock() - start) / calls


def summary(benchmark: str, seconds: Mapping[str, Sequence[float]], **fields: Any) -> list[Timing]:
    """Compute the timings from the seconds per round. The first variant is the reference."""
    reference = next(iter(seconds.values()))
    timings = []
    for name, values in seconds.items():
        ratios = sorted(v / r for v, r in zip(values, reference, strict=True))
        times = (1e3 * pick(values) for pick in (median, min, max))
        spread = median(ratios), ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]
        numbers = (float(f"{number:.5g}") for number in (*times, *spread))
        timings.append(Timing(benchmark, name, *numbers, len(values), **fields))
    return consistent(timings)


def consistent(timings: Iterable[Timing]) -> list[Timing]:
    """Replace each time by the reference's time multiplied by the ratio.

    Older records contain the median time of each variant itself. The smallest and largest times are
    changed where they would not enclose the new time.
    """
    found: list[Timing] = []
    references: dict[tuple[str, float | None], float] = {}
    for t in timings:
        reference = references.setdefault((t.benchmark, t.x), t.milliseconds)
        time = float(f"{reference * t.ratio:.5g}")
        low, high = min(t.lowest, time), max(t.highest, time)
        found.append(replace(t, milliseconds=time, lowest=low, highest=high))
    return found


def table(timings: Iterable[Timing]) -> str:
    """The timings as a Markdown table."""
    rows = []
    for t in timings:
        name = t.variant if t.x is None else f"{t.variant}, {t.x:g}"
        speed = f"{t.images_per_second:,.0f}" if t.images else NOTHING
        ratio = f"{t.ratio:.3f} ({t.ratio_low:.3f}-{t.ratio_high:.3f})"
        rows.append((t.benchmark, name, ratio, f"{t.milliseconds:.4g}", speed))
    header = ("benchmark", "variant", "ratio (quartiles)", "ms", "images/s")
    return "\n".join(markdown(header, rows))


def work_table(timings: Iterable[Timing]) -> str:
    """Operations and bytes per call as a Markdown table; an empty text if nothing was counted."""
    counted = [t for t in timings if t.work]
    columns = list(dict.fromkeys(name for t in counted for name in t.work))
    rows = []
    for t in counted:
        numbers = (f"{t.work[name]:,.5g}" if name in t.work else NOTHING for name in columns)
        rows.append((t.benchmark, t.variant, *numbers))
    return "\n".join(markdown(("benchmark", "variant", *columns), rows)) if counted else ""
