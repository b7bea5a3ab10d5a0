"""The figure of samples, interval and beta, and of what choosing among them claims."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckasr.storage import write_text

from .cells import BASELINE, Arm, Cell, Record, percent, power_of_ten, slug, title
from .few_shots import (
    Choice,
    choices,
    few_shot_studies,
    few_shots_table,
    published_baseline,
    published_few_shots,
    settings_of_term,
)
from .statistics import compare, t_interval
from .style import ARM_LOOKS, Look, blank, legend, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def few_shots(cell: Cell) -> "Figure":
    """Paired differences of every setting, and the gain that four ways of choosing one claim.

    A panel for each interval ("every" so many steps), in it a marker for each number of samples
    and beta: each seed a dot, the mean with its 95 % Student-t interval. The last panel has the
    gain of each `Choice`, and the one of the paper's table 2.

    Args:
        cell: one of `few_shot_studies`.

    Raises:
        ValueError: if the cell has no arm with CKA-SR.
    """
    arms = settings_of_term(cell)
    if not arms:
        raise ValueError("no run with CKA-SR: there are no settings to compare")
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
        axis.set_title(f"term on {_steps(every)}")
        for place, count in enumerate(samples):
            shown = [arm for arm in arms if (arm.samples, arm.every) == (count, every)]
            offset = 0.8 * ((place + 0.5) / len(samples) - 0.5)
            _draw_setting(axis, cell, shown, betas, offset, ARM_LOOKS[place % len(ARM_LOOKS)])
        axis.axhline(0, color="0.3", linewidth=0.7, zorder=1)
        axis.set_xticks(range(len(betas)), [power_of_ten(beta) for beta in betas])
        axis.set_xlim(-0.5, len(betas) - 0.5)
        axis.set_xlabel("β")
    axes[0].set_ylabel("test accuracy, difference\nto baseline (points)")
    if found:
        _draw_choices(axes[-1], found, len(arms))
    at = percent(cell.settings["sparsity"])
    figure.suptitle(wrapped(f"{title(cell.settings)}, sparsity {at}", 80), fontsize=8)
    note = "Small dots: seeds. Filled markers: mean and its 95 % Student-t interval."
    legend(figure, axes[: len(intervals)], note)
    return figure


def write_few_shots(records: Iterable[Record], folder: Path) -> list[Path]:
    """Table and figure of every study under ``folder``; returns the files, none without a study."""
    from .write import save

    studies = few_shot_studies(records)
    if not studies:
        return []
    written = [folder / "tables" / "few_shots.md"]
    write_text(written[0], few_shots_table(studies))
    for cell in studies:
        at = percent(cell.settings["sparsity"]).replace(" %", "")
        name = f"{slug(cell.settings)}_s{at}_few_shots.png"
        written.append(save(few_shots(cell), folder / "figures" / name))
    return written


def _draw_setting(
    axis: "Axes",
    cell: Cell,
    arms: Sequence[Arm],
    betas: Sequence[float],
    offset: float,
    look: Look,
) -> None:
    """One number of samples: dots of the seeds, beside them their mean with its interval."""
    if BASELINE not in cell.arms:
        return
    for number, arm in enumerate(arms):
        values = [100 * value for value in compare(cell, arm).differences]
        if not values:
            continue
        x, color = betas.index(arm.beta) + offset, look["color"]
        dots = {"color": color, "alpha": 0.5, "markersize": 4, "markeredgewidth": 0}
        axis.plot([x - 0.03] * len(values), values, ".", **dots)
        average = sum(values) / len(values)
        low, high = t_interval(values) or (average, average)
        axis.errorbar(
            [x + 0.03],
            [average],
            [[average - low], [high - average]],
            color=color,
            fmt=look["marker"],
            markersize=3.5,
            capsize=2,
            linewidth=0.9,
            label=f"{arm.samples or 'all'} samples" if number == 0 else None,
        )


def _draw_choices(axis: "Axes", found: Sequence[Choice], count: int) -> None:
    """The gain that each way of choosing claims, the unbiased one filled."""
    names = [choice.rule.replace(", ", ",\n") for choice in found]
    for y, choice in enumerate(found):
        average, interval = choice.comparison.mean, choice.comparison.t_interval
        if average is None:
            continue
        low, high = interval or (average, average)
        axis.errorbar(
            [100 * average],
            [y],
            xerr=[[100 * (average - low)], [100 * (high - average)]],
            fmt="o",
            color="#222222",
            markerfacecolor="#222222" if choice.unbiased else "white",
            markersize=4.5,
            capsize=2,
            linewidth=0.9,
        )
    paper = max(n.percent for n in published_few_shots()) - published_baseline().percent
    names.append("the paper's table 2,\nbest single run on the test set")
    axis.plot([paper], [len(found)], "D", color="0.45", markerfacecolor="none", markersize=4.5)
    axis.axvline(0, color="0.3", linewidth=0.7, zorder=1)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel("gain that it claims (points)")
    axis.set_title(f"one of {count} settings chosen by")


def _steps(every: int) -> str:
    return "every step" if every == 1 else f"1 of {every} steps"
