"""bf16 against fp32: runs that differ in the precision alone, by the rule of results/PLAN.md."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from .cells import BASELINE, Arm, Cell, Record, cells, percent, title
from .statistics import Comparison, compare_sides, of_values
from .tables import NOTHING, interval_text, markdown
from .verdict import FEWEST_PAIRS, UNDECIDED, too_little

REFERENCE, OTHER = "fp32", "bf16"
MARGIN = 0.01  # of accuracy: the largest gain the paper reports in these settings
PLANNED = {"digits": 20}  # pairs of every row that results/PLAN.md asks for, by data set
SAME, LOWER, HIGHER = "same", "lower", "higher"
COLUMNS = (
    "sparsity",
    "quantity",
    f"{REFERENCE}, %",
    f"{OTHER}, %",
    "pairs",
    "difference, points",
    "t 95 %",
    "verdict",
)
LEGEND = f"""\
Test accuracy after the last epoch, in {OTHER} minus in {REFERENCE}: mean over pairs of the same \
seed, mask, weights and data order; interval of that mean by Student's t. \
The effect of a term is its accuracy minus the baseline's, in points, in each precision.

Verdict, by the t interval: *{SAME}* if all of it lies within {100 * MARGIN:g} point either way; \
else *{LOWER}* or *{HIGHER}* if it excludes 0; else *{UNDECIDED}*. Always *{UNDECIDED}* with fewer \
than {FEWEST_PAIRS} pairs, without an interval, or where more than one pair in five diverged. \
{OTHER} may be used only where every accuracy is *{SAME}*, no effect is *{LOWER}* or *{HIGHER}*, \
and every row has the pairs that were planned ({PLANNED["digits"]} on digits).
"""


@dataclass(frozen=True)
class Row:
    """One quantity at one sparsity: fp32 is the comparison's baseline, bf16 what is treated."""

    comparison: Comparison
    effect: bool = False  # of the term, instead of an accuracy

    @property
    def settings(self) -> dict[str, Any]:
        """What its whole group has in common: what `title` and `slug` name the group by."""
        return _shared(self.comparison.cell.settings)

    @property
    def sparsity(self) -> float:
        return self.comparison.cell.settings["sparsity"]

    @property
    def arm(self) -> Arm:
        return self.comparison.arm

    @property
    def quantity(self) -> str:
        return f"effect of {self.arm.label}" if self.effect else f"accuracy, {self.arm.label}"

    @property
    def verdict(self) -> str:
        """The word of `LEGEND`."""
        if too_little(self.comparison):
            return UNDECIDED
        low, high = self.comparison.t_interval
        if low >= -MARGIN and high <= MARGIN:
            return SAME
        return LOWER if high < 0 else HIGHER if low > 0 else UNDECIDED


def precision_rows(records: Iterable[Record]) -> list[list[Row]]:
    """A list of rows for each group that was run in both precisions, by sparsity.

    A group: what differs in nothing but precision, sparsity, term and seed. At each sparsity the
    accuracy of every arm, then the effect of every arm with a term.
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
    """The precision that the decision rule allows: bf16, or fp32 wherever there is doubt."""
    if any(row.comparison.n < PLANNED.get(row.settings["dataset"], 0) for row in rows):
        return REFERENCE
    alike = all(row.verdict == SAME for row in rows if not row.effect)
    moved = any(row.verdict in (LOWER, HIGHER) for row in rows if row.effect)
    return OTHER if rows and alike and not moved else REFERENCE


def precision_table(records: Iterable[Record]) -> str:
    """Markdown: a table for each group that was run in both precisions, with its decision."""
    tables = [_table(rows) for rows in precision_rows(records)]
    return "\n".join([*tables, LEGEND]) if tables else "There are no runs in both precisions yet.\n"


def _shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k not in ("precision", "sparsity")}


def _of_level(level: Mapping[str, Cell]) -> list[Row]:
    """All rows of one sparsity."""
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
    """With minus without the term in either precision, for the seeds that have all four runs."""
    sides = [
        {seed: pair for seed, *pair in zip(c.seeds, c.baseline, c.treated, strict=True)}
        for c in (without, with_term)
    ]
    values = {
        seed: tuple(w - b for b, w in zip(sides[0][seed], pair, strict=True))
        for seed, pair in sides[1].items()
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
    """Lines "seed 3: why" of both arms, joined where they are of one seed."""
    whys: dict[str, list[str]] = {}
    for line in (line for lines in lists for line in lines):
        seed, why = line.split(": ", 1)
        if why not in whys.setdefault(seed, []):
            whys[seed].append(why)
    return [f"{seed}: {', '.join(why)}" for seed, why in whys.items()]


def _table(rows: Sequence[Row]) -> str:
    heading = f"### {OTHER} against {REFERENCE}: {title(rows[0].settings)}"
    lines = [heading, "", *markdown(COLUMNS, [_cells(row) for row in rows]), ""]
    for row in rows:
        c = row.comparison
        at = f"{percent(row.sparsity)} {row.quantity}"
        if c.diverged:
            lines.append(f"- {at}: pairs lost to divergence: {', '.join(c.diverged)}")
        if c.incomplete:
            lines.append(f"- {at}: incomplete pairs, left out: {', '.join(c.incomplete)}")
        if c.note:
            lines.append(f"- {at}: {c.note}")
    return "\n".join([*lines, f"- By the rule below: **{chosen_precision(rows)}**"]) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    c = row.comparison
    sign = "+" if row.effect else ""
    return (
        percent(row.sparsity),
        row.quantity,
        *(f"{100 * mean(v):{sign}.2f}" if v else NOTHING for v in (c.baseline, c.treated)),
        str(c.n),
        NOTHING if c.mean is None else f"{100 * c.mean:+.2f}",
        interval_text(c.t_interval),
        row.verdict,
    )
