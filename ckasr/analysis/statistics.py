"""Paired differences between the arms of a comparison, with intervals and exact p-values.

A *pair* is two finished runs that differ only in the term (in `precision.py` only in the precision,
in `aa.py` only in the order of the images). They have the same seed, and therefore the same initial
weights, mask, order and augmentation. These rules were fixed before the first result:

- Runs are compared only in pairs of the same cell, and therefore never across schedules.
- A diverged run has no accuracy. Its pair is counted and listed, but is not part of any mean,
  interval or p-value.
- A run is listed and left out if the other run of its pair is missing, or has another device,
  execution or commit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .cells import BASELINE, Arm, Cell, Record, cells

CONFIDENCE = 0.95
EXACT_UP_TO = 20
"""Largest number of pairs for which all sign flips are enumerated; for 20 pairs, a million."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Comparison of one arm with a baseline, which is that of its cell unless stated otherwise.

    Values are fractions of 1, and differences are arm minus baseline. An interval or p-value that
    does not exist is None, and `note` states the reason.
    """

    cell: Cell
    arm: Arm
    seeds: tuple[int, ...]  # Seeds of the complete pairs.
    baseline: tuple[float, ...]  # One value per pair.
    treated: tuple[float, ...]
    diverged: tuple[str, ...] = ()  # One entry per pair, such as "seed 3: baseline".
    incomplete: tuple[str, ...] = ()  # One entry per pair, such as "seed 4: no baseline".
    mean: float | None = None
    t_interval: Interval | None = None
    p: float | None = None  # Exact two-sided sign-flip test.
    note: str = ""

    @property
    def n(self) -> int:
        """Number of complete pairs."""
        return len(self.seeds)

    @property
    def differences(self) -> tuple[float, ...]:
        """Arm minus baseline of each pair, in the order of the seeds."""
        return tuple(t - b for t, b in zip(self.treated, self.baseline, strict=True))

    @property
    def text(self) -> str:
        """Mean difference in percentage points, number of pairs and interval, as text."""
        size = "no pair" if self.mean is None else f"{100 * self.mean:+.2f} points"
        interval = [round(100 * bound, 2) for bound in self.t_interval or ()] or "none"
        return f"{size}, {self.n} pairs, 95 % interval {interval}"

    @property
    def facts(self) -> dict[str, Any]:
        """Mean difference, number of pairs and interval, for the result of a notebook."""
        return {"pairs": self.n, "difference": self.mean, "interval": self.t_interval}


def paired_differences(
    records: Iterable[Record],
    arm: Mapping[str, Any] | None = None,
    outcome: str = "test_accuracy",
) -> list[Comparison]:
    """Compare every arm that has a term with the baseline of its cell.

    Args:
        records: the records.
        arm: settings of the term, such as ``{"term": "cka_sr", "beta": 1e-4}``. Only arms with
        these
            settings are compared. If None, all arms are compared.
        outcome: name of the field of the record to compare.

    Raises:
        ValueError: for a finished run without the outcome.
    """
    return [
        compare(cell, candidate, outcome)
        for cell in cells(records)
        for candidate in cell.arms
        if candidate != BASELINE
        and all(getattr(candidate, name) == value for name, value in (arm or {}).items())
    ]


def compare(cell: Cell, arm: Arm, outcome: str = "test_accuracy") -> Comparison:
    """Compare one arm of a cell with the baseline of the cell, pair by pair.

    Args:
        cell: the cell.
        arm: the arm.
        outcome: name of the field of the record to compare.

    Raises:
        ValueError: for a finished run without the outcome.
    """
    sides = {"baseline": cell.arms.get(BASELINE, {}), arm.label: cell.arms[arm]}
    return compare_sides(cell, arm, sides, outcome)


def compare_sides(
    cell: Cell,
    arm: Arm,
    sides: Mapping[str, Mapping[int, Record]],
    outcome: str = "test_accuracy",
) -> Comparison:
    """Compare two sides, the second with the first, pair by pair.

    Args:
        cell: cell of the second side.
        arm: arm of the second side.
        sides: the records of each side by name and then by seed, the baseline first. The sides may
            differ in one property only.
        outcome: name of the field of the record to compare.

    Raises:
        ValueError: for a finished run without the outcome.
    """
    values: dict[int, tuple[float, float]] = {}
    diverged, incomplete = [], []
    for seed in sorted(set().union(*sides.values())):
        pair = {name: runs[seed] for name, runs in sides.items() if seed in runs}
        broken = [name for name, run in pair.items() if run["status"] == "diverged"]
        missing = [name for name in sides if name not in pair]
        if broken:
            diverged.append(f"seed {seed}: {' and '.join(broken)}")
        elif missing:
            incomplete.append(f"seed {seed}: no {missing[0]}")
        elif len({run["device"] for run in pair.values()}) > 1:
            incomplete.append(f"seed {seed}: different devices")
        elif len({run.get("execution", "dense") for run in pair.values()}) > 1:
            incomplete.append(f"seed {seed}: dense and sparse execution")
        elif len({run.get("commit") for run in pair.values()}) > 1:
            incomplete.append(f"seed {seed}: different commits")
        else:
            baseline, treated = (value_of(run, outcome) for run in pair.values())
            values[seed] = baseline, treated
    return of_values(cell, arm, values, diverged, incomplete)


def of_values(
    cell: Cell,
    arm: Arm,
    values: Mapping[int, tuple[float, float]],
    diverged: Sequence[str] = (),
    incomplete: Sequence[str] = (),
) -> Comparison:
    """Return the comparison of given values.

    Args:
        cell: cell of the treated side.
        arm: arm of the treated side.
        values: (baseline, treated) by seed, as fractions of 1.
        diverged: descriptions of the pairs with a diverged run.
        incomplete: descriptions of the pairs that were left out.
    """
    baseline, treated = zip(*values.values(), strict=True) if values else ((), ())
    return Comparison(
        cell,
        arm,
        tuple(values),
        baseline,
        treated,
        tuple(diverged),
        tuple(incomplete),
        **_estimate([t - b for b, t in values.values()]),
    )


def value_of(record: Record, outcome: str = "test_accuracy") -> float:
    """Return the outcome of a finished run.

    Args:
        record: the record of the run.
        outcome: name of the field of the record.

    Raises:
        ValueError: if the record does not have the outcome.
    """
    value = record.get(outcome)
    if value is None:
        raise ValueError(f"record {record['id']} is finished but has no {outcome}")
    return value


def report_mean(runs: Iterable[Record], field: str) -> float | None:
    """Return the mean over runs of a field of the sparsity report.

    The mean is None if a report does not have the field, because the paths of the network cannot be
    traced.

    Args:
        runs: the records of runs.
        field: name of the field.
    """
    values = [run["sparsity"].get(field) for run in runs]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def mean_and_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation, each None if there are too few values."""
    import numpy as np

    mean = float(np.mean(values)) if len(values) else None
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else None


def t_interval(values: Sequence[float]) -> Interval | None:
    """Return the 95 % Student-t interval of the mean.

    Args:
        values: independent values.

    Returns:
        Both ends of the interval, or None for fewer than two values or if all values are equal.
    """
    mean, sd = mean_and_sd(values)
    if mean is None or not sd or _all_equal(values):
        return None
    half = half_width(sd, len(values))
    return mean - half, mean + half


def half_width(sd: float, n: int) -> float:
    """Return half the width of the 95 % Student-t interval of a mean.

    Args:
        sd: sample standard deviation of the values.
        n: number of values, at least 2.
    """
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / n**0.5


def sign_flip_p(values: Sequence[float]) -> float | None:
    """Return the two-sided p-value of the sign-flip test of the mean.

    The p-value is the fraction of all 2^n sign patterns whose mean is at least as far from 0 as the
    observed mean. The observed pattern is included, so the p-value is at least 2^(1-n). For more
    than 20 values it is estimated from 10^5 random patterns with a fixed seed.

    Args:
        values: paired differences.

    Returns:
        The p-value, or None if there are no values.
    """
    import numpy as np

    if not len(values):
        return None
    data = np.asarray(values, dtype=float)
    if len(data) <= EXACT_UP_TO:
        sums = np.zeros(1)
        for value in data:
            sums = np.concatenate([sums + value, sums - value])
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (100_000, len(data)))
        sums = np.append(signs @ data, data.sum())
    # Sums that are equal in exact arithmetic can differ in their last digits.
    slack = 1e-9 * np.abs(data).sum()
    return float(np.mean(np.abs(sums) >= abs(data.sum()) - slack))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return the p-values adjusted by Holm's step-down method (Holm 1979), in the same order.

    Args:
        ps: p-values. None stays None and is not counted.
    """
    order = sorted((p, index) for index, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = largest
    return adjusted


def _estimate(differences: Sequence[float]) -> dict[str, Any]:
    n = len(differences)
    found = {
        "mean": mean_and_sd(differences)[0],
        "t_interval": t_interval(differences),
        "p": sign_flip_p(differences),
    }
    if n < 2:
        note = "an interval needs two pairs" if n else "no complete pair"
    elif _all_equal(differences):
        note = f"all {n} differences are equal, so there is no interval"
    else:
        note = ""
    return {**found, "note": note}


def _all_equal(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= 1e-12
