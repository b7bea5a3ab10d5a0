"""Interleaved timing: every round measures all variants, so that a drift affects them equally.

The ratio is a variant's time divided by the first variant's time in the same round; the reported
ratio is the median over the rounds. The reported time is the first variant's median time multiplied
by that ratio, and the images per second are computed from the reported time.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

import torch

from ckasr import devices
from ckasr.analysis.tables import NOTHING, markdown
from ckasr.choices import check_count

Call = Callable[[], object]
Clock = Literal["CPU", "wall"]
"""CPU time of the process, or wall time."""


@dataclass(frozen=True)
class Timing:
    """Times of one variant, summarised over all rounds.

    Args:
        benchmark: name of the group of variants that are compared.
        variant: name of the variant.
        milliseconds: time per call.
        lowest, highest: smallest and largest time of a round, in milliseconds.
        ratio: time relative to the first variant.
        ratio_low, ratio_high: quartiles of the ratios of all rounds.
        rounds: number of rounds.
        clock: CPU or wall time.
        images: number of images per call; 0 if not applicable.
        x: value of the quantity that a scaling benchmark varies; None if not applicable.
        work: operations and bytes per call, by the name of the column; empty if not counted.
    """

    benchmark: str
    variant: str
    milliseconds: float
    lowest: float
    highest: float
    ratio: float
    ratio_low: float
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
    variants: Mapping[str, Call],
    *,
    rounds: int,
    device: torch.device,
    warmup: int = 2,
    calls: int = 1,
    untimed: int = 0,
    images: int = 0,
    x: float | None = None,
) -> list[Timing]:
    """Time all variants in every round. The first variant is the reference of the ratios.

    Args:
        benchmark, images, x: see `Timing`.
        variants: callables by name.
        rounds: number of measured rounds.
        device: device that the variants use; a GPU is synchronised around each measurement.
        warmup: number of rounds before the measured ones.
        calls: number of calls per variant and round; the result is their mean time.
        untimed: number of calls before these that are not timed. They fill the caches with the data
            of the variant, as in a training run, whose steps are all of one kind.

    Returns:
        One timing per variant.
    """

    def timer(call: Call) -> float:
        for _ in range(untimed):
            call()
        return once(call, device, calls) / calls

    seconds = in_turn(variants, rounds, timer, warmup=warmup)
    return summary(benchmark, seconds, clock=clock_of(device), images=images, x=x)


def clock_of(device: torch.device) -> Clock:
    """The clock that `once` uses on a device."""
    return "wall" if device.type == "cuda" else "CPU"


def in_turn(
    variants: Mapping[str, Call], rounds: int, timer: Callable[[Call], float], warmup: int
) -> dict[str, list[float]]:
    """Measure the seconds of every variant in every round.

    Every second round runs in reverse order, so that the order of the variants has no effect on
    average.

    Args:
        variants: callables by name.
        rounds: number of measured rounds.
        timer: function that calls a variant and returns the seconds.
        warmup: number of rounds before the measured ones.

    Returns:
        The seconds of the measured rounds, by the name of the variant.

    Raises:
        ValueError: if ``rounds`` is below 1.
    """
    check_count("rounds", rounds, 1)
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
    clock: Clock,
    images: int = 0,
    x: float | None = None,
) -> list[Timing]:
    """Compute the timings of variants from their seconds per round.

    Args:
        benchmark, images, x: see `Timing`.
        seconds: seconds per round of each variant; the first variant is the reference.
        clock: clock of the seconds.
    """
    reference = next(iter(seconds.values()))
    timings = []
    for name, values in seconds.items():
        ratios = sorted(v / r for v, r in zip(values, reference, strict=True))
        times = (1e3 * pick(values) for pick in (median, min, max))
        spread = median(ratios), ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]
        numbers = (float(f"{number:.5g}") for number in (*times, *spread))
        timings.append(Timing(benchmark, name, *numbers, len(values), clock, images, x))
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


def once(call: Call, device: torch.device, calls: int = 1) -> float:
    """Seconds of ``calls`` calls: CPU time, or wall time between two synchronisations on a GPU."""
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
    """The timings as a Markdown table."""
    rows = []
    for t in timings:
        name = t.variant if t.x is None else f"{t.variant}, {t.x:g}"
        speed = f"{t.images_per_second:,.0f}" if t.images else NOTHING
        ratio = f"{t.ratio:.3f} ({t.ratio_low:.3f}-{t.ratio_high:.3f})"
        rows.append((t.benchmark, name, ratio, f"{t.milliseconds:.4g}", speed))
    return "\n".join(
        markdown(("benchmark", "variant", "ratio (quartiles)", "ms", "images/s"), rows)
    )


def work_table(timings: Iterable[Timing]) -> str:
    """Operations and bytes per call as a Markdown table; an empty text if nothing was counted."""
    counted = [t for t in timings if t.work]
    if not counted:
        return ""
    columns = list(dict.fromkeys(name for t in counted for name in t.work))
    rows = []
    for t in counted:
        numbers = (f"{t.work[name]:,.5g}" if name in t.work else NOTHING for name in columns)
        rows.append((t.benchmark, t.variant, *numbers))
    return "\n".join(markdown(("benchmark", "variant", *columns), rows))
