"""The figure of the training curves of one cell."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .cells import BASELINE, Arm, Cell, Record, cell_title, only_cell, term_label
from .statistics import half_width
from .style import Look, blank, legend, looks, styled, wrapped

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Panel(NamedTuple):
    """One curve of the records as it is drawn."""

    label: str  # of the y axis, with the unit
    scale: float = 1.0
    smallest_range: float = 0.0  # of the y axis: noise should not look like an effect
    logarithmic: bool = False


@styled
def training_curves(records: Iterable[Record]) -> "Figure":
    """Loss, validation accuracy, the term and its share of the gradient, against the epoch.

    Each arm is a line, the mean over its finished runs, in a band, the 95 % Student-t interval of
    that mean. Thin lines are runs that diverged; a cross marks their last finite value. What no
    run has measured has no panel, and an arm without a measured value has no line.

    Raises:
        ValueError: if there are no records, or if they belong to more than one cell.
    """
    cell = only_cell(records)
    shown = {
        name: panel
        for name, panel in _panels(cell).items()
        if any(value is not None for run in _runs(cell) for value in run["curves"][name])
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
        "term": Panel(f"{term}{before},\nnot yet times β", smallest_range=0.1),
        "gradient_ratio": Panel(f"gradient norm:\nβ {term} / loss", logarithmic=True),
    }


def _note(cell: Cell, shown: Mapping[str, Panel]) -> str:
    note = "Lines: mean over n seeds. Bands: its 95 % interval (Student's t)."
    if any(panel.logarithmic for panel in shown.values()):
        note += " On the logarithmic axis, the geometric mean."
    if _phases(cell):
        note += " Vertical lines: a phase of the method begins."
    if any(run["status"] == "diverged" for run in _runs(cell)):
        note += " Thin lines that end in a cross: diverged runs."
    baseline = cell.arms.get(BASELINE, {}).values()
    measured = any(value is not None for run in baseline for value in run["curves"]["term"])
    if "term" in shown and baseline and not measured:
        note += (
            " The term is not computed while the baseline trains; the layer CKA after training is "
            "measured in all arms."
        )
    return note


def _draw_curves(
    axis: "Axes", name: str, panel: Panel, runs: Sequence[Record], arm: Arm, look: Look
) -> None:
    import numpy as np

    finished = []
    for run in runs:
        values = [np.nan if v is None else v for v in run["curves"][name]]
        curve = panel.scale * np.array(values, dtype=float)
        known = np.flatnonzero(np.isfinite(curve))
        if run["status"] != "diverged":
            finished.append(curve)
        elif len(known):
            epochs, thin = np.arange(1, len(curve) + 1), {"color": look["color"], "alpha": 0.5}
            axis.plot(epochs, curve, linewidth=0.4, **thin)
            axis.plot(epochs[known[-1]], curve[known[-1]], "x", markersize=5, **thin)
    if not finished or not np.isfinite(finished).any():
        return
    mean, low, high = _mean_and_band(np.array(finished), panel.logarithmic)
    epochs = np.arange(1, len(mean) + 1)
    axis.fill_between(epochs, low, high, color=look["color"], alpha=0.2, linewidth=0)
    line = {name: look[name] for name in ("color", "linestyle")}
    axis.plot(epochs, mean, linewidth=1.3, label=f"{arm.label} (n = {len(finished)})", **line)


def _mean_and_band(
    curves: "np.ndarray", logarithmic: bool
) -> tuple["np.ndarray", "np.ndarray", "np.ndarray"]:
    """Mean over the first axis and both ends of its interval, each of shape (epochs,).

    For a logarithmic axis they are computed from the logarithms. A single run has no interval: its
    ends are NaN.
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
        return
    low, high = axis.get_ylim()
    if high - low < panel.smallest_range:
        middle = (low + high) / 2
        axis.set_ylim(middle - panel.smallest_range / 2, middle + panel.smallest_range / 2)


def _phases(cell: Cell) -> list[float]:
    """Epochs between which a new phase begins: 15.5 if the second phase begins with epoch 16."""
    phases = max((run["curves"]["phase"] for run in _runs(cell)), key=len)
    return [i + 0.5 for i in range(1, len(phases)) if phases[i] != phases[i - 1]]


def _runs(cell: Cell) -> list[Record]:
    return [run for seeds in cell.arms.values() for run in seeds.values()]
