"""Dense and sparse execution of the same runs, side by side.

The execution of a run is not a setting, so both records have the same id and are in two folders of
results. They may come from different processors. The comparison shows whether two executions differ
by more than two seeds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from ckasr.experiments import records as stored

from .cells import Record, cell_title, settings_of
from .style import BASELINE_LOOK, blank, legend, styled, wrapped
from .tables import DIFFERENCE, markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pair = tuple[Record, Record]
"""The records of the same run in dense and in sparse execution."""

SPARSE_LOOK = {"color": "#D55E00", "marker": "x", "linestyle": "--"}
COLUMNS = (
    "seed",
    "dense execution, %",
    "sparse execution, %",
    DIFFERENCE,
    "device of the dense run",
    "device of the sparse run",
)


def execution_pairs(folders: Sequence[Path]) -> dict[Path, list[Pair]]:
    """Find the runs that have a record of each execution.

    Args:
        folders: folders of results.

    Returns:
        The pairs of each folder with sparse runs, in the order of their seeds.
    """
    found: dict[Path, list[Pair]] = {}
    by_folder = {folder: {r["id"]: r for r in stored.load_all(folder)} for folder in folders}
    for folder, runs in by_folder.items():
        for name, run in runs.items():
            if run.get("execution") != "sparse":
                continue
            for others in by_folder.values():
                other = others.get(name)
                if other is not None and other.get("execution", "dense") == "dense":
                    found.setdefault(folder, []).append((other, run))
    return {
        folder: sorted(pairs, key=lambda pair: pair[0]["settings"]["seed"])
        for folder, pairs in found.items()
    }


def execution_table(pairs: Sequence[Pair]) -> str:
    """Return a Markdown table of the test accuracies of both executions, with a row for each seed.

    The lines below the table state the mean difference and the standard deviation between seeds.

    Args:
        pairs: the pairs of one folder, from `execution_pairs`.
    """
    rows = []
    for dense, sparse in pairs:
        a, b = (100 * run["test_accuracy"] for run in (dense, sparse))
        accuracies = f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f}"
        rows.append(
            (f"{dense['settings']['seed']}", *accuracies, dense["device"], sparse["device"])
        )
    differences = [100 * (b["test_accuracy"] - a["test_accuracy"]) for a, b in pairs]
    spreads = [_spread([pair[side] for pair in pairs]) for side in (0, 1)]
    lines = [
        f"### {_title(pairs)}",
        "",
        *markdown(COLUMNS, rows),
        "",
        f"The mean difference (sparse minus dense) is {mean(differences):+.2f} points. The "
        f"standard deviation between seeds, in points, is {spreads[0]} with dense execution and "
        f"{spreads[1]} with sparse execution.",
    ]
    return "\n".join(lines) + "\n"


@styled
def execution_curves(pairs: Sequence[Pair]) -> "Figure":
    """Draw training loss and validation accuracy against the epoch.

    There is one line per seed and execution.

    Args:
        pairs: the pairs of one folder, from `execution_pairs`.
    """
    figure = blank(6.4, 2.9)
    axes = figure.subplots(1, 2)
    for dense, sparse in pairs:
        for run, look, label in (
            (dense, BASELINE_LOOK, "dense execution"),
            (sparse, SPARSE_LOOK, "sparse execution"),
        ):
            curves: Mapping[str, list[float]] = run["curves"]
            epochs = range(1, len(curves["loss"]) + 1)
            axes[0].plot(epochs, curves["loss"], label=label, markersize=3, **look)
            accuracy = [100 * value for value in curves["validation_accuracy"]]
            axes[1].plot(epochs, accuracy, markersize=3, **look)
    names = ("training loss\n(cross-entropy, nats)", "validation accuracy (%)")
    for axis, name in zip(axes, names, strict=True):
        axis.set(xlabel="epoch", ylabel=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(wrapped(_title(pairs), 84))
    legend(figure, axes, f"One line per seed (n = {len(pairs)}).")
    return figure


def _title(pairs: Sequence[Pair]) -> str:
    return cell_title(settings_of(pairs[0][0]))


def _spread(runs: Sequence[Record]) -> str:
    values = [100 * run["test_accuracy"] for run in runs]
    return f"{stdev(values):.2f}" if len(values) > 1 else "unknown"
