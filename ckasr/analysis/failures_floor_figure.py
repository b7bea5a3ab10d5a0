"""The figure of test accuracy and of the share of classes that a path of kept weights reaches."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from .cells import Cell, Record, groups, percent, slug, title
from .marks import NOTE, draw_means, draw_seeds
from .statistics import report_mean
from .style import GUIDE, Look, blank, legend, looks, save, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEYOND = 0.998
"""The largest sparsity for which the paper reports an accuracy."""


@styled
def accuracy_and_floor(group: Iterable[Cell]) -> "Figure":
    """Draw test accuracy and the share of classes with a path from the input against sparsity.

    The logit of a class without a path of kept weights from the input is its bias alone, so only
    the share of the other classes can be learned. Both quantities are drawn on one logarithmic
    axis. A dotted line shows chance.

    Args:
        group: cells that differ only in sparsity, as `groups` returns them.

    Raises:
        ValueError: if there is no cell.
    """
    cells = list(group)
    if not cells:
        raise ValueError("there are no cells to draw")
    arms = looks(arm for cell in cells for arm in cell.arms)
    figure = blank(1.6 + 0.9 * max(3, len(cells)), 3.6)
    axis = figure.subplots()
    width = 0.8 / len(arms)
    for number, (arm, look) in enumerate(arms.items()):
        samples = {
            place + (number + 0.5) * width - 0.4: [
                100 * run["test_accuracy"]
                for run in cell.arms.get(arm, {}).values()
                if run["status"] == "finished"
            ]
            for place, cell in enumerate(cells)
        }
        samples = {place: values for place, values in samples.items() if values}
        for place, values in samples.items():
            draw_seeds(axis, place - 0.15 * width, values, look)
        means = [[sum(values) / len(values)] for values in samples.values()]
        if samples:
            draw_means(axis, [p + 0.2 * width for p in samples], means, look, arm.label)
    floor: Look = {"color": "#0072B2", "linewidth": 1.4}
    for place, cell in enumerate(cells):
        label = "classes with a path from the input" if place == 0 else ""
        if (share := live_share(cell)) is None:
            continue
        axis.hlines(100 * share, place - 0.42, place + 0.42, label=label, **floor)
    reports = [run["sparsity"] for cell in cells for a in cell.arms.values() for run in a.values()]
    chance = 100 / max(report["classes"] for report in reports)
    dotted: Look = {**GUIDE, "linestyle": (0, (1, 3))}
    axis.axhline(chance, label=f"chance: {chance:g} %", **dotted)
    # A symmetric logarithmic axis, because the share can be 0.
    axis.set_yscale("symlog", linthresh=chance / 2)
    axis.set_ylim(0, 130)
    axis.set_yticks([0, chance, 3 * chance, 10 * chance, 100], labels=None)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.set_xticks(range(len(cells)), [percent(cell.settings["sparsity"]) for cell in cells])
    axis.set_xlabel("sparsity")
    axis.set_ylabel("test accuracy, and share of classes\nwith a path from the input (%)")
    figure.suptitle(wrapped(title(cells[0].settings), 60))
    legend(figure, [axis], NOTE.partition(" with their")[0] + ".")
    return figure


def live_share(cell: Cell) -> float | None:
    """Return the mean share of classes that a path of kept weights reaches, between 0 and 1.

    The mean is over all runs of the cell. It is None if the paths of the network cannot be traced.

    Args:
        cell: the cell.
    """
    runs = [run for arm in cell.arms.values() for run in arm.values()]
    dead = report_mean(runs, "dead_classes")
    return None if dead is None else 1 - dead / runs[0]["sparsity"]["classes"]


def floor_groups(records: Iterable[Record]) -> list[list[Cell]]:
    """Return the groups with a sparsity above the paper's and with a class without a path.

    Args:
        records: the records of runs.
    """
    return [
        group
        for group in groups(records)
        if any(
            cell.settings["sparsity"] > BEYOND and share is not None and share < 1
            for cell in group
            for share in [live_share(cell)]
        )
    ]


def write_floor(records: Iterable[Record], folder: Path) -> list[Path]:
    """Write the figure of every group of `floor_groups`.

    Args:
        records: the records of one folder.
        folder: folder of results in which ``figures/`` is written.

    Returns:
        The written files.
    """
    written = []
    for group in floor_groups(records):
        name = f"{slug(group[0].settings)}_floor.png"
        written += save(accuracy_and_floor(group), folder / "figures" / name)
    return written
