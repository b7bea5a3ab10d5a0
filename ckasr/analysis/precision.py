"""Compare runs that differ only in precision, bf16 or fp32, by the rule of results/PLAN.md."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from .cells import BASELINE, Arm, Cell, Record, cells, percent, title
from .statistics import Comparison, compare_sides, of_values
from .tables import (
    DIFFERENCE,
    INTERVAL,
    NOTHING,
    PAIRS,
    SPARSITY,
    VERDICT,
    interval_text,
    markdown,
    points_text,
)
from .verdict import FEWEST_PAIRS, UNDECIDED, usable_interval

REFERENCE, OTHER = "fp32", "bf16"
MARGIN = 0.01
"""Largest difference that counts as no difference: the largest gain of the paper here."""

PLANNED = {"digits": 20}
"""Number of pairs per row that results/PLAN.md requires, by data set."""

SAME, LOWER, HIGHER = "same", "lower", "higher"
COLUMNS = (
    SPARSITY,
    "quantity",
    f"{REFERENCE}, %",
    f"{OTHER}, %",
    PAIRS,
    DIFFERENCE,
    INTERVAL,
    VERDICT,
)
LEGEND = f"""\
Difference: test accuracy after the last epoch in {OTHER} minus that in {REFERENCE}, averaged over \
pairs with the same seed, mask, initial weights and data order. Its interval is Student's t \
interval. The effect of a term is its accuracy minus that of the baseline, in points, in each \
precision.

The verdict is *{SAME}* if the interval lies within ±{100 * MARGIN:g} point. Otherwise it is \
*{LOWER}* or *{HIGHER}* if the interval excludes 0, and *{UNDECIDED}* if it does not. It is always \
*{UNDECIDED}* with fewer than {FEWEST_PAIRS} pairs, without an interval, or if a run diverged in \
more than one fifth of the pairs. {OTHER} may be used only if every accuracy is *{SAME}*, no \
effect is *{LOWER}* or *{HIGHER}*, and every row has the planned number of pairs \
({PLANNED["digits"]} on digits).
"""


@dataclass(frozen=True)
class Row:
    """One quantity at one sparsity. In its comparison, fp32 is the baseline and bf16 is the arm.

    Attributes:
        comparison: paired comparison of bf16 with fp32.
        effect: if True, the quantity is the effect of the term, otherwise an accuracy.
    """

    comparison: Comparison
    effect: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the group shares, from which `title` and `slug` derive its name."""
        return _shared(self.comparison.cell.settings)

    @property
    def sparsity(self) -> float:
        """Sparsity of the networks, a fraction of 1."""
        return self.comparison.cell.settings["sparsity"]

    @property
    def arm(self) -> Arm:
        """The arm of the runs."""
        return self.comparison.arm

    @property
    def quantity(self) -> str:
        """Name of the quantity, for tables and figures."""
        return f"effect of {self.arm.label}" if self.effect else f"accuracy, {self.arm.label}"

    @property
    def verdict(self) -> str:
        """The verdict of the rule that `LEGEND` states."""
        interval = usable_interval(self.comparison)
        if interval is None:
            return UNDECIDED
        low, high = interval
        if low >= -MARGIN and high <= MARGIN:
            return SAME
        return LOWER if high < 0 else HIGHER if low > 0 else UNDECIDED


def precision_rows(records: Iterable[Record]) -> list[list[Row]]:
    """Return the rows of each group that was run in both precisions, ordered by sparsity.

    The runs of a group differ only in precision, sparsity, term and seed. Each sparsity has a row
    for the accuracy of every arm, followed by a row for the effect of every arm with a term.

    Args:
        records: the records of runs.
    """
    found: dict[str, dict[float, dict[str, Cell]]] = {}
    for cell in cells(records):
        levels = found.setdefault(json.dumps(_shared(cell.settings), sort_keys=True), {})
        level = levels.setdefault(cell.settings["sparsity"], {})
        level[cell.settings["precision"]] = cell
    both = [
        [level for level in levels.values() if {REFERENCE, OTHER} <= level.keys()]
        for levels in found.values()
    ]
    return [[row for level in levels for row in _of_level(level)] for levels in both if levels]


def chosen_precision(rows: Sequence[Row]) -> str:
    """Return the precision that the decision rule allows: bf16, or fp32 if a condition is not met.

    Args:
        rows: the rows of one group, from `precision_rows`.
    """
    if any(row.comparison.n < PLANNED.get(row.settings["dataset"], 0) for row in rows):
        return REFERENCE
    alike = all(row.verdict == SAME for row in rows if not row.effect)
    moved = any(row.verdict in (LOWER, HIGHER) for row in rows if row.effect)
    return OTHER if rows and alike and not moved else REFERENCE


def precision_table(records: Iterable[Record]) -> str:
    """Return a Markdown table and the decision for each group that was run in both precisions.

    Args:
        records: the records of runs.
    """
    tables = [_table(rows) for rows in precision_rows(records)]
    return "\n".join([*tables, LEGEND]) if tables else "There are no runs in both precisions yet.\n"


def _shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k not in ("precision", "sparsity")}


def _of_level(level: Mapping[str, Cell]) -> list[Row]:
    """Return all rows of one sparsity."""
    arms = sorted({arm for cell in level.values() for arm in cell.arms})
    found = {
        arm: compare_sides(
            level[OTHER],
            arm,
            {name: level[name].arms.get(arm, {}) for name in (REFERENCE, OTHER)},
        )
        for arm in arms
    }
    accuracies = [Row(comparison) for comparison in found.values()]
    if BASELINE not in found:
        return accuracies
    return accuracies + [
        Row(_effect(found[BASELINE], found[arm]), effect=True) for arm in arms if arm != BASELINE
    ]


def _effect(without: Comparison, with_term: Comparison) -> Comparison:
    """Return the effect of the term in both precisions, for the seeds that have all four runs."""
    sides = [
        dict(zip(c.seeds, zip(c.baseline, c.treated, strict=True), strict=True))
        for c in (without, with_term)
    ]
    values = {
        seed: (reference - sides[0][seed][0], other - sides[0][seed][1])
        for seed, (reference, other) in sides[1].items()
        if seed in sides[0]
    }
    return of_values(
        with_term.cell,
        with_term.arm,
        values,
        _each_seed_once(without.diverged, with_term.diverged),
        _each_seed_once(without.incomplete, with_term.incomplete),
    )


def _each_seed_once(*lists: Sequence[str]) -> list[str]:
    """Join lines of the form "seed 3: why" that belong to the same seed."""
    whys: dict[str, list[str]] = {}
    for line in (line for lines in lists for line in lines):
        seed, why = line.split(": ", 1)
        if why not in whys.setdefault(seed, []):
            whys[seed].append(why)
    return [f"{seed}: {', '.join(why)}" for seed, why in whys.items()]


def _table(rows: Sequence[Row]) -> str:
    heading = f"### {OTHER} and {REFERENCE}: {title(rows[0].settings)}"
    lines = [heading, "", *markdown(COLUMNS, [_cells(row) for row in rows]), ""]
    for row in rows:
        c = row.comparison
        at = f"{percent(row.sparsity)} {row.quantity}"
        if c.diverged:
            lines.append(f"- {at}: excluded pairs with a diverged run: {', '.join(c.diverged)}")
        if c.incomplete:
            lines.append(f"- {at}: excluded incomplete pairs: {', '.join(c.incomplete)}")
        if c.note:
            lines.append(f"- {at}: {c.note}")
    return "\n".join([*lines, f"- Result of the rule below: **{chosen_precision(rows)}**"]) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    c = row.comparison
    sign = "+" if row.effect else ""
    return (
        percent(row.sparsity),
        row.quantity,
        *(f"{100 * mean(v):{sign}.2f}" if v else NOTHING for v in (c.baseline, c.treated)),
        str(c.n),
        points_text(c.mean),
        interval_text(c.t_interval),
        row.verdict,
    )
