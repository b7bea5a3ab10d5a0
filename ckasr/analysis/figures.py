"""Figures of what the records say. Each function returns a matplotlib Figure; `save` writes it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .cells import BASELINE, Arm, Cell, Record, groups, percent, term_label, title
from .paper import SELECTION, deviations, lookup, paper_difference
from .statistics import compare, mean_and_sd, t_interval, value_of
from .style import Look, blank, legend, looks, slot, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def accuracy_vs_sparsity(records: Iterable[Record]) -> "Figure":
    """Test accuracy of every arm against sparsity, and the paired differences below.

    Each seed a dot, the mean with its 95 % Student-t interval, the paper's numbers as hollow
    markers. A column for each method or other setting in which the records differ; raises
    ValueError for records of different schedules, which one figure must not hold, or for none.
    """
    columns = _groups(records)
    if len({_schedule(group) for group in columns}) > 1:
        raise ValueError("the records are of different schedules: draw each in its own figure")
    figure = blank(1.2 + 2.9 * len(columns), 4.8)
    axes = figure.subplots(
        2, len(columns), squeeze=False, sharex="col", sharey="row", height_ratios=(3, 2)
    )
    arms = looks(arm for group in columns for cell in group for arm in cell.arms)
    for (upper, lower), group in zip(axes.T, columns, strict=True):
        upper.set_title(wrapped(title(group[0].settings)))
        for axis in (upper, lower):
            for x in range(0, len(group), 2):
                axis.axvspan(x - 0.5, x + 0.5, color="0.955", linewidth=0, zorder=0)
        _draw_accuracies(upper, group, arms)
        pairs = _draw_differences(lower, group, arms)
        ticks = [
            f"{percent(c.settings['sparsity'])}\n{n}" for c, n in zip(group, pairs, strict=True)
        ]
        lower.set_xticks(range(len(group)), ticks)
        lower.set_xlim(-0.5, len(group) - 0.5)
        lower.set_xlabel("sparsity of conv and linear weights; complete pairs n")
    axes[0, 0].set_ylabel("test accuracy after\nthe last epoch (%)")
    axes[0, 0].set_ylim(bottom=0)
    axes[1, 0].set_ylabel("paired difference\nto baseline (points)")
    note = "Small dots: seeds. Filled markers: mean and its 95 % Student-t interval."
    published = [
        cell for group in columns for cell in group if any(lookup(cell.settings, a) for a in arms)
    ]
    if published:
        note += f" Hollow markers: the paper's numbers ({SELECTION})."
        if different := deviations(published[0].settings):
            note += f" Not its recipe: {', '.join(different)}."
    legend(figure, axes[0], note)
    return figure


@styled
def layer_cka_maps(records: Iterable[Record]) -> "Figure":
    """Layer-by-layer CKA over the histogram of the kept weights, a column for each beta.

    As the paper's figure: the matrix on [0, 1] and the weights on [-0.3, 0.3], both averaged over
    the seeds. Raises ValueError unless the records are of one cell, and some are finished.
    """
    cell = _one_cell(records)
    arms = {
        arm: [run for run in runs.values() if run["layer_cka"] and run["weights"]]
        for arm, runs in cell.arms.items()
    }
    arms = {arm: runs for arm, runs in arms.items() if runs}
    if not arms:
        raise ValueError("no finished run: there is no layer CKA to draw")
    figure = blank(1.2 + 1.75 * max(2, len(arms)), 4.1)
    axes = figure.subplots(2, len(arms), squeeze=False, sharey="row", height_ratios=(4, 3))
    for (upper, lower), (arm, runs) in zip(axes.T, arms.items(), strict=True):
        image = _draw_map(upper, [run["layer_cka"] for run in runs])
        upper.set_title(f"{wrapped(arm.label, 24)}\n(n = {len(runs)})")
        _draw_weights(lower, runs)
    measured = next(iter(arms.values()))[0]["layer_cka"]
    staged = any(name.startswith("layer") for name in measured["layers"])
    axes[0, 0].set_ylabel("layer (stage.block)" if staged else "layer")
    axes[1, 0].set_ylabel("kept weights per bin\n(mean over seeds)")
    bar = figure.colorbar(image, ax=list(axes[0]), shrink=0.9, aspect=15)
    bar.set_label("CKA, mean over seeds")
    figure.suptitle(
        wrapped(f"{title(cell.settings)}, sparsity {percent(cell.settings['sparsity'])}", 80)
        + f"\nCKA {measured['estimator']}; {measured['samples']} {measured['split']} images "
        f"in batches of {measured['batch_size']}",
        fontsize=8,
    )
    return figure


@styled
def training_curves(records: Iterable[Record]) -> "Figure":
    """Loss, validation accuracy, the term and its share of the gradient, epoch by epoch.

    Each run a thin line, the mean over finished runs a thick one; a cross ends a run that
    diverged. Raises ValueError unless the records are of one cell.
    """
    cell = _one_cell(records)
    name_of_term = term_label(cell.arms)
    before = "" if name_of_term == "term" else " term"
    panels = {
        "loss": ("training loss\n(cross-entropy)", 1),
        "validation_accuracy": ("validation\naccuracy (%)", 100),
        "term": (f"{name_of_term}{before}\nbefore β", 1),
        "gradient_ratio": (f"gradient norm of\nβ {name_of_term} / of loss", 1),
    }
    runs = [run for seeds in cell.arms.values() for run in seeds.values()]
    shown = {
        name: panel
        for name, panel in panels.items()
        if any(value is not None for run in runs for value in run["curves"][name])
    }
    figure = blank(6.2, 0.9 + 1.9 * -(-len(shown) // 2))
    axes = figure.subplots(-(-len(shown) // 2), 2, squeeze=False, sharex=True).flatten()
    arms = looks(cell.arms)
    for axis, (name, (label, scale)) in zip(axes, shown.items(), strict=False):
        for arm, seeds in cell.arms.items():
            _draw_curves(axis, name, scale, list(seeds.values()), arm, arms[arm])
        axis.set_ylabel(label)
        if name == "gradient_ratio":
            axis.set_yscale("log")
    for axis in axes[len(shown) :]:
        axis.remove()
    for axis in axes[max(0, len(shown) - 2) : len(shown)]:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.tick_params(labelbottom=True)
    figure.suptitle(
        wrapped(f"{title(cell.settings)}, sparsity {percent(cell.settings['sparsity'])}", 80),
        fontsize=8,
    )
    legend(figure, axes[:1], "Thin: each run. Thick: mean over seeds. Cross: diverged.")
    return figure


def _draw_accuracies(axis: "Axes", group: Sequence[Cell], arms: Mapping[Arm, Look]) -> None:
    runs = [run for cell in group for seeds in cell.arms.values() for run in seeds.values()]
    chance = 100 / max(run["sparsity"]["classes"] for run in runs)
    axis.axhline(chance, color="0.5", linewidth=0.7, linestyle=(0, (1, 3)), zorder=1)
    axis.annotate(
        f"chance, {chance:g} %",
        (0.01, chance),
        xycoords=("axes fraction", "data"),
        color="0.4",
        fontsize=6,
        va="bottom",
    )
    for arm, look in arms.items():
        values = [
            [value_of(r) for r in cell.arms.get(arm, {}).values() if r["status"] != "diverged"]
            for cell in group
        ]
        numbers = [lookup(cell.settings, arm) for cell in group]
        published = [None if number is None else number.accuracy for number in numbers]
        _draw_arm(axis, look, slot(arm, arms), values, published, arm.label)


def _draw_differences(axis: "Axes", group: Sequence[Cell], arms: Mapping[Arm, Look]) -> list[str]:
    """Draw them; returns the number of pairs at each sparsity, in words."""
    axis.axhline(0, color="0.3", linewidth=0.7, zorder=1)
    counts: list[list[int]] = [[] for _ in group]
    for arm, look in arms.items():
        if arm == BASELINE:
            continue
        found = [compare(cell, arm) if arm in cell.arms else None for cell in group]
        values = [list(each.differences) if each else [] for each in found]
        published = [paper_difference(cell.settings, arm) for cell in group]
        _draw_arm(axis, look, slot(arm, arms), values, published, None)
        for count, seeds in zip(counts, values, strict=True):
            count.append(len(seeds))
    same = [sorted(set(count)) if len(set(count)) == 1 else count for count in counts]
    return [f"n = {', '.join(map(str, count))}" if count else "" for count in same]


def _draw_arm(
    axis: "Axes",
    look: Look,
    slot: tuple[float, float],
    values: Sequence[Sequence[float]],
    published: Sequence[float | None],
    label: str | None,
) -> None:
    """One arm: the paper's hollow marker, dots, mean with interval; side by side in its slot.

    No line joins the sparsities: shifted sideways along a falling curve, it would seem to lie
    above the line of the arm to its left.
    """
    color, marker = look["color"], look["marker"]
    center, width = slot
    places, means, bars = [], [], []
    for x, seeds in enumerate(values):
        if not seeds:
            continue
        axis.plot(
            [x + center] * len(seeds),
            [100 * value for value in seeds],
            ".",
            color=color,
            alpha=0.5,
            markersize=4,
            markeredgewidth=0,
        )
        mean, interval = mean_and_sd(seeds)[0], t_interval(seeds)
        places.append(x + center + 0.3 * width)
        means.append(100 * mean)
        low, high = interval or (mean, mean)
        bars.append((100 * (mean - low), 100 * (high - mean)))
    if places:
        axis.errorbar(
            places,
            means,
            list(zip(*bars, strict=True)),
            color=color,
            fmt=marker,
            markersize=3.5,
            capsize=2,
            linewidth=0.9,
            label=label,
        )
    hollow = [(x + center - 0.3 * width, 100 * y) for x, y in enumerate(published) if y is not None]
    if hollow:
        axis.plot(
            *zip(*hollow, strict=True),
            marker,
            color=color,
            markerfacecolor="none",
            markersize=4.5,
            markeredgewidth=0.8,
            linestyle="",
            label=label and f"paper, {label}",
        )


def _draw_map(axis: "Axes", measured: Sequence[Mapping[str, Any]]) -> Any:
    import numpy as np

    matrix = np.mean([each["matrix"] for each in measured], axis=0)
    names = [name.removeprefix("layer") for name in measured[0]["layers"]]
    image = axis.imshow(matrix, vmin=0, vmax=1, cmap="magma", origin="lower")
    step = -(-len(names) // 10)
    axis.set_xticks(range(0, len(names), step), names[::step], rotation=90, fontsize=6)
    axis.set_yticks(range(0, len(names), step), names[::step], fontsize=6)
    axis.spines[["top", "right"]].set_visible(True)
    return image


def _draw_weights(axis: "Axes", runs: Sequence[Record]) -> None:
    import numpy as np

    edges = np.asarray(runs[0]["weights"]["histogram"]["edges"])
    counts = np.mean([run["weights"]["histogram"]["counts"] for run in runs], axis=0)
    axis.stairs(counts, edges, fill=True, color="0.45")
    kept = np.mean([run["sparsity"]["kept"] for run in runs])
    outside = max(0.0, 1 - counts.sum() / kept) if kept else 0.0
    axis.annotate(
        f"beyond ±{edges[-1]:g}:\n{100 * outside:.2g} %", (0.98, 0.96), xycoords="axes fraction",
        ha="right", va="top", fontsize=6, color="0.3",
    )  # fmt: skip
    axis.set_xlim(edges[0], edges[-1])
    axis.set_xlabel("weight")


def _draw_curves(
    axis: "Axes",
    name: str,
    scale: float,
    runs: Sequence[Record],
    arm: Arm,
    look: Look,
) -> None:
    import numpy as np

    color = look["color"]
    finished = []
    for run in runs:
        curve = np.array([np.nan if v is None else v for v in run["curves"][name]], dtype=float)
        epochs = np.arange(1, len(curve) + 1)
        axis.plot(epochs, scale * curve, color=color, linewidth=0.4, alpha=0.4)
        known = np.flatnonzero(np.isfinite(curve))
        if run["status"] == "diverged" and len(known):
            axis.plot(epochs[known[-1]], scale * curve[known[-1]], "x", color=color, markersize=5)
        elif run["status"] != "diverged":
            finished.append(curve)
    if finished and np.isfinite(finished).any():
        mean = scale * np.mean(finished, axis=0)
        style = {"color": color, "linestyle": look["linestyle"], "linewidth": 1.3}
        axis.plot(np.arange(1, len(mean) + 1), mean, label=arm.label, **style)


def _groups(records: Iterable[Record]) -> list[list[Cell]]:
    found = groups(records)
    if not found:
        raise ValueError("no records: there is nothing to draw")
    return found


def _one_cell(records: Iterable[Record]) -> Cell:
    found = [cell for group in _groups(records) for cell in group]
    if len(found) > 1:
        names = "; ".join(
            f"{title(c.settings)} at {percent(c.settings['sparsity'])}" for c in found
        )
        raise ValueError(f"this figure is of one cell, the records are of {len(found)}: {names}")
    return found[0]


def _schedule(group: Sequence[Cell]) -> tuple[Any, ...]:
    return group[0].settings["schedule"], group[0].settings["epochs"]
