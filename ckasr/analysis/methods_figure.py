"""The figure of the test accuracy of all methods."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from . import words
from .cells import Arm, Record, family_title, percent
from .marks import NOTE, draw_means, draw_seeds
from .methods import Entry, method_families
from .style import GUIDE, Look, blank, legend, looks, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def method_accuracy(records: Iterable[Record]) -> "Figure":
    """Draw the test accuracy of every method, with a panel for each sparsity.

    Each seed is a dot, with the mean and its 95 % Student-t interval above the dots. Vertical lines
    mark the accuracy of dense training and of chance. Methods are ordered by their accuracy at the
    lowest sparsity. If a method has more epochs than dense training, the ratio follows its name.

    Args:
        records: the records of the runs of one family of methods.

    Raises:
        ValueError: unless the records belong to one family of methods.
    """
    found = method_families(records)
    if len(found) != 1:
        raise ValueError(
            "this figure compares two or more methods with one recipe, but the records have "
            f"{len(found)} such recipes"
        )
    (entries,) = found
    pruned = [entry for entry in entries if entry.method != "dense"] or entries
    sparsities = sorted({entry.sparsity for entry in pruned})
    names = _tick_labels(pruned)
    arms = looks(entry.arm for entry in entries)
    row = 0.21 if len(arms) == 1 else 0.17 * len(arms)
    figure = blank(2.0 + 2.4 * len(sparsities), 1.5 + row * len(names))
    axes = figure.subplots(1, len(sparsities), squeeze=False, sharex=True, sharey=True)[0]
    for axis, sparsity in zip(axes, sparsities, strict=True):
        axis.set_title(f"sparsity {percent(sparsity)}")
        axis.grid(axis="y", color="0.92", linewidth=0.6)
        axis.set_axisbelow(True)
        _draw_levels(axis, entries, arms)
        for y, form in enumerate(names):
            in_row = [e for e in pruned if e.form == form and e.sparsity == sparsity]
            places = [_draw_entry(axis, entry, y, arms) for entry in in_row]
            _write_dead(axis, in_row, places, y)
        axis.set_xlabel("test accuracy after\nthe last epoch (%)")
        axis.label_outer()
    axes[0].set_yticks(range(len(names)), names.values())
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    axes[0].set_xlim(left=0)
    figure.suptitle(wrapped(family_title(entries[0].cell.settings), 34 * len(axes)))
    seeds = max(len(entry.runs) for entry in entries)
    note = NOTE if seeds > 1 else "One seed per method."
    if any("×" in name for name in names.values()):
        note += " Epochs: those of all phases, as a multiple of the epochs of dense training."
    if any(entry.sparsity_differs for entry in pruned):
        note += " Hollow markers: the sparsity differs from the target."
    if any(entry.dead_layers or entry.report("dead_classes") for entry in pruned):
        note += " A layer or class is dead if it has no path from input to output."
    legend(figure, axes[:1], note)
    return figure


def _draw_levels(axis: "Axes", entries: Sequence[Entry], arms: Mapping[Arm, Look]) -> None:
    """Draw the reference accuracies: chance, and dense training in each arm."""
    for entry in entries:
        if entry.method == "dense" and entry.accuracy is not None:
            arm = f", {entry.arm.label}" if len(arms) > 1 else ""
            axis.axvline(
                100 * entry.accuracy,
                color=arms[entry.arm]["color"],
                linewidth=0.9,
                linestyle=(0, (4, 2)),
                label=f"dense training{arm}: {100 * entry.accuracy:.1f} %",
            )
    chance = 100 / entries[0].runs[0]["sparsity"]["classes"]
    axis.axvline(chance, **{**GUIDE, "linestyle": (0, (1, 3))}, label=f"chance: {chance:g} %")


def _draw_entry(axis: "Axes", entry: Entry, row: int, arms: Mapping[Arm, Look]) -> float:
    """Draw seeds, mean and interval of an entry, and return its height on the axis."""
    values = [100 * value for value in entry.accuracies]
    look, in_cell = arms[entry.arm], list(entry.cell.arms)
    y = row + 0.5 * (in_cell.index(entry.arm) - (len(in_cell) - 1) / 2) / max(2, len(in_cell))
    if len(values) > 1:
        draw_seeds(axis, y, values, look, horizontal=True)
    label = entry.arm.label if len(arms) > 1 and not entry.sparsity_differs else None
    if values:
        hollow = entry.sparsity_differs
        draw_means(axis, [y], [values], look, label, horizontal=True, hollow=hollow)
    return y


def _write_dead(axis: "Axes", entries: Sequence[Entry], places: Sequence[float], row: int) -> None:
    """Write the numbers of dead layers and classes to the right of the panel.

    Arms of the same mask have the same numbers, which are written once.
    """
    dead = {y: _dead(entry) for entry, y in zip(entries, places, strict=True) if entry.accuracies}
    if len(set(dead.values())) == 1:
        dead = {row: next(iter(dead.values()))}
    for y, text in dead.items():
        if not text:
            continue
        axis.annotate(
            text,
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=6,
            color="0.35",
        )


def _dead(entry: Entry) -> str:
    counts = {"layer": len(entry.dead_layers or []), "class": entry.report("dead_classes")}
    dead = [_counted(number, name) for name, number in counts.items() if number]
    return f"dead: {', '.join(dead)}" if dead else ""


def _counted(number: float, name: str) -> str:
    if number == 1:
        return f"1 {name}"
    return f"{number:.3g} {name}{'es' if name.endswith('s') else 's'}"


def _tick_labels(entries: Sequence[Entry]) -> dict[str, str]:
    """Return the axis label of each form, ordered by accuracy at its lowest sparsity."""
    labels: dict[str, str] = {}
    forms = {(entry.method, entry.form) for entry in entries}
    for entry in entries:
        alone = sum(method == entry.method for method, _ in forms) == 1
        settings = entry.cell.settings
        name = words.method(entry.method, settings["distribution"])
        options = settings["method_options"]
        if alone:  # A single form of a method needs no option except dual_per.
            options = {k: v for k, v in options.items() if k == "dual_per" and entry.fixed_rate}
        name = ", ".join([name, *(words.option(key, value) for key, value in options.items())])
        costs = {round(e.cost, 3) for e in entries if e.form == entry.form}
        cost = f", {costs.pop():.3g} × epochs" if len(costs) == 1 and costs != {1} else ""
        labels.setdefault(entry.form, name + cost)
    return labels
