"""Every failure of the term in one figure, against beta."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ckasr.storage import write_text

from .cells import Arm, Cell, Record, percent, slug
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
from .mechanism_figure import draw_against_beta, heading
from .style import Look, blank, looks, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def failure_signatures(cell: Cell) -> "Figure":
    """Accuracy, loss, term, gradient, norm, dead classes, time and memory, a panel for each.

    Each run a dot, the mean over seeds with its 95 % Student-t interval; the baseline at the left
    and as a dashed line. Betas at which runs have diverged are marked in the panel of the accuracy.

    Args:
        cell: one of `failure_cells`.
    """
    arms = looks(cell.arms)
    figure = blank(7.6, 4.3)
    axes = figure.subplots(2, 4).flatten()
    for axis, signature in zip(axes, SIGNATURES, strict=True):
        _draw_signature(axis, cell, signature, arms)
    for place, arm in enumerate(arms):
        if lost := diverged(cell, arm):
            words = f"{lost} of {len(cell.arms[arm])}\ndiverged"
            axes[0].annotate(
                words, (place, 0.02), xycoords=("data", "axes fraction"), ha="center", fontsize=6
            )
    note = "Dots: runs. Markers: mean over seeds and its 95 % Student-t interval."
    figure.suptitle(f"{heading(cell)}\n{note}", fontsize=8)
    return figure


def write_failures(records: Iterable[Record], folder: Path) -> list[Path]:
    """Table and figures of the cells with several betas under ``folder``; returns the files."""
    from .write import save

    found = failure_cells(records)
    if not found:
        return []
    written = [folder / "tables" / "failures.md"]
    write_text(written[0], failures_table(found))
    for cell in found:
        at = percent(cell.settings["sparsity"]).replace(" %", "")
        name = f"{slug(cell.settings)}_s{at}_failures.png"
        written.append(save(failure_signatures(cell), folder / "figures" / name))
    return written


def _draw_signature(
    axis: "Axes", cell: Cell, signature: Signature, arms: Mapping[Arm, Look]
) -> None:
    values = {arm: numbers(cell, arm, signature) for arm in arms}
    shown = [number for found in values.values() for number in found]
    draw_against_beta(axis, values, arms)
    axis.set_ylabel(signature.label)
    if signature.log and shown and 0 < 20 * min(shown) < max(shown):
        axis.set_yscale("log")
    elif shown and min(shown) >= 0:
        axis.set_ylim(bottom=0)
    if signature is RATIO:
        axis.axhline(DOMINATES, color="0.3", linewidth=0.7, linestyle=(0, (1, 2)), zorder=0)
    if not shown:
        axis.annotate("not measured", (0.5, 0.5), xycoords="axes fraction", ha="center")
