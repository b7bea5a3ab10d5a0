"""Dense beside sparse execution: the same runs, found in two results folders, and what differs.

The execution of a run is no setting, so both records have the same name. They need not come from
one processor; what is asked is whether they differ by more than two seeds do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from ckasr.experiments import records as stored
from ckasr.storage import write_text

from .cells import Record, percent, settings_of, title
from .style import BASELINE_LOOK, blank, legend, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pair = tuple[Record, Record]
"""The same run in dense and in sparse execution."""

SPARSE_LOOK = {"color": "#D55E00", "marker": "x", "linestyle": "--"}


def execution_pairs(folders: Sequence[Path]) -> dict[Path, list[Pair]]:
    """Runs that have a record of each execution, by the folder that holds the sparse one."""
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
    """Test accuracies of both executions by seed, in percent, and the spread of the seeds."""
    lines = [
        f"### {title(settings_of(pairs[0][0]))}, sparsity {_sparsity(pairs)}",
        "",
        "| seed | dense, % | sparse, % | difference, points | dense ran on | sparse ran on |",
        "|---|---|---|---|---|---|",
    ]
    for dense, sparse in pairs:
        a, b = (100 * run["test_accuracy"] for run in (dense, sparse))
        devices = f"{dense['device']} | {sparse['device']}"
        lines.append(
            f"| {dense['settings']['seed']} | {a:.2f} | {b:.2f} | {b - a:+.2f} | {devices} |"
        )
    differences = [100 * (b["test_accuracy"] - a["test_accuracy"]) for a, b in pairs]
    spreads = [_spread([pair[side] for pair in pairs]) for side in (0, 1)]
    lines += [
        "",
        f"Mean difference {mean(differences):+.2f} points. Standard deviation between seeds: "
        f"{spreads[0]} points dense, {spreads[1]} points sparse.",
    ]
    return "\n".join(lines) + "\n"


@styled
def execution_curves(pairs: Sequence[Pair]) -> "Figure":
    """Training loss and validation accuracy by epoch, one line for each seed and execution."""
    figure = blank(6.3, 2.9)
    axes = figure.subplots(1, 2)
    for dense, sparse in pairs:
        for run, look, label in (
            (dense, BASELINE_LOOK, "dense execution"),
            (sparse, SPARSE_LOOK, "sparse execution"),
        ):
            curves: Mapping[str, list[float]] = run["curves"]
            epochs = range(1, len(curves["loss"]) + 1)
            axes[0].plot(epochs, curves["loss"], label=label, markersize=4, **look)
            accuracy = [100 * value for value in curves["validation_accuracy"]]
            axes[1].plot(epochs, accuracy, markersize=4, **look)
    for axis, name in zip(axes, ("training loss", "validation accuracy, %"), strict=True):
        axis.set(xlabel="epoch", ylabel=name, xticks=range(1, len(epochs) + 1))
    seeds = len(pairs)
    note = f"{title(settings_of(pairs[0][0]))}, sparsity {_sparsity(pairs)}, {seeds} seeds"
    legend(figure, axes, note)
    return figure


def write_executions(folders: Sequence[Path]) -> list[Path]:
    """Table and figure of every comparison there is; returns the files."""
    from .write import save

    written = []
    for folder, pairs in execution_pairs(folders).items():
        written.append(folder / "tables" / "executions.md")
        write_text(written[-1], execution_table(pairs))
        path = folder / "figures" / "executions.png"
        written.append(save(execution_curves(pairs), path))
    return written


def _sparsity(pairs: Sequence[Pair]) -> str:
    return percent(pairs[0][0]["settings"]["sparsity"])


def _spread(runs: Sequence[Record]) -> str:
    values = [100 * run["test_accuracy"] for run in runs]
    return f"{stdev(values):.2f}" if len(values) > 1 else "unknown"
