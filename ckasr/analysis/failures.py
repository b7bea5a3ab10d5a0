"""How the term fails as beta grows: accuracy, loss, term, gradient, dead classes, time, memory."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import mean

from .cells import BASELINE, Arm, Cell, Record, cell_title, cells
from .mechanism import several_betas
from .statistics import compare
from .tables import NOTHING, markdown
from .verdict import COLLAPSE

DOMINATES = 1.0
"""Ratio of the gradient norm of the term to that of the loss, above which the term dominates."""

GROWS = 1.5
"""Factor by which the norm of the weights must exceed the baseline's to count as a failure."""

SLOWER = 0.1
"""Relative increase of time or memory that counts as a failure."""


@dataclass(frozen=True)
class Signature:
    """A quantity that can show a failure of the term.

    Attributes:
        name: name of the column of the table.
        label: label of the axis of the figure.
        read: function that returns the value of a record, or None if the record has none.
        digits: number of decimals in the table.
        log: if True, its axis may be logarithmic.
        ceiling: largest possible value, or None if there is no limit.
        smallest: smallest upper limit of its axis, so that noise does not look large.
    """

    name: str
    label: str
    read: Callable[[Record], float | None]
    digits: int
    log: bool = False
    ceiling: float | None = None
    smallest: float = 0.0


def last(record: Record, curve: str) -> float | None:
    """Return the last value of a curve of a record, or None if it has none."""
    known = [value for value in record["curves"].get(curve, ()) if value is not None]
    return known[-1] if known else None


def _accuracy(record: Record) -> float | None:
    return None if record["test_accuracy"] is None else 100 * record["test_accuracy"]


def _largest_ratio(record: Record) -> float | None:
    known = [value for value in record["curves"]["gradient_ratio"] if value is not None]
    return max(known) if known else None


def _norm(record: Record) -> float | None:
    return (record["weights"] or {}).get("frobenius_norm")


def _dead_classes(record: Record) -> float | None:
    return record["sparsity"].get("dead_classes")


def _seconds(record: Record) -> float | None:
    seconds = record["curves"].get("seconds", ())
    return sum(seconds) / len(seconds) if seconds else None


def _gigabytes(record: Record) -> float | None:
    peak = record.get("peak_memory_bytes")
    return None if peak is None else peak / 1e9


ACCURACY = Signature("test accuracy, %", "test accuracy (%)", _accuracy, 2, ceiling=100)
LOSS = Signature(
    "training loss", "training loss,\nlast epoch", lambda r: last(r, "loss"), 3, log=True
)
TERM = Signature("term", "term (before β),\nlast epoch", lambda r: last(r, "term"), 2)
RATIO = Signature(
    "gradient ratio",
    "largest ratio of gradient\nnorms, β × term to loss",
    _largest_ratio,
    3,
    log=True,
)
NORM = Signature("norm of weights", "Frobenius norm\nof all weights", _norm, 1, log=True)
DEAD = Signature(
    "dead classes", "classes without a\npath from the input", _dead_classes, 1, smallest=1.0
)
SECONDS = Signature("seconds per epoch", "seconds per epoch", _seconds, 2)
MEMORY = Signature("peak memory, GB", "peak memory (GB)", _gigabytes, 2)
SIGNATURES = (ACCURACY, LOSS, TERM, RATIO, NORM, DEAD, SECONDS, MEMORY)

COLUMNS = (
    "arm",
    "runs",
    "diverged runs",
    *(signature.name for signature in SIGNATURES),
    "failures",
)

LEGEND = f"""\
Numbers are means over seeds. Accuracy and norm are those of the finished runs, and all other \
quantities include the runs that diverged. Gradient ratio: norm of the gradient of beta times the \
term, divided by that of the loss, measured at one step per epoch; the table shows the largest \
value. Failures: *diverged*: the loss of a run is not finite; *accuracy collapsed*: the mean \
paired difference of the accuracy to the baseline is below -{100 * COLLAPSE:g} points; *gradient \
of the term dominates*: the gradient ratio is above {DOMINATES:g}; *weights grow*: the norm is \
more than {GROWS:g} times that of the baseline; *more dead classes*, *slower*, *more memory*: the \
number is larger than that of the baseline, for time and memory by more than {100 * SLOWER:.0f} %. \
Time depends on the other load of the machine. Peak memory is that of the process and includes \
what earlier runs in it have used, so only a large excess is meaningful.
"""


def failure_cells(records: Iterable[Record]) -> list[Cell]:
    """Return the cells that have a baseline, and arms with CKA-SR that differ only in beta.

    Args:
        records: the records of runs.
    """
    return [cell for cell in cells(records) if BASELINE in cell.arms and several_betas(cell)]


def numbers(cell: Cell, arm: Arm, signature: Signature) -> list[float]:
    """Return the values of a quantity for the runs of an arm that have one."""
    found = [signature.read(run) for run in cell.arms.get(arm, {}).values()]
    return [value for value in found if value is not None and math.isfinite(value)]


def diverged(cell: Cell, arm: Arm) -> int:
    """Return the number of runs of an arm that diverged."""
    return sum(run["status"] == "diverged" for run in cell.arms.get(arm, {}).values())


def failures_of(cell: Cell, arm: Arm) -> list[str]:
    """Return the failures that an arm shows, by the names that `LEGEND` defines.

    Args:
        cell: a cell with a baseline.
        arm: an arm of the cell.

    Returns:
        The names of the failures; an empty list if the arm shows none.
    """

    def average(of: Arm, signature: Signature) -> float | None:
        values = numbers(cell, of, signature)
        return mean(values) if values else None

    def exceeds(signature: Signature, factor: float) -> bool:
        here, there = average(arm, signature), average(BASELINE, signature)
        return here is not None and there is not None and here > factor * there

    ratio = average(arm, RATIO)
    shown = {
        "diverged": diverged(cell, arm) > 0,
        "accuracy collapsed": arm != BASELINE and (compare(cell, arm).mean or 0.0) < -COLLAPSE,
        "gradient of the term dominates": ratio is not None and ratio > DOMINATES,
        "weights grow": exceeds(NORM, GROWS),
        "more dead classes": exceeds(DEAD, 1.0),
        "slower": exceeds(SECONDS, 1 + SLOWER),
        "more memory": exceeds(MEMORY, 1 + SLOWER),
    }
    return [name for name, here in shown.items() if here]


def failures_table(found: Iterable[Cell]) -> str:
    """Return a Markdown table for every cell, with a row for each arm and the failures it shows.

    Args:
        found: the cells, from `failure_cells`.
    """
    tables = [_table(cell) for cell in found]
    return "\n".join([*tables, LEGEND]) if tables else "There are no runs with several betas yet.\n"


def _table(cell: Cell) -> str:
    rows = [_row(cell, arm) for arm in cell.arms]
    heading = f"### Failures: {cell_title(cell.settings)}"
    return "\n".join([heading, "", *markdown(COLUMNS, rows)]) + "\n"


def _row(cell: Cell, arm: Arm) -> tuple[str, ...]:
    told = []
    for signature in SIGNATURES:
        values = numbers(cell, arm, signature)
        told.append(f"{mean(values):.{signature.digits}f}" if values else NOTHING)
    return (
        arm.label,
        str(len(cell.arms[arm])),
        str(diverged(cell, arm)),
        *told,
        ", ".join(failures_of(cell, arm)) or "none",
    )
