"""The figure of numbers of samples, intervals and betas, and of the bias of selecting one."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckasr.storage import write_text

from .cells import BASELINE, Arm, Cell, Record, cell_title, power_of_ten
from .few_shots import (
    Choice,
    beside_the_paper,
    choices,
    few_shot_studies,
    few_shots_table,
    published_baseline,
    published_few_shots,
    settings_of_term,
)
from .marks import NOTE, draw_means, draw_seeds
from .mechanism_figure import figure_path
from .statistics import compare
from .style import ARM_LOOKS, BASELINE_LOOK, GUIDE, Look, blank, legend, save, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def few_shot_accuracies(cell: Cell) -> "Figure":
    """Draw the paired differences of every setting, and the gains of four ways of selecting one.

    There is a panel for each interval (in steps) between two evaluations of the term. It shows each
    seed as a dot, and the mean with its 95 % Student-t interval, for each number of samples and
    beta. The last panel shows the gain of each `Choice` and, for CIFAR-10, that of the paper's
    table 2.

    Args:
        cell: one of the cells of `few_shot_studies`.

    Raises:
        ValueError: if the cell has no arm with CKA-SR.
    """
    arms = settings_of_term(cell)
    if not arms:
        raise ValueError("no run has CKA-SR, so there are no settings to compare")
    intervals = sorted({arm.every for arm in arms})
    betas = sorted({arm.beta for arm in arms})
    samples = sorted({arm.samples for arm in arms}, key=lambda count: (count == 0, count))
    found = choices(cell)
    figure = blank(1.2 + 2.2 * len(intervals) + (3.3 if found else 0), 3.6)
    widths = [*[2] * len(intervals), *([2] if found else [])]
    axes = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    for axis in axes[1 : len(intervals)]:
        axis.sharey(axes[0])
    for axis, every in zip(axes, intervals, strict=False):
        axis.set_title(f"term at {_steps(every)}")
        for place, count in enumerate(samples):
            shown = [arm for arm in arms if (arm.samples, arm.every) == (count, every)]
            offset = 0.8 * ((place + 0.5) / len(samples) - 0.5)
            _draw_setting(axis, cell, shown, betas, offset, ARM_LOOKS[place % len(ARM_LOOKS)])
        axis.axhline(0, **GUIDE)
        axis.set_xticks(range(len(betas)), [power_of_ten(beta) for beta in betas])
        axis.set_xlim(-0.5, len(betas) - 0.5)
        axis.set_xlabel("β")
    axes[0].set_ylabel("difference of test accuracy\nto the baseline (points)")
    if found:
        _draw_choices(axes[-1], found, len(arms), beside_the_paper(cell))
    figure.suptitle(wrapped(cell_title(cell.settings), 100))
    legend(figure, axes[: len(intervals)], NOTE, columns=len(samples))
    return figure


def write_few_shots(records: Iterable[Record], folder: Path) -> list[Path]:
    """Write the table and the figure of every study.

    Args:
        records: the records of one folder.
        folder: folder of results in which ``tables/`` and ``figures/`` are written.

    Returns:
        The written files. The list is empty if there is no study.
    """
    studies = few_shot_studies(records)
    if not studies:
        return []
    written = [folder / "tables" / "few_shots.md"]
    write_text(written[0], few_shots_table(studies))
    for cell in studies:
        written += save(few_shot_accuracies(cell), figure_path(cell, folder, "few_shots"))
    return written


def _draw_setting(
    axis: "Axes",
    cell: Cell,
    arms: Sequence[Arm],
    betas: Sequence[float],
    offset: float,
    look: Look,
) -> None:
    """Draw the seeds of one number of samples as dots, and their mean with its interval."""
    label = f"{arms[0].samples or 'all'} samples" if arms else None
    for arm in arms if BASELINE in cell.arms else ():
        values = [100 * value for value in compare(cell, arm).differences]
        if values:
            place = betas.index(arm.beta) + offset
            draw_seeds(axis, place - 0.05, values, look)
            draw_means(axis, [place + 0.05], [values], look, label)
            label = None  # One entry per number of samples.


def _draw_choices(axis: "Axes", found: Sequence[Choice], count: int, with_paper: bool) -> None:
    """Draw the gain that each choice reports, with a filled marker for the unbiased choice."""
    names = [choice.rule.replace(", ", ",\n") for choice in found]
    for place, choice in enumerate(found):
        values = [100 * value for value in choice.comparison.differences]
        draw_means(
            axis, [place], [values], BASELINE_LOOK, horizontal=True, hollow=not choice.unbiased
        )
    if with_paper:
        gain = max(n.percent for n in published_few_shots()) - published_baseline().percent
        names.append("the paper's table 2,\nbest single run on the test set")
        axis.plot([gain], [len(found)], "D", color="0.45", markerfacecolor="none", markersize=4.5)
    axis.axvline(0, **GUIDE)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel("reported gain (points)")
    axis.set_title(f"one of {count} settings selected by")


def _steps(every: int) -> str:
    return "every step" if every == 1 else f"one of {every} steps"
