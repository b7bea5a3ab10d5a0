"""The table of methods: accuracy and cost with the same data, network and recipe."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from .cells import BASELINE, Arm, Cell, Record, families, family_title, percent
from .paper import SELECTION, deviations, lookup
from .paper import SOURCE as APPENDIX
from .references import SOURCE, TERMS, Reference, reference
from .statistics import mean_and_sd, report_mean, value_of
from .tables import (
    ACCURACY,
    DEAD_CLASSES,
    EFFECTIVE,
    NOTHING,
    PAPER,
    SPARSITY,
    UNKNOWN_PATHS,
    markdown,
)

COLUMNS = (
    SPARSITY,
    "method",
    ACCURACY,
    "validation accuracy, %",
    "actual sparsity",
    EFFECTIVE,
    DEAD_CLASSES,
    "dead layers",
    "epochs trained (× dense)",
    "minutes",
    PAPER,
    "Synaptic-Flow's data, %",
)
TOLERANCE = 0.05
"""Largest relative error of the number of kept weights for which a sparsity counts as reached."""

LEGEND = """\
The method with the best test accuracy after the last epoch comes first; sd is the standard \
deviation over n seeds. Validation accuracy is measured on held-out training images. The name of \
a method is followed by its options that do not have the default value. *Sparsity* is the target, \
*actual sparsity* is that of the masks, and *effective sparsity* counts only weights on a path \
from input to output; a layer or class is dead if it has no such path. Epochs are the sum over \
all phases, and in parentheses a multiple of the epochs of dense training; scores that are \
computed before training do not count. Minutes are wall-clock time on a machine that may have \
been shared. All numbers are means over seeds, except that a layer counts as dead if it is dead \
for any seed.
"""
OTHERS = f"""\
Published accuracies are **not directly comparable**, because the network, the schedule or both \
differ. *Synaptic-Flow's data*: {SOURCE}; {TERMS}. *Paper*: {APPENDIX}; the same network and \
method, {SELECTION}, with the full recipe.
"""


@dataclass(frozen=True)
class Entry:
    """The runs of one method at one sparsity in one arm."""

    cell: Cell
    arm: Arm

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.cell.settings["method"]

    @property
    def sparsity(self) -> float:
        """The target sparsity, a fraction of 1."""
        return self.cell.settings["sparsity"]

    @property
    def form(self) -> str:
        """Method and options as text that `grid` can parse, which is the same at every sparsity.

        Options with the default value are left out.
        """
        settings = self.cell.settings
        own = str(self.sparsity)
        options = [f"{k}={_option_text(v, own)}" for k, v in settings["method_options"].items()]
        unusual = [] if settings["distribution"] == "erk" else [settings["distribution"]]
        return " ".join([self.method, *options, *unusual])

    @property
    def label(self) -> str:
        """Method, options and arm as text for tables and figures."""
        name = self.form.replace("{sparsity}", str(self.sparsity))
        return name if self.arm == BASELINE else f"{name}, {self.arm.label}"

    @property
    def runs(self) -> list[Record]:
        """Records of all runs, in the order of the seeds."""
        return list(self.cell.arms[self.arm].values())

    @property
    def accuracies(self) -> list[float]:
        """Test accuracies of the finished runs, as fractions of 1."""
        return [value_of(run) for run in self.runs if run["status"] != "diverged"]

    @property
    def accuracy(self) -> float | None:
        """Mean test accuracy of the finished runs, a fraction of 1, or None without one."""
        return mean_and_sd(self.accuracies)[0]

    @property
    def epochs(self) -> float:
        """Mean total number of epochs of all phases."""
        return mean(len(run["curves"]["epoch"]) for run in self.runs)

    @property
    def cost(self) -> float:
        """Number of epochs as a multiple of the epochs of dense training."""
        return self.epochs / self.cell.settings["epochs"]

    @property
    def dead_layers(self) -> list[str] | None:
        """Layers without a path from input to output for at least one seed.

        The value is None if the paths of the network cannot be traced.
        """
        if any("dead_layers" not in run["sparsity"] for run in self.runs):
            return None
        named = [name for run in self.runs for name in run["sparsity"]["dead_layers"]]
        return list(dict.fromkeys(named))

    @property
    def fixed_rate(self) -> bool:
        """Whether the method is L0 and its multiplier has a rate per step (``dual_per=step``)."""
        return self.cell.settings["method_options"].get("dual_per") == "step"

    @property
    def open_gates(self) -> list[float]:
        """Fraction of weights with an open gate after training, for each run that records it."""
        shares = [run.get("measured", {}).get("open_before_cut") for run in self.runs]
        return [share for share in shares if share is not None]

    @property
    def sparsity_differs(self) -> bool:
        """Whether the number of kept weights differs from the target by more than `TOLERANCE`."""
        left = mean(1 - run["sparsity"]["nominal"] for run in self.runs)
        return abs(left / (1 - self.sparsity) - 1) > TOLERANCE

    def report(self, field: str) -> float | None:
        """Return the mean over seeds of a field of the sparsity report; see `report_mean`."""
        return report_mean(self.runs, field)


def method_families(records: Iterable[Record]) -> list[list[Entry]]:
    """Return the methods that may be compared, because they share data set, network and recipe.

    Entries are ordered by sparsity, and then by mean test accuracy, with the best method first. The
    arms of a method with a term follow its baseline. Records of a recipe with a single method are
    left out.

    Args:
        records: the records of runs.

    Returns:
        A list of entries for each family of methods.
    """
    found = []
    for family in families(records):
        cells = sorted(family, key=_rank)
        found.append([Entry(cell, arm) for cell in cells for arm in cell.arms])
    return found


def methods_table(records: Iterable[Record]) -> str:
    """Return a Markdown table for each family of methods, or one line if there is none.

    Args:
        records: the records of runs.
    """
    found = method_families(records)
    if not found:
        return "There are no two methods to compare yet.\n"
    tables = [_family_table(entries) for entries in found]
    published = any(_published(entry) for entries in found for entry in entries)
    return "\n".join([*tables, LEGEND, *([OTHERS] if published else [])])


def _family_table(entries: Sequence[Entry]) -> str:
    settings = entries[0].cell.settings
    rows = [_row(entry) for entry in entries]
    lines = [f"### Methods: {family_title(settings)}", "", *markdown(COLUMNS, rows), ""]
    broken = [
        f"{entry.label} at {percent(entry.sparsity)}, seed {seed}"
        for entry in entries
        for seed, run in entry.cell.arms[entry.arm].items()
        if run["status"] == "diverged"
    ]
    different = [f"{e.label} at {percent(e.sparsity)}" for e in entries if e.sparsity_differs]
    published = [e.cell.settings for e in entries if lookup(e.cell.settings, e.arm)]
    if broken:
        lines.append(f"- Diverged and excluded from the mean: {'; '.join(broken)}")
    if different:
        names = "; ".join(different)
        lines.append(f"- Not comparable, because the sparsity differs from the target: {names}")
    reasons = {run["sparsity"].get("not_followed") for entry in entries for run in entry.runs}
    lines += [f"- {UNKNOWN_PATHS}: {reason}" for reason in sorted(reasons - {None})]
    lines += _notes_on_gates(entries)
    if max(len(entry.runs) for entry in entries) == 1:
        lines.append("- There is one seed per method, so only large differences are meaningful")
    if published and (recipe := deviations(published[0])):
        lines.append(f"- Our recipe differs from the paper's: {', '.join(recipe)}")
    return "\n".join(lines).rstrip() + "\n"


def _notes_on_gates(entries: Sequence[Entry]) -> list[str]:
    """Return notes on how many gates of L0 were open before the final pruning."""
    lines = [
        f"- {entry.label} at {percent(entry.sparsity)}: {100 * mean(shares):.1f} % of the weights "
        "had an open gate at the end of training, before the final pruning to the target"
        for entry in entries
        if (shares := entry.open_gates)
    ]
    if old := [entry for entry in entries if entry.fixed_rate]:
        names = "; ".join(f"{entry.label} at {percent(entry.sparsity)}" for entry in old)
        lines.append(
            "- The rate of the multiplier does not depend on the number of steps (dual_per=step), "
            "so after a short training most gates can be open, and the final pruning removes most "
            f"of the weights: {names}"
        )
    return lines


def _row(entry: Entry) -> tuple[str, ...]:
    settings = entry.cell.settings
    average, sd = mean_and_sd(entry.accuracies)
    accuracy = NOTHING if average is None else f"{100 * average:.2f}"
    accuracy += "" if sd is None else f" ± {100 * sd:.2f}"
    held_out = [value for r in entry.runs if (value := r.get("validation_accuracy")) is not None]
    appendix = lookup(settings, entry.arm)
    other = _synaptic_flow(entry)
    effective, dead = entry.report("effective"), entry.report("dead_classes")
    layers = entry.dead_layers
    return (
        percent(entry.sparsity),
        entry.label,
        f"{accuracy} ({len(entry.accuracies)})",
        f"{100 * mean(held_out):.2f}" if held_out else NOTHING,
        f"{100 * mean(run['sparsity']['nominal'] for run in entry.runs):.2f} %",
        NOTHING if effective is None else f"{100 * effective:.2f} %",
        NOTHING if dead is None else f"{dead:.3g} of {entry.runs[0]['sparsity']['classes']}",
        NOTHING if layers is None else f"{len(layers)}",
        f"{entry.epochs:.4g} ({entry.cost:.3g} ×)",
        f"{mean(run['seconds'] for run in entry.runs) / 60:.1f}",
        NOTHING if appendix is None else f"{appendix.percent:.2f}",
        NOTHING if other is None else f"{other.percent:.2f} at {100 * other.sparsity:.2f} %",
    )


def _synaptic_flow(entry: Entry) -> Reference | None:
    if entry.arm != BASELINE:
        return None
    return reference(entry.cell.settings["dataset"], entry.method, entry.sparsity)


def _published(entry: Entry) -> bool:
    return bool(lookup(entry.cell.settings, entry.arm) or _synaptic_flow(entry))


def _rank(cell: Cell) -> tuple[Any, ...]:
    """Return the sort key of a cell: sparsity, then accuracy with the best first.

    Cells without a finished run come last.
    """
    first = Entry(cell, next(iter(cell.arms)))
    known = first.accuracy is not None
    return cell.settings["sparsity"], not known, -(first.accuracy or 0), first.form


def _option_text(value: Any, own: str) -> str:
    """Return an option as text. In a list, the sparsity of the run is replaced by "{sparsity}"."""
    if not isinstance(value, str):
        return str(value)
    return ",".join("{sparsity}" if part.strip() == own else part for part in value.split(","))
