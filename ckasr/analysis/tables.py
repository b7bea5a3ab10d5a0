"""Markdown tables of the accuracies of runs, with the published accuracies of the paper."""

from collections.abc import Callable, Iterable, Sequence

from .cells import BASELINE, Arm, Cell, Record, families, percent, studies, title
from .paper import (
    CLAIM_TERMS,
    LOTTERY_TERMS,
    SELECTION,
    claim_beside,
    deviations,
    lookup,
    paper_difference,
)
from .statistics import Comparison, Interval, compare, holm, mean_and_sd, report_mean, value_of
from .verdict import RULE, place, verdict_of, verdict_on_claim

NOTHING = "-"
# Headings of columns that several tables share.
SPARSITY = "sparsity"
ACCURACY = "test accuracy, % ± sd (n)"
EFFECTIVE = "effective sparsity"
DEAD_CLASSES = "dead classes"
UNKNOWN_PATHS = (
    "effective sparsity and dead classes are unknown, because the paths cannot be traced"
)
PAIRS = "pairs"
DIFFERENCE = "difference, points"
INTERVAL = "95 % interval"
PAPER = "paper, %"
VERDICT = "verdict"
COLUMNS = (
    SPARSITY,
    "arm",
    ACCURACY,
    EFFECTIVE,
    DEAD_CLASSES,
    DIFFERENCE,
    INTERVAL,
    "p",
    "Holm p",
    PAPER,
    "paper's difference",
    VERDICT,
)

LEGEND = f"""\
Test accuracy is measured after the last epoch; sd is the standard deviation over n seeds. \
Difference: arm minus baseline, averaged over pairs with the same seed, mask and data order. Its \
interval is Student's t interval. p is the p-value of the exact two-sided sign-flip test, and \
Holm p is its value after Holm's correction for all rows of the table. Effective sparsity counts \
only weights on a path from input to output, and a dead class has no such path; both are means \
over seeds. The paper's difference is followed by its position: inside, above or below our \
interval.

{RULE}
"""

ELSEWHERE = "The methods are compared in a separate table: [methods.md](methods.md).\n"


def runs_table(records: Iterable[Record]) -> str:
    """Return a Markdown table for each group, with a row for each sparsity and arm.

    The runs of a table differ only in sparsity, term and seed. The lines below a table state which
    runs could not be used, and how our recipe differs from the paper's. Methods that were run
    without a term are in `methods_table`.

    Args:
        records: the records of runs.
    """
    records = list(records)
    tables = [group_table(group) for group in studies(records)]
    parts = [*tables, LEGEND] if tables else []
    parts += [ELSEWHERE] if families(records) else []
    return "\n".join(parts) or "There are no records yet.\n"


def group_table(group: Sequence[Cell]) -> str:
    """Return the Markdown table of one group, with a heading and notes.

    Args:
        group: cells that differ only in sparsity.
    """
    comparisons = [compare(cell, arm) for cell in group for arm in cell.arms if arm != BASELINE]
    adjusted = holm([comparison.p for comparison in comparisons])
    corrected = {(id(c.cell), c.arm): (c, p) for c, p in zip(comparisons, adjusted, strict=True)}
    rows = [
        _row(cell, arm, *corrected.get((id(cell), arm), (None, None)))
        for cell in group
        for arm in cell.arms
    ]
    claimed = [row for comparison in comparisons if (row := _claim_row(comparison))]
    rows += claimed
    lines = [f"### {title(group[0].settings)}", "", *markdown(COLUMNS, rows), ""]
    lines += [f"- {note}" for note in _notes(group, comparisons)]
    if claimed:
        lines.append(f"- {CLAIM_TERMS}")
        if group[0].settings["dataset"] == "mnist":
            lines.append(f"- {LOTTERY_TERMS}")
    return "\n".join(lines).rstrip() + "\n"


def _row(
    cell: Cell, arm: Arm, comparison: Comparison | None, holm_p: float | None
) -> tuple[str, ...]:
    runs = list(cell.arms[arm].values())
    values = [value_of(run) for run in runs if run["status"] != "diverged"]
    average, sd = mean_and_sd(values)
    accuracy = NOTHING if average is None else f"{100 * average:.2f}"
    if sd is not None:
        accuracy += f" ± {100 * sd:.2f}"
    effective, dead = report_mean(runs, "effective"), report_mean(runs, "dead_classes")
    classes = runs[0]["sparsity"]["classes"]
    published = lookup(cell.settings, arm)
    if comparison is None:
        compared = (NOTHING,) * 4
    else:
        compared = (
            points_text(comparison.mean),
            interval_text(comparison.t_interval),
            p_text(comparison.p),
            p_text(holm_p),
        )
    return (
        percent(cell.settings["sparsity"]),
        arm.label,
        f"{accuracy} ({len(values)})",
        NOTHING if effective is None else f"{100 * effective:.2f} %",
        NOTHING if dead is None else f"{dead:.3g} of {classes}",
        *compared,
        NOTHING if published is None else f"{published.percent:.2f}",
        _paper_difference(cell, arm, comparison.t_interval if comparison else None),
        NOTHING if comparison is None else verdict_of(comparison),
    )


def _claim_row(comparison: Comparison) -> tuple[str, ...] | None:
    """Return the row of the gain that the abstract claims for the cell, or None without a claim."""
    settings, arm = comparison.cell.settings, comparison.arm
    claim = claim_beside(settings)
    if claim is None or arm.term != BASELINE.term:  # The claim is about CKA-SR, not a placebo.
        return None
    elsewhere = "" if claim.dataset == settings["dataset"] else f", on {claim.dataset}"
    return (
        percent(settings["sparsity"]),
        f"claim of the abstract{elsewhere}, and {arm.label}",
        f"{comparison.n} pairs",
        NOTHING,
        NOTHING,
        points_text(comparison.mean),
        interval_text(comparison.t_interval),
        NOTHING,
        NOTHING,
        NOTHING,
        _placed(claim.gain, comparison.t_interval),
        verdict_on_claim(comparison, claim),
    )


def _paper_difference(cell: Cell, arm: Arm, interval: Interval | None) -> str:
    difference = paper_difference(cell.settings, arm)
    return NOTHING if difference is None else _placed(difference, interval)


def _placed(difference: float, interval: Interval | None) -> str:
    """Return a published difference in percentage points, and its position to the interval."""
    where = "" if interval is None else f" ({place(difference, interval)})"
    return f"{100 * difference:+.2f}{where}"


def _notes(group: Sequence[Cell], comparisons: Sequence[Comparison]) -> list[str]:
    found: dict[str, list[str]] = {}  # Each note, and the rows to which it applies.

    def say(text: str, cell: Cell, arm: Arm) -> None:
        found.setdefault(text, []).append(f"{percent(cell.settings['sparsity'])} {arm.label}")

    for cell in group:
        for arm, runs in cell.arms.items():
            broken = [str(seed) for seed, run in runs.items() if run["status"] == "diverged"]
            if broken:
                say(f"diverged and excluded from the mean: seed {', '.join(broken)}", cell, arm)
            for run in runs.values():
                if reason := run["sparsity"].get("not_followed"):
                    say(f"{UNKNOWN_PATHS}: {reason}", cell, arm)
                    break
    for c in comparisons:
        if c.diverged:
            say(f"excluded pairs with a diverged run: {', '.join(c.diverged)}", c.cell, c.arm)
        if c.incomplete:
            say(f"excluded incomplete pairs: {', '.join(c.incomplete)}", c.cell, c.arm)
        if c.note:
            say(c.note, c.cell, c.arm)
    notes = [f"{'; '.join(rows)}: {text}" for text, rows in found.items()]

    most = max((c.n for c in comparisons), default=0)
    if most > 1:
        notes.append(
            f"With {most} pairs, p of the sign-flip test is at least {p_text(2.0 ** (1 - most))}"
        )
    if any(lookup(cell.settings, arm) for cell in group for arm in cell.arms):
        different = deviations(group[0].settings)
        ours = f"; our recipe differs: {', '.join(different)}" if different else "; same recipe"
        notes.append(f"The paper's numbers: {SELECTION}{ours}")
    return notes


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table, padded so that the columns of the text are aligned.

    Columns in which every row has `NOTHING` are left out.

    Args:
        header: headings of the columns.
        rows: the cells of each row, as many as there are headings.
    """
    told = [
        column
        for column in zip(header, *rows, strict=True)
        if any(value != NOTHING for value in column[1:])
    ]
    table = list(zip(*told, strict=True))
    widths = [max(len(row[i]) for row in table) for i in range(len(told))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in table
    ]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]


def corrected_table(
    title: str,
    header: Sequence[str],
    rows: Sequence[tuple[str, Comparison, Callable[[float | None], Sequence[str]]]],
) -> str:
    """Return a Markdown table with a heading and Holm's correction for all of its rows.

    The lines below the table state which seeds are excluded.

    Args:
        title: the heading.
        header: headings of the columns.
        rows: for each row, its name below the table, its comparison, and a function that returns
            its cells and whose argument is the corrected p-value.
    """
    adjusted = holm([comparison.p for _, comparison, _ in rows])
    cells = [row(p) for (_, _, row), p in zip(rows, adjusted, strict=True)]
    lines = [f"### {title}", "", *markdown(header, cells), ""]
    for name, comparison, _ in rows:
        if lost := [*comparison.diverged, *comparison.incomplete]:
            lines.append(f"- {name}: excluded seeds: {'; '.join(lost)}")
    return "\n".join(lines) + "\n"


def points_text(difference: float | None) -> str:
    """Format a difference of fractions in percentage points, with its sign."""
    return NOTHING if difference is None else f"{100 * difference:+.2f}"


def interval_text(interval: Interval | None) -> str:
    """Format both ends of an interval of fractions in percentage points."""
    return NOTHING if interval is None else f"[{100 * interval[0]:+.2f}, {100 * interval[1]:+.2f}]"


def p_text(p: float | None) -> str:
    """Format a p-value with three digits."""
    return NOTHING if p is None else f"{p:.3g}"
