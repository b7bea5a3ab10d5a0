"""The figure of all failures of the term against beta."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ckasr.storage import write_text

from .cells import Arm, Cell, Record, cell_title
from .failures import (
    DOMINATES,
    RATIO,
    SIGNATURES,
    Signature,
    diverged,
    failure_cells,
    failures_table,
    numbers,
)
from .marks import NOTE
from .mechanism_figure import draw_against_beta, figure_path, is_wide
from .style import GUIDE, Look, blank, looks, save, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def failure_signatures(cell: Cell) -> "Figure":
    """Draw accuracy, loss, term, gradient, norm, dead classes, time and memory, one panel each.

    Each run is a dot. The mean over seeds has its 95 % Student-t interval, except on a logarithmic
    axis. A dashed line shows the mean of the baseline. The panel of the accuracy states the number
    of runs that diverged.

    Args:
        cell: one of the cells of `failure_cells`.
    """
    arms = looks(cell.arms)
    figure = blank(8.4, 4.5)
    axes = figure.subplots(2, 4).flatten()
    for axis, signature in zip(axes, SIGNATURES, strict=True):
        _draw_signature(axis, cell, signature, arms)
    for place, arm in enumerate(arms):
        if lost := diverged(cell, arm):
            words, where = f"{lost} of {len(cell.arms[arm])}\ndiverged", (place, 0.02)
            anchor = ("data", "axes fraction")
            axes[0].annotate(words, where, xycoords=anchor, ha="center", fontsize=6)
    figure.suptitle(f"{wrapped(cell_title(cell.settings), 100)}\n{NOTE}")
    return figure


def write_failures(records: Iterable[Record], folder: Path) -> list[Path]:
    """Write the table and the figure of every cell with several betas.

    Args:
        records: the records of one folder.
        folder: folder of results in which ``tables/`` and ``figures/`` are written.

    Returns:
        The written files.
    """
    found = failure_cells(records)
    if not found:
        return []
    written = [folder / "tables" / "failures.md"]
    write_text(written[0], failures_table(found))
    for cell in found:
        written += save(failure_signatures(cell), figure_path(cell, folder, "failures"))
    return written


def _draw_signature(
    axis: "Axes", cell: Cell, signature: Signature, arms: Mapping[Arm, Look]
) -> None:
    values = {arm: numbers(cell, arm, signature) for arm in arms}
    shown = [number for found in values.values() for number in found]
    log = signature.log and is_wide(values)
    draw_against_beta(axis, values, arms, log)
    axis.set_ylabel(signature.label)
    if signature is RATIO:
        axis.axhline(DOMINATES, **{**GUIDE, "linestyle": (0, (1, 2))})
    if not shown:
        axis.annotate("not measured", (0.5, 0.5), xycoords="axes fraction", ha="center")
    elif not log:
        highest = axis.get_ylim()[1]
        axis.set_ylim(0, signature.ceiling or max(1.1 * max(shown), highest, signature.smallest))
