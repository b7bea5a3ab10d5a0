"""The figure of the training curves of one cell."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ckasr.terms import find

from .cells import BASELINE, Arm, Cell, Record, cell_title, only_cell, term_label
from .statistics import half_width
from .style import Look, blank, legend, looks, styled, widen, wrapped

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FEW = 5
"""Largest number of runs that are drawn as single lines instead of an interval of the mean."""


class Panel(NamedTuple):
    """How one curve of the records is drawn."""

    label: str  # Label of the y axis, with the unit.
    scale: float = 1.0
    smallest_range: float = 0.0  # Smallest range of the y axis.
    logarithmic: bool = False


@styled
def training_curves(records: Iterable[Record]) -> "Figure":
    """Draw loss, validation accuracy, the term and its share of the gradient against the epoch.

    The term is drawn as training computed it and, if the records contain it, as it was measured in
    the same way in all arms.

    A thick line shows the mean over the finished runs of each arm. Thin lines show the runs. If
    there are more than `FEW` runs, a band shows the 95 % Student-t interval of the mean instead. A
    cross marks the last epoch of a run that diverged. A quantity that no run has measured has no
    panel, and an arm without a measured value has no line.

    Args:
        records: the records of the runs of one cell.

    Raises:
        ValueError: if there are no records, or if they belong to more than one cell.
    """
    cell = only_cell(records)
    shown = {
        name: panel
        for name, panel in _panels(cell).items()
        if any(value is not None for run in _runs(cell) for value in _values(run, name))
    }
    rows = -(-len(shown) // 2)
    figure = blank(6.4, 0.9 + 1.9 * rows)
    axes = figure.subplots(rows, 2, squeeze=False, sharex=True).flatten()
    arms = looks(cell.arms)
    for axis, (name, panel) in zip(axes, shown.items(), strict=False):
        for arm, seeds in cell.arms.items():
            _draw_curves(axis, name, panel, list(seeds.values()), arm, arms[arm])
        _finish(axis, panel)
        for start in _phases(cell):
            axis.axvline(start, color="0.85", linewidth=0.6, zorder=0)
    for axis in axes[len(shown) :]:
        axis.remove()
    for axis in axes[max(0, len(shown) - 2) : len(shown)]:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.tick_params(labelbottom=True)
    figure.suptitle(wrapped(cell_title(cell.settings), 84))
    legend(figure, axes[:1], _note(cell, shown))
    return figure


def _panels(cell: Cell) -> dict[str, Panel]:
    term = term_label(cell.arms)
    before = "" if term == "term" else " term"
    return {
        "loss": Panel("training loss\n(cross-entropy, nats)", smallest_range=0.01),
        "validation_accuracy": Panel("validation\naccuracy (%)", 100, smallest_range=1.0),
        "term": Panel(f"{term}{before}\n(before the factor β)", smallest_range=0.1),
        "term_measured": Panel(
            f"{find(BASELINE.term).label} term, measured\nin all arms (before β)",
            smallest_range=0.1,
        ),
        "gradient_ratio": Panel(f"ratio of gradient norms,\nβ × {term} to loss", logarithmic=True),
    }


def _values(run: Record, name: str) -> list[float | None]:
    """Return a curve of a run, with None for epochs in which it was not measured.

    Older records do not contain every curve.
    """
    curves = run["curves"]
    return curves.get(name, [None] * len(curves["epoch"]))


def _note(cell: Cell, shown: Mapping[str, Panel]) -> str:
    note = "Thick lines are means over n seeds."
    sizes = [len(_finished(seeds.values())) for seeds in cell.arms.values()]
    if any(1 < n <= FEW for n in sizes):
        note += " Thin lines are single seeds."
    if any(n > FEW for n in sizes):
        note += " Bands are 95 % Student-t intervals of the mean."
    if any(panel.logarithmic for panel in shown.values()):
        note += " On the logarithmic axis, the mean is geometric."
    if _phases(cell):
        note += " Vertical lines mark the beginning of a phase of the method."
    if any(run["status"] == "diverged" for run in _runs(cell)):
        note += " Crosses mark runs that diverged."
    baseline = cell.arms.get(BASELINE, {}).values()
    measured = any(value is not None for run in baseline for value in _values(run, "term"))
    if "term" in shown and baseline and not measured:
        note += " The term is not computed during the training of the baseline"
        note += (
            "."
            if "term_measured" in shown
            else ("; the layer CKA after training is measured in all arms.")
        )
    if "term_measured" in shown:
        note += (
            " The measured term is computed in all arms after each epoch, in eval mode and on the "
            "same samples."
        )
    return note


def _draw_curves(
    axis: "Axes", name: str, panel: Panel, runs: Sequence[Record], arm: Arm, look: Look
) -> None:
    import numpy as np

    curves = {id(run): panel.scale * _curve(run, name) for run in runs}
    finished = [curves[id(run)] for run in _finished(runs)]
    thin = {"color": look["color"], "alpha": 0.4, "linewidth": 0.5}
    for run in runs:
        curve = curves[id(run)]
        known = np.flatnonzero(np.isfinite(curve))
        if run["status"] == "diverged" and len(known):
            axis.plot(known[-1] + 1, curve[known[-1]], "x", color=look["color"], markersize=5)
        if run["status"] == "diverged" or 1 < len(finished) <= FEW:
            axis.plot(np.arange(1, len(curve) + 1), curve, **thin)
    if not finished or not np.isfinite(finished).any():
        return
    mean, low, high = _mean_and_band(np.array(finished), panel.logarithmic)
    epochs = np.arange(1, len(mean) + 1)
    if len(finished) > FEW:
        axis.fill_between(epochs, low, high, color=look["color"], alpha=0.2, linewidth=0)
    line = {key: look[key] for key in ("color", "linestyle")}
    axis.plot(epochs, mean, linewidth=1.3, label=f"{arm.label} (n = {len(finished)})", **line)


def _curve(run: Record, name: str) -> "np.ndarray":
    """Return a curve of a run, shape (epochs,), with NaN for epochs without a measurement."""
    import numpy as np

    return np.array([np.nan if v is None else v for v in _values(run, name)], dtype=float)


def _finished(runs: Iterable[Record]) -> list[Record]:
    return [run for run in runs if run["status"] != "diverged"]


def _mean_and_band(
    curves: "np.ndarray", logarithmic: bool
) -> tuple["np.ndarray", "np.ndarray", "np.ndarray"]:
    """Return the mean over the first axis and both ends of its interval, each of shape (epochs,).

    For a logarithmic axis they are computed from the logarithms. A single run has no interval, so
    both ends are NaN.
    """
    import numpy as np

    n = len(curves)
    values = np.log(np.where(curves > 0, curves, np.nan)) if logarithmic else curves
    mean = values.mean(axis=0)
    half = half_width(1.0, n) * values.std(axis=0, ddof=1) if n > 1 else np.full_like(mean, np.nan)
    found = mean, mean - half, mean + half
    return tuple(np.exp(each) for each in found) if logarithmic else found


def _finish(axis: "Axes", panel: Panel) -> None:
    axis.set_ylabel(panel.label)
    if panel.logarithmic:
        axis.set_yscale("log")
    else:
        widen(axis, panel.smallest_range)


def _phases(cell: Cell) -> list[float]:
    """Return the borders between phases: 15.5 if the second phase begins with epoch 16."""
    phases = max((run["curves"]["phase"] for run in _runs(cell)), key=len)
    return [i + 0.5 for i in range(1, len(phases)) if phases[i] != phases[i - 1]]


def _runs(cell: Cell) -> list[Record]:
    return [run for seeds in cell.arms.values() for run in seeds.values()]
