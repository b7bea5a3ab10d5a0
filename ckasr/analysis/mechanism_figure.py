"""Figures of layers and weights as beta grows: maps, differences, histograms and numbers."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckasr.storage import write_text

from .cells import BASELINE, Arm, Cell, Record, percent, power_of_ten, slug, title
from .figures import _draw_map, _draw_weights
from .mechanism import (
    NORM,
    QUANTITIES,
    Quantity,
    mechanism_cells,
    mechanism_table,
    several_betas,
    values_of,
)
from .statistics import t_interval
from .style import Look, blank, looks, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def mechanism_maps(cell: Cell) -> "Figure":
    """Layer CKA, its difference to the baseline, and the kept weights: a column for each arm.

    As figures 1 and 2 of the paper's appendix, with the row of differences between them: the map of
    an arm minus the map of the baseline of the same seed, averaged over the seeds.

    Args:
        cell: one of `mechanism_cells`.

    Raises:
        ValueError: if no run of the cell has layer CKA and weight statistics.
    """
    arms = {
        arm: {s: run for s, run in runs.items() if run["layer_cka"] and run["weights"]}
        for arm, runs in cell.arms.items()
    }
    arms = {arm: runs for arm, runs in arms.items() if runs}
    if not arms:
        raise ValueError("no finished run: there is no layer CKA to draw")
    figure = blank(1.4 + 1.75 * max(2, len(arms)), 5.9)
    axes = figure.subplots(3, len(arms), squeeze=False, sharey="row", height_ratios=(4, 4, 3))
    image = changes = None
    for (top, middle, bottom), (arm, runs) in zip(axes.T, arms.items(), strict=True):
        image = _draw_map(top, [run["layer_cka"] for run in runs.values()])
        top.set_title(f"{wrapped(arm.label, 24)}\n(n = {len(runs)})")
        drawn = _draw_change(middle, arms.get(BASELINE, {}), runs) if arm != BASELINE else None
        if drawn is None:
            middle.set_axis_off()
        changes = drawn or changes
        _draw_weights(bottom, list(runs.values()))
    axes[0, 0].set_ylabel("layer (stage.block)")
    axes[2, 0].set_ylabel("kept weights per bin\n(mean over seeds)")
    figure.colorbar(image, ax=list(axes[0]), shrink=0.9, aspect=15).set_label("CKA")
    if changes is not None:
        bar = figure.colorbar(changes, ax=list(axes[1]), shrink=0.9, aspect=15)
        bar.set_label("CKA minus that\nof the baseline")
    figure.suptitle(heading(cell), fontsize=8)
    return figure


@styled
def mechanism_numbers(cell: Cell) -> "Figure":
    """Similarity, norm, concentration and effective rank against beta, a panel for each.

    Each run a dot, the mean over seeds with its 95 % Student-t interval; the baseline at the left
    and as a dashed line.

    Args:
        cell: one of `mechanism_cells`.
    """
    arms = looks(cell.arms)
    figure = blank(6.6, 4.2)
    axes = figure.subplots(2, 3).flatten()
    for axis, quantity in zip(axes, QUANTITIES, strict=True):
        _draw_quantity(axis, cell, quantity, arms)
    note = "Dots: runs. Markers: mean over seeds and its 95 % Student-t interval."
    figure.suptitle(f"{heading(cell)}\n{note}", fontsize=8)
    return figure


def write_mechanism(records: Iterable[Record], folder: Path) -> list[Path]:
    """Table and figures of the cells with several betas under ``folder``; returns the files."""
    from .write import save

    found = [cell for cell in mechanism_cells(records) if several_betas(cell)]
    if not found:
        return []
    written = [folder / "tables" / "mechanism.md"]
    write_text(written[0], mechanism_table(found))
    for cell in found:
        at = percent(cell.settings["sparsity"]).replace(" %", "")
        stem = f"{slug(cell.settings)}_s{at}_mechanism"
        written.append(save(mechanism_maps(cell), folder / "figures" / f"{stem}.png"))
        written.append(save(mechanism_numbers(cell), folder / "figures" / f"{stem}_numbers.png"))
    return written


def draw_against_beta(
    axis: "Axes", values: Mapping[Arm, Sequence[float]], arms: Mapping[Arm, Look]
) -> None:
    """Runs of every arm as dots above its beta, with their mean and its interval.

    Args:
        axis: where to draw.
        values: one number a run, by arm. An arm without a number keeps its place.
        arms: the look of every arm, in the order of the places.
    """
    for place, (arm, look) in enumerate(arms.items()):
        numbers, color = list(values.get(arm, ())), look["color"]
        if not numbers:
            continue
        dots = {"color": color, "alpha": 0.5, "markersize": 4, "markeredgewidth": 0}
        axis.plot([place - 0.12] * len(numbers), numbers, ".", **dots)
        average = sum(numbers) / len(numbers)
        low, high = t_interval(numbers) or (average, average)
        bar = [[average - low], [high - average]]
        marks = {"markersize": 3.5, "capsize": 2, "linewidth": 0.9}
        axis.errorbar([place + 0.12], [average], bar, color=color, fmt=look["marker"], **marks)
    if BASELINE in arms and (reference := list(values.get(BASELINE, ()))):
        level = sum(reference) / len(reference)
        axis.axhline(level, color="0.5", linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
    axis.set_xticks(range(len(arms)), [tick(arm) for arm in arms])
    axis.set_xlim(-0.6, len(arms) - 0.4)
    axis.set_xlabel("β")


def tick(arm: Arm) -> str:
    """An arm below an axis: its beta, and below that whatever else is not CKA-SR's default."""
    if arm == BASELINE:
        return "0"
    extra = arm.label.partition(f"β = {power_of_ten(arm.beta)}")
    words = [extra[0].removeprefix("CKA-SR").strip(", "), extra[2].strip(", ")]
    return "\n".join([power_of_ten(arm.beta), *(word for word in words if word)])


def heading(cell: Cell) -> str:
    """Data, network, method, schedule and sparsity of a cell, above its figure."""
    at = percent(cell.settings["sparsity"])
    return wrapped(f"{title(cell.settings)}, sparsity {at}", 80)


def _draw_change(axis: "Axes", baseline: Mapping[int, Record], runs: Mapping[int, Record]) -> Any:
    """Map minus that of the baseline of the same seed; None without a pair."""
    import numpy as np

    changes = [
        np.array(run["layer_cka"]["matrix"], dtype=float)
        - np.array(baseline[seed]["layer_cka"]["matrix"], dtype=float)
        for seed, run in runs.items()
        if seed in baseline
    ]
    if not changes:
        return None
    change = np.mean(changes, axis=0)
    names = [
        name.removeprefix("layer") for name in next(iter(runs.values()))["layer_cka"]["layers"]
    ]
    image = axis.imshow(change, vmin=-1, vmax=1, cmap="RdBu_r", origin="lower")
    step = -(-len(names) // 10)
    axis.set_xticks(range(0, len(names), step), names[::step], rotation=90, fontsize=6)
    axis.set_yticks(range(0, len(names), step), names[::step], fontsize=6)
    axis.spines[["top", "right"]].set_visible(True)
    off = ~np.eye(len(names), dtype=bool)
    axis.set_title(f"mean difference {np.nanmean(change[off]):+.3f}", fontsize=7)
    return image


def _draw_quantity(axis: "Axes", cell: Cell, quantity: Quantity, arms: Mapping[Arm, Look]) -> None:
    values = {arm: values_of(cell, arm, quantity) for arm in arms}
    draw_against_beta(axis, values, arms)
    shown = [number for numbers in values.values() for number in numbers]
    if quantity.name == NORM.name and shown and max(shown) > 20 * min(shown) > 0:
        axis.set_yscale("log")
    axis.set_ylabel(quantity.label)
