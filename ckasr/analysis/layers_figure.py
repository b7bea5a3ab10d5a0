"""The figure of the layer CKA and of the weights of one cell after training."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .cells import BASELINE, Arm, Cell, Record, cell_title, only_cell
from .marks import draw_means, draw_seeds
from .statistics import compare
from .style import Look, blank, looks, styled, widen, wrapped

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Runs = Mapping[int, Record]
"""Seed -> record."""


def has_layers(runs: Iterable[Record]) -> bool:
    """Return whether any run has the layer CKA and the weight histogram for `layer_cka_maps`."""
    return any(run["layer_cka"] and run["weights"] for run in runs)


@styled
def layer_cka_maps(records: Iterable[Record]) -> "Figure":
    """Draw the layer-by-layer CKA, its change by the term, and the kept weights of each arm.

    Each arm has a column. The first row shows the mean CKA matrix of each arm, on one colour scale.
    The second row shows the mean CKA over pairs of different layers, with a dot per seed, and then
    for each arm its matrix minus that of the baseline, averaged over complete pairs, on one colour
    scale centred on 0. The last row shows a histogram of the kept weights, with that of the
    baseline as an outline. There is no second row if there is no baseline or no other arm. If there
    is only one arm, its histogram is beside its matrix.

    Args:
        records: the records of the runs of one cell.

    Raises:
        ValueError: if the records belong to more than one cell, or if no run is finished.
    """
    cell = only_cell(records)
    arms = {
        arm: {seed: run for seed, run in runs.items() if has_layers([run])}
        for arm, runs in cell.arms.items()
    }
    arms = {arm: runs for arm, runs in arms.items() if runs}
    if not arms:
        raise ValueError("there is no finished run with a layer CKA to draw")
    compared = BASELINE in arms and len(arms) > 1
    heights = (4, 4, 2.6) if compared else (4, 2.6) if len(arms) > 1 else (4,)
    figure = blank(1.5 + 1.8 * max(2, len(arms)), 0.7 + 0.5 * sum(heights))
    axes = figure.subplots(len(heights), max(2, len(arms)), squeeze=False, height_ratios=heights)
    _draw_matrices(figure, list(axes[0, : len(arms)]), arms)
    if compared:
        _draw_similarity(axes[1, 0], arms)
        _draw_changes(figure, list(axes[1, 1:]), cell, arms)
    _draw_weights(list(axes[-1, -len(arms) :]), arms)
    measured = next(iter(next(iter(arms.values())).values()))["layer_cka"]
    notes = [
        f"CKA of {measured['samples']} {measured['split']} images in batches of "
        f"{measured['batch_size']} ({measured['estimator']})"
    ]
    if not _defined(arms).all():
        notes.append("CKA is undefined (grey) if the output of a layer is constant in every seed")
    figure.suptitle("\n".join([wrapped(cell_title(cell.settings), 76), *notes]))
    return figure


def matrix_of(run: Record) -> "np.ndarray":
    """Return the CKA matrix of a run, shape (layers, layers).

    CKA is undefined if a layer has the same output for all images. The record contains 0 for these
    entries, and the returned matrix contains NaN.
    """
    import numpy as np

    matrix = np.array(run["layer_cka"]["matrix"], dtype=float)
    constant = _undefined(run)
    matrix[constant] = matrix[:, constant] = np.nan
    return matrix


def _undefined(run: Record) -> "np.ndarray":
    """Return which layers have a constant output, and therefore no CKA with themselves."""
    import numpy as np

    return np.diag(np.array(run["layer_cka"]["matrix"], dtype=float)) == 0


def _defined(arms: Mapping[Arm, Runs]) -> "np.ndarray":
    """Return which pairs of layers have a CKA in every run, shape (layers, layers)."""
    import numpy as np

    matrices = [matrix_of(run) for runs in arms.values() for run in runs.values()]
    return np.asarray(np.isfinite(matrices).all(axis=0))


def _mean(values: Any) -> Any:
    """Return the mean over the first axis without NaN entries, or NaN if all entries are NaN."""
    import numpy as np

    values = np.asarray(values, dtype=float)
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=0)
    count = known.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _draw_matrices(figure: "Figure", axes: Sequence["Axes"], arms: Mapping[Arm, Runs]) -> None:
    import numpy as np

    means = {arm: _mean([matrix_of(run) for run in runs.values()]) for arm, runs in arms.items()}
    known = np.concatenate([mean[np.isfinite(mean)] for mean in means.values()] or [np.ones(1)])
    lowest = min(0.9, math.floor(10 * known.min(initial=0.9)) / 10)
    for axis, (arm, mean) in zip(axes, means.items(), strict=True):
        runs = arms[arm]
        image = _draw_map(axis, mean, runs, cmap="viridis", vmin=lowest, vmax=1)
        axis.set_title(f"{wrapped(arm.label, 24)}\n(n = {len(runs)})")
    figure.colorbar(image, ax=list(axes), shrink=0.9, aspect=15, label="CKA, mean over seeds")


def _draw_changes(
    figure: "Figure", axes: Sequence["Axes"], cell: Cell, arms: Mapping[Arm, Runs]
) -> None:
    import numpy as np

    changes = {}
    for arm in list(arms)[1:]:
        seeds = [s for s in compare(cell, arm).seeds if s in arms[arm] and s in arms[BASELINE]]
        sides = [[arms[side][seed] for seed in seeds] for side in (arm, BASELINE)]
        changes[arm] = [matrix_of(a) - matrix_of(b) for a, b in zip(*sides, strict=True)]
    means = {arm: _mean(each) for arm, each in changes.items() if each}
    largest = max((np.nanmax(np.abs(m), initial=0) for m in means.values()), default=0)
    limit = _one_digit_up(max(largest, 0.01))  # rounding errors should not look like a change
    image = None
    for axis, arm in zip(axes, changes, strict=True):
        if arm not in means:
            axis.set_axis_off()
            axis.text(0.5, 0.5, "no complete pair", ha="center", transform=axis.transAxes)
            continue
        image = _draw_map(axis, means[arm], arms[arm], cmap="vlag", vmin=-limit, vmax=limit)
        axis.set_title(f"minus baseline\n(pairs: n = {len(changes[arm])})")
    if image is not None:
        label = "change of CKA,\nmean over pairs"
        figure.colorbar(image, ax=list(axes), shrink=0.9, aspect=15, label=label)


def _draw_similarity(axis: "Axes", arms: Mapping[Arm, Runs]) -> None:
    """Draw the mean CKA over the pairs of different layers that are defined in every run."""
    import numpy as np

    shown = looks(arms)
    pairs = np.triu(_defined(arms), 1)
    for place, (arm, runs) in enumerate(arms.items()):
        if pairs.any():
            values = [float(matrix_of(run)[pairs].mean()) for run in runs.values()]
            draw_seeds(axis, place - 0.15, values, shown[arm])
            draw_means(axis, [place + 0.25], [values], shown[arm])
    widen(axis, 0.05)
    axis.set_xlim(-0.6, len(arms) - 0.4)
    axis.set_xticks(range(len(arms)), [wrapped(arm.label, 8) for arm in arms], fontsize=6)
    axis.tick_params(axis="x", labelrotation=0 if len(arms) < 3 else 90)
    axis.set_ylabel("mean CKA over\npairs of layers")
    axis.set_title("dots: single seeds; bars: 95 %\nStudent-t intervals of means")


def _draw_map(axis: "Axes", matrix: "np.ndarray", runs: Runs, **colours: Any) -> Any:
    import seaborn

    names = [
        name.removeprefix("layer") for name in next(iter(runs.values()))["layer_cka"]["layers"]
    ]
    step = -(-len(names) // 10)
    labels = [name if i % step == 0 else "" for i, name in enumerate(names)]
    axis.set_facecolor("0.8")
    # One image instead of a path per entry keeps the SVG file small.
    seaborn.heatmap(
        matrix, ax=axis, square=True, cbar=False, rasterized=True,
        xticklabels=labels, yticklabels=labels, **colours,
    )  # fmt: skip
    axis.invert_yaxis()
    axis.tick_params(labelsize=6, length=0)
    axis.tick_params(axis="x", labelrotation=90)
    axis.tick_params(axis="y", labelrotation=0)
    place = axis.get_subplotspec()
    if place is not None and place.is_first_col():
        staged = any(name[:1].isdigit() for name in names)
        axis.set_ylabel("layer (stage.block)" if staged else "layer")
    return axis.collections[0]


def _draw_weights(axes: Sequence["Axes"], arms: Mapping[Arm, Runs]) -> None:
    shown: Mapping[Arm, Look] = looks(arms)
    highest = 0.0
    for axis, (arm, runs) in zip(axes, arms.items(), strict=True):
        counts, edges, outside = _histogram(runs)
        highest = max(highest, counts.max())
        axis.stairs(counts, edges, fill=True, color=shown[arm]["color"], alpha=0.5)
        if arm != BASELINE and BASELINE in arms:
            before, _, _ = _histogram(arms[BASELINE])
            axis.stairs(before, edges, color=shown[BASELINE]["color"], linewidth=0.6)
        axis.set_xlim(edges[0], edges[-1])
        axis.set_xlabel(f"value of kept weights\n({100 * outside:.2g} % beyond ±{edges[-1]:g})")
    for axis in axes:
        axis.set_ylim(0, 1.08 * highest or 1)
    axes[0].set_ylabel("weights per bin,\nmean over seeds")
    if BASELINE in arms and len(arms) > 1:
        axes[1].set_title("outline: baseline")


def _histogram(runs: Runs) -> tuple["np.ndarray", "np.ndarray", float]:
    """Return mean counts per bin, the edges of the bins, and the share of weights outside."""
    import numpy as np

    histograms = [run["weights"]["histogram"] for run in runs.values()]
    counts = np.mean([histogram["counts"] for histogram in histograms], axis=0)
    kept = np.mean([run["sparsity"]["kept"] for run in runs.values()])
    outside = max(0.0, 1 - counts.sum() / kept) if kept else 0.0
    return counts, np.asarray(histograms[0]["edges"]), float(outside)


def _one_digit_up(value: float) -> float:
    """Round a positive value up to one significant digit."""
    unit = 10.0 ** math.floor(math.log10(value))
    return math.ceil(round(value / unit, 9)) * unit
