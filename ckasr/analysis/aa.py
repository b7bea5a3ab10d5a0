"""The A/A check: how often the decision rule finds a difference where there is none.

A pair is two runs that differ only in the order of the training images (setting ``order_seed``), so
any difference between them is due to chance. The pairs are split into groups of five, in the order
of their seeds, and each group is judged as if it were a comparison with five seeds.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .cells import Arm, Record, cell_title, cells
from .statistics import (
    CONFIDENCE,
    Comparison,
    compare_sides,
    half_width,
    mean_and_sd,
    of_values,
)
from .tables import (
    DIFFERENCE,
    INTERVAL,
    NOTHING,
    PAIRS,
    VERDICT,
    interval_text,
    markdown,
    points_text,
)
from .verdict import difference_shown, verdict_of

SIZE = 5
"""Number of pairs per group, equal to the number of seeds of the comparisons that are judged."""

COLUMNS = ("seeds", PAIRS, DIFFERENCE, INTERVAL, VERDICT)

LEGEND = """\
Difference: test accuracy after the last epoch with a different order of the training images, \
minus that with the order that the seed gives. The runs of a pair share the seed, the initial \
weights, the mask, the split, and the crop and flip of every image in every epoch. The verdict is \
that of the decision rule for the pairs of the row. The smallest difference that can be shown is \
Student's t quantile (97.5 %) times the standard deviation of the paired differences, divided by \
the square root of the number of pairs. The interval of a mean difference of this size just \
excludes 0, and a true difference of this size is shown in about half of all comparisons.
"""


@dataclass(frozen=True)
class Check:
    """All pairs of one cell and arm, and the same pairs split into groups of `SIZE`.

    Attributes:
        whole: the comparison over all pairs.
        groups: the comparisons over each complete group of `SIZE` pairs.
        order_seeds: values of ``order_seed`` of the first and the second run of a pair.
    """

    whole: Comparison
    groups: tuple[Comparison, ...]
    order_seeds: tuple[int, int]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the runs of a pair share."""
        return _shared(self.whole.cell.settings)

    @property
    def called(self) -> int:
        """Number of groups that the rule calls positive or negative although nothing differs."""
        return sum(difference_shown(group) for group in self.groups)

    @property
    def left_over(self) -> int:
        """Number of pairs that remain after the last complete group."""
        return self.whole.n - SIZE * len(self.groups)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the differences, as a fraction; None for fewer than two pairs."""
        return mean_and_sd(self.whole.differences)[1]

    def smallest_difference(self, pairs: int = SIZE) -> float | None:
        """Return the smallest difference that can be shown, as a fraction of 1.

        Args:
            pairs: number of pairs.

        Returns:
            The difference, or None if the standard deviation is not known.
        """
        return None if self.spread is None else half_width(self.spread, pairs)

    @property
    def text(self) -> str:
        """The result in one or two sentences."""
        n = len(self.groups)
        spread, smallest = self.spread, self.smallest_difference()
        if not n or spread is None or smallest is None:
            return f"there are {self.whole.n} complete pairs; the first group needs {SIZE}"
        chance = 1 - CONFIDENCE**n
        return (
            f"the verdict is positive or negative for {self.called} of {n} groups of {SIZE} pairs "
            f"({100 * self.called / n:.3g} %); {100 * (1 - CONFIDENCE):.3g} % are expected by "
            f"chance, and {100 * chance:.0f} % of such checks have at least one such group. The "
            f"differences of the {self.whole.n} pairs have a standard deviation of "
            f"{100 * spread:.2f} points. The smallest difference that {SIZE} pairs can show is "
            f"{100 * smallest:.2f} points"
        )


def aa_checks(records: Iterable[Record]) -> list[Check]:
    """Return a check for each cell and arm that was run with more than one order of the images.

    The runs with the lowest ``order_seed`` are compared with the runs of every other value.

    Args:
        records: the records of runs.
    """
    found: dict[tuple[str, Arm], dict[int, Any]] = {}
    for cell in cells(records):
        key = json.dumps(_shared(cell.settings), sort_keys=True)
        for arm in cell.arms:
            found.setdefault((key, arm), {})[cell.settings["order_seed"]] = cell
    return [
        _check(by_order[orders[0]], by_order[other], arm)
        for (_, arm), by_order in found.items()
        for orders in [sorted(by_order)]
        for other in orders[1:]
    ]


def aa_table(records: Iterable[Record]) -> str:
    """Return a Markdown table for each check, with a row for each group of pairs.

    If there is no check, the text is one line that says so.

    Args:
        records: the records of runs.
    """
    tables = [_table(check) for check in aa_checks(records)]
    return "\n".join([*tables, LEGEND]) if tables else "There are no A/A pairs yet.\n"


def _shared(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "order_seed"}


def _check(first: Any, second: Any, arm: Arm) -> Check:
    orders = first.settings["order_seed"], second.settings["order_seed"]
    sides = {
        f"run of order_seed {order}": cell.arms[arm]
        for order, cell in zip(orders, (first, second), strict=True)
    }
    whole = compare_sides(second, arm, sides)
    values = list(zip(whole.seeds, zip(whole.baseline, whole.treated, strict=True), strict=True))
    groups = tuple(
        of_values(second, arm, dict(values[start : start + SIZE]))
        for start in range(0, len(values) - SIZE + 1, SIZE)
    )
    return Check(whole, groups, orders)


def _table(check: Check) -> str:
    heading = f"### A/A: {cell_title(check.settings)}"
    whole = check.whole
    rows = [_row(group, verdict_of(group)) for group in check.groups]
    rows.append(_row(whole, NOTHING))
    lines = [f"{heading}, {whole.arm.label}", "", *markdown(COLUMNS, rows), "", f"- {check.text}."]
    if check.left_over and check.groups:
        lines.append(f"- Pairs after the last complete group: {check.left_over}")
    if whole.diverged:
        lines.append(f"- Excluded pairs with a diverged run: {', '.join(whole.diverged)}")
    if whole.incomplete:
        lines.append(f"- Excluded incomplete pairs: {', '.join(whole.incomplete)}")
    return "\n".join(lines) + "\n"


def _row(comparison: Comparison, word: str) -> tuple[str, ...]:
    return (
        _seeds(comparison.seeds),
        str(comparison.n),
        points_text(comparison.mean),
        interval_text(comparison.t_interval),
        word,
    )


def _seeds(seeds: Sequence[int]) -> str:
    """Return seeds as text: "0 to 4" if none is missing, otherwise a list of all seeds."""
    if not seeds:
        return "none"
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
