"""The figure of test accuracy against sparsity."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .cells import BASELINE, Arm, Cell, Record, nonempty_groups, percent, title
from .marks import NOTE, draw_means, draw_seeds
from .paper import SELECTION, deviations, lookup, paper_difference
from .statistics import compare, value_of
from .style import GUIDE, Look, blank, legend, looks, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def accuracy_vs_sparsity(records: Iterable[Record]) -> "Figure":
    """Draw the test accuracy of every arm against sparsity, with the paired differences below it.

    Each seed is a dot, with the mean and its 95 % Student-t interval beside the dots. Hollow
    markers are the published accuracies of the paper. There is a column for each method, or other
    setting, in which the records differ. The axis of accuracy starts at 0 unless all accuracies are
    far above chance.

    Args:
        records: the records of runs.

    Raises:
        ValueError: if there are no records, or if their schedules differ, because one figure must
            not compare different schedules.
    """
    columns = nonempty_groups(records)
    if len({_schedule(group) for group in columns}) > 1:
        raise ValueError("the records have different schedules: draw a figure for each schedule")
    cells = [cell for group in columns for cell in group]
    arms = looks(arm for cell in cells for arm in cell.arms)
    most = max(len(runs) for cell in cells for runs in cell.arms.values())
    widths = [max(2.4, 0.5 + (0.28 + 0.02 * most) * len(arms) * len(g)) for g in columns]
    rows = 2 if len(arms) > 1 else 1  # The baseline alone has no differences.
    figure = blank(1.2 + sum(widths), 4.6 if rows == 2 else 3.4)
    axes = figure.subplots(
        rows,
        len(columns),
        squeeze=False,
        sharex="col",
        sharey="row",
        height_ratios=(3, 2)[:rows],
        width_ratios=widths,
    )
    values = [100 * value for cell in cells for runs in cell.arms.values() for value in _of(runs)]
    chance = max(
        100 / r["sparsity"]["classes"] for c in cells for a in c.arms.values() for r in a.values()
    )
    from_zero = not values or min(values) < max(values) / 2 or min(values) < 2 * chance
    for column, group, width in zip(axes.T, columns, widths, strict=True):
        upper, lower = column[0], column[-1]
        upper.set_title(wrapped(title(group[0].settings), int(13 * width)))
        for axis in column:
            for x in range(0, len(group) - 1, 2):
                axis.axvspan(x - 0.5, x + 0.5, color="0.955", linewidth=0, zorder=0)
        _draw_accuracies(upper, group, arms)
        if from_zero:
            upper.axhline(
                chance, **{**GUIDE, "linestyle": (0, (1, 3))}, label=f"chance: {chance:g} %"
            )
        pairs = _draw_differences(lower, group, arms) if rows == 2 else [""] * len(group)
        ticks = [
            f"{percent(c.settings['sparsity'])}\n{n}".strip()
            for c, n in zip(group, pairs, strict=True)
        ]
        lower.set_xticks(range(len(group)), ticks)
        lower.set_xlim(-0.5, len(group) - 0.5)
        lower.set_xlabel("sparsity (n: complete pairs)" if rows == 2 else "sparsity")
        for axis in column:
            axis.label_outer()
    axes[0, 0].set_ylabel("test accuracy after\nthe last epoch (%)")
    if rows == 2:
        axes[1, 0].set_ylabel("paired difference to\nthe baseline (points)")
    if from_zero:
        axes[0, 0].set_ylim(bottom=0)
    note = NOTE if from_zero else f"{NOTE} Chance is {chance:g} %."
    published = [cell for cell in cells if any(lookup(cell.settings, arm) for arm in arms)]
    if published:
        note += f" Hollow markers: the paper's numbers ({SELECTION})."
        if different := deviations(published[0].settings):
            note += f" Our recipe differs from the paper's: {', '.join(different)}."
    legend(figure, axes[0], note)
    return figure


def _draw_accuracies(axis: "Axes", group: Sequence[Cell], arms: Mapping[Arm, Look]) -> None:
    for arm, look in arms.items():
        values = [_of(cell.arms.get(arm, {})) for cell in group]
        numbers = [lookup(cell.settings, arm) for cell in group]
        published = [None if number is None else number.accuracy for number in numbers]
        _draw_arm(axis, look, _place(arm, arms), values, published, arm.label)


def _draw_differences(axis: "Axes", group: Sequence[Cell], arms: Mapping[Arm, Look]) -> list[str]:
    """Draw the paired differences, and return the number of pairs at each sparsity as text."""
    axis.axhline(0, **GUIDE)
    counts: list[list[int]] = [[] for _ in group]
    for arm, look in arms.items():
        if arm == BASELINE:
            continue
        found = [compare(cell, arm) if arm in cell.arms else None for cell in group]
        values = [list(each.differences) if each else [] for each in found]
        published = [paper_difference(cell.settings, arm) for cell in group]
        _draw_arm(axis, look, _place(arm, arms), values, published, None)
        for count, seeds in zip(counts, values, strict=True):
            count.append(len(seeds))
    same = [sorted(set(count)) if len(set(count)) == 1 else count for count in counts]
    return [f"n = {', '.join(map(str, count))}" if count else "" for count in same]


def _draw_arm(
    axis: "Axes",
    look: Look,
    place: tuple[float, float],
    values: Sequence[Sequence[float]],
    published: Sequence[float | None],
    label: str | None,
) -> None:
    """Draw the paper's hollow marker, the seeds, and the mean with its interval, side by side.

    The sparsities are not joined by a line. The arms are drawn beside each other, so a line along a
    decreasing curve would seem to be above the line of the arm to its left.
    """
    centre, width = place
    samples = {x: [100 * value for value in seeds] for x, seeds in enumerate(values) if seeds}
    for x, seeds in samples.items():
        draw_seeds(axis, x + centre - 0.1 * width, seeds, look)
    if samples:
        draw_means(
            axis, [x + centre + 0.34 * width for x in samples], list(samples.values()), look, label
        )
    hollow = [
        (x + centre - 0.38 * width, 100 * y) for x, y in enumerate(published) if y is not None
    ]
    if hollow:
        axis.plot(
            *zip(*hollow, strict=True),
            look["marker"],
            color=look["color"],
            markerfacecolor="none",
            markersize=4.5,
            markeredgewidth=0.8,
            linestyle="",
            label=label and f"paper, {label}",
        )


def _place(arm: Arm, arms: Mapping[Arm, Look]) -> tuple[float, float]:
    """Return the offset of an arm from its tick and its available width, in units of ticks."""
    width = min(0.3, 0.9 / len(arms))
    return (list(arms).index(arm) - (len(arms) - 1) / 2) * width, width


def _of(runs: Mapping[int, Record]) -> list[float]:
    """Return the test accuracies of the finished runs, as fractions of 1."""
    return [value_of(run) for run in runs.values() if run["status"] != "diverged"]


def _schedule(group: Sequence[Cell]) -> tuple[Any, ...]:
    return group[0].settings["schedule"], group[0].settings["epochs"]
