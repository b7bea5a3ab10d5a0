"""The figure of all methods side by side."""

from collections.abc import Iterable, Sequence
from statistics import mean
from typing import TYPE_CHECKING

from .cells import Arm, Record, family_title, percent
from .methods import Entry, method_families
from .statistics import t_interval
from .style import Look, blank, legend, looks, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def method_accuracy(records: Iterable[Record]) -> "Figure":
    """Test accuracy of every method, a panel for each sparsity; dense training a dashed line.

    Each seed a dot, the mean with its 95 % Student-t interval. Methods stand in the order of their
    accuracy at the lowest sparsity, with their cost in dense trainings where it is not one. Raises
    ValueError unless the records are of one family.
    """
    found = method_families(records)
    if len(found) != 1:
        raise ValueError(
            f"this figure is of two methods or more with one recipe; the records have {len(found)} "
            "such recipes"
        )
    (entries,) = found
    pruned = [entry for entry in entries if entry.method != "dense"] or entries
    sparsities = sorted({entry.sparsity for entry in pruned})
    names = _tick_labels(pruned)
    arms = looks(entry.arm for entry in entries)
    best = max((100 * value for entry in entries for value in entry.accuracies), default=100)
    figure = blank(1.3 + 2.5 * len(sparsities), 1.5 + 0.21 * len(names))
    axes = figure.subplots(1, len(sparsities), squeeze=False, sharex=True, sharey=True)[0]
    for axis, sparsity in zip(axes, sparsities, strict=True):
        axis.set_title(f"sparsity {percent(sparsity)}")
        axis.grid(axis="y", color="0.92", linewidth=0.6)
        axis.set_axisbelow(True)
        _draw_levels(axis, entries, arms)
        for entry in pruned:
            if entry.sparsity == sparsity:
                _draw_entry(axis, entry, list(names).index(entry.form), arms, best)
        axis.set_xlabel("test accuracy after the last epoch (%)")
    axes[0].set_yticks(range(len(names)), names.values())
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    axes[0].set_xlim(left=0)
    figure.suptitle(wrapped(family_title(entries[0].cell.settings), 34 * len(axes)), fontsize=8)
    if max(len(entry.runs) for entry in entries) > 1:
        note = "Small dots: seeds. Markers: mean and its 95 % Student-t interval."
    else:
        note = "One seed each."
    if any(" x)" in name for name in names.values()):
        note += " In brackets: epochs trained, as a multiple of those of dense training."
    if any(entry.missed for entry in pruned):
        note += " Hollow: not the sparsity asked for."
    legend(figure, axes[:1], note)
    return figure


def _draw_levels(axis: "Axes", entries: Sequence[Entry], arms: dict[Arm, Look]) -> None:
    """What bounds the accuracies: chance, and dense training in each arm."""
    for entry in entries:
        if entry.method == "dense" and entry.accuracy is not None:
            axis.axvline(
                100 * entry.accuracy,
                color=arms[entry.arm]["color"],
                linewidth=0.9,
                linestyle=(0, (4, 2)),
                label=f"{entry.label}: {100 * entry.accuracy:.1f} %",
            )
    chance = 100 / entries[0].report("classes")
    axis.axvline(
        chance, color="0.5", linewidth=0.7, linestyle=(0, (1, 3)), label=f"chance: {chance:g} %"
    )


def _draw_entry(axis: "Axes", entry: Entry, row: int, arms: dict[Arm, Look], best: float) -> None:
    values = [100 * value for value in entry.accuracies]
    if not values:
        return
    look, of_cell = arms[entry.arm], list(entry.cell.arms)
    y = row + 0.25 * (of_cell.index(entry.arm) - (len(of_cell) - 1) / 2)
    if len(values) > 1:
        dots = {"color": look["color"], "alpha": 0.5, "markersize": 4, "markeredgewidth": 0}
        axis.plot(values, [y] * len(values), ".", **dots)
    average, interval = mean(values), t_interval(values)
    low, high = interval or (average, average)
    axis.errorbar(
        [average],
        [y],
        xerr=[[average - low], [high - average]] if interval else None,
        fmt=look["marker"],
        color=look["color"],
        markerfacecolor="white" if entry.missed else look["color"],
        markersize=4,
        capsize=2,
        linewidth=0.9,
        label=entry.arm.label if len(arms) > 1 and not entry.missed else None,
    )
    counts = {"layer": len(entry.dead_layers), "class": entry.report("dead_classes")}
    dead = [_counted(number, name) for name, number in counts.items() if number]
    if dead:
        left = average > 0.65 * best  # where there is room
        axis.annotate(
            f"dead: {', '.join(dead)}",
            (min(low, *values) if left else max(high, *values), y),
            xytext=(-5 if left else 5, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=6,
            color="0.35",
        )


def _counted(number: float, name: str) -> str:
    if number == 1:
        return f"1 {name}"
    return f"{number:.3g} {name}{'es' if name.endswith('s') else 's'}"


def _tick_labels(entries: Sequence[Entry]) -> dict[str, str]:
    """Form -> name on the axis, best first by the lowest sparsity a form has."""
    labels: dict[str, str] = {}
    forms = {(entry.method, entry.form) for entry in entries}
    for entry in entries:
        alone = sum(method == entry.method for method, _ in forms) == 1
        name = entry.method if alone else entry.form
        name += ", dual_per=step" if alone and entry.fixed_rate else ""
        costs = {round(e.cost, 3) for e in entries if e.form == entry.form}
        cost = f" ({costs.pop():.3g} x)" if len(costs) == 1 and costs != {1} else ""
        labels.setdefault(entry.form, name + cost)
    return labels
