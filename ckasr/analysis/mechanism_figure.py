"""The figure of layer similarity, weights and rank against beta."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckasr.storage import write_text

from .cells import BASELINE, Arm, Cell, Record, cell_title, percent, power_of_ten, slug
from .marks import NOTE, draw_means, draw_seeds
from .mechanism import (
    NORM,
    QUANTITIES,
    mechanism_cells,
    mechanism_table,
    several_betas,
    values_of,
)
from .style import GUIDE, Look, blank, looks, save, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE = 20.0
"""Smallest ratio of the largest to the smallest value for which an axis is logarithmic."""


@styled
def mechanism_numbers(cell: Cell) -> "Figure":
    """Draw layer similarity, norm, concentration and effective rank against beta, one panel each.

    Each run is a dot. The mean over seeds has its 95 % Student-t interval. A dashed line shows the
    mean of the baseline.

    Args:
        cell: one of the cells of `mechanism_cells`.
    """
    arms = looks(cell.arms)
    figure = blank(7.2, 4.4)
    for axis, quantity in zip(figure.subplots(2, 3).flatten(), QUANTITIES, strict=True):
        values = {arm: values_of(cell, arm, quantity) for arm in arms}
        draw_against_beta(axis, values, arms, log=quantity is NORM and is_wide(values))
        axis.set_ylabel(quantity.label)
    figure.suptitle(f"{wrapped(cell_title(cell.settings), 100)}\n{NOTE}")
    return figure


def write_mechanism(records: Iterable[Record], folder: Path) -> list[Path]:
    """Write the table and the figure of every cell with several betas.

    Args:
        records: the records of one folder.
        folder: folder of results in which ``tables/`` and ``figures/`` are written.

    Returns:
        The written files.
    """
    found = [cell for cell in mechanism_cells(records) if several_betas(cell)]
    if not found:
        return []
    written = [folder / "tables" / "mechanism.md"]
    write_text(written[0], mechanism_table(found))
    for cell in found:
        written += save(mechanism_numbers(cell), figure_path(cell, folder, "mechanism"))
    return written


def figure_path(cell: Cell, folder: Path, kind: str) -> Path:
    """Return the path of the PNG file of a figure of one cell."""
    at = percent(cell.settings["sparsity"]).replace(" %", "")
    return folder / "figures" / f"{slug(cell.settings)}_s{at}_{kind}.png"


def draw_against_beta(
    axis: "Axes",
    values: Mapping[Arm, Sequence[float]],
    arms: Mapping[Arm, Look],
    log: bool = False,
) -> None:
    """Draw the runs of every arm above its beta, with their mean and its interval.

    Args:
        axis: axes to draw on.
        values: one value per run, by arm. An arm without a value keeps its position on the x axis.
        arms: look of every arm, in the order of the positions.
        log: if True, the y axis is logarithmic, and no interval is drawn, because an interval may
            include values below 0.
    """
    for place, (arm, look) in enumerate(arms.items()):
        if numbers := list(values.get(arm, ())):
            draw_seeds(axis, place - 0.2, numbers, look)
            center = [sum(numbers) / len(numbers)] if log else numbers
            draw_means(axis, [place + 0.2], [center], look)
    if reference := list(values.get(BASELINE, ())):
        level = sum(reference) / len(reference)
        axis.axhline(level, **{**GUIDE, "color": "0.5", "linestyle": (0, (4, 3))})
    if log:
        axis.set_yscale("log")
    crowded = len(arms) > 4
    labels = [tick(arm) for arm in arms]
    axis.set_xticks(range(len(arms)), labels, fontsize=6 if crowded else 8)
    axis.set_xlim(-0.6, len(arms) - 0.4)
    axis.set_xlabel("β")
    axis.set_ylabel("")


def is_wide(values: Mapping[Arm, Sequence[float]]) -> bool:
    """Return whether all values are positive and their range requires a logarithmic axis."""
    shown = [number for numbers in values.values() for number in numbers]
    return bool(shown) and 0 < WIDE * min(shown) < max(shown)


def tick(arm: Arm) -> str:
    """Return the tick label of an arm: its beta, and other settings that are not the default."""
    if arm == BASELINE:
        return "0"
    before, _, behind = arm.label.partition(f"β = {power_of_ten(arm.beta)}")
    words = [before.removeprefix("CKA-SR").strip(", "), behind.strip(", ")]
    return "\n".join([power_of_ten(arm.beta), *(word for word in words if word)])
