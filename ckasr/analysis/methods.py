"""Methods side by side: what each reaches with the same data, network and recipe, at what cost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from .cells import BASELINE, Arm, Cell, Record, families, family_title, percent
from .paper import SELECTION, deviations, lookup
from .paper import SOURCE as APPENDIX
from .references import SOURCE, TERMS, Reference, reference
from .statistics import mean_and_sd, value_of
from .tables import NOTHING, markdown

COLUMNS = (
    "sparsity",
    "method",
    "test accuracy, % ± sd (n)",
    "validation accuracy, %",
    "sparsity reached",
    "effective sparsity",
    "dead classes",
    "dead layers",
    "epochs trained (x dense)",
    "minutes",
    "CKA-SR's appendix, %",
    "Synaptic-Flow's data, %",
)
TOLERANCE = 0.05  # of the weights that were to be left
LEGEND = """\
Best test accuracy first, after the last epoch; validation accuracy is of held-out training \
images. Behind a method stand the options that are not its defaults. \
*Sparsity* is what was asked for, *reached* what the masks left, *effective* counts only \
weights on a path from input to output; a dead layer or class has no such path. Epochs are of all \
trainings together and, in brackets, as a multiple of those of dense training; scoring before \
training is in neither. Minutes are as they were on the machine, shared or not. Means over \
seeds; dead layers are those of any.
"""
OTHERS = f"""\
Published accuracies are **not to be compared as equals**: network, schedule or both differ. \
*Synaptic-Flow's data*: {SOURCE}; {TERMS}. *CKA-SR's appendix*: {APPENDIX}; the same network and \
method, {SELECTION}, at the full recipe.
"""


@dataclass(frozen=True)
class Entry:
    """One method at one sparsity in one arm, over its seeds."""

    cell: Cell
    arm: Arm

    @property
    def method(self) -> str:
        return self.cell.settings["method"]

    @property
    def sparsity(self) -> float:
        """As asked for."""
        return self.cell.settings["sparsity"]

    @property
    def form(self) -> str:
        """Method and options as `grid` reads them, the same at every sparsity.

        Options that have the method's default are left out.
        """
        settings = self.cell.settings
        own = str(self.sparsity)
        options = [f"{k}={_parted(v, own)}" for k, v in settings["method_options"].items()]
        unusual = [] if settings["distribution"] == "erk" else [settings["distribution"]]
        return " ".join([self.method, *options, *unusual])

    @property
    def label(self) -> str:
        """Method, options and arm in words."""
        name = self.form.replace("{sparsity}", str(self.sparsity))
        return name if self.arm == BASELINE else f"{name}, {self.arm.label}"

    @property
    def runs(self) -> list[Record]:
        return list(self.cell.arms[self.arm].values())

    @property
    def accuracies(self) -> list[float]:
        """Test accuracies of the finished runs."""
        return [value_of(run) for run in self.runs if run["status"] != "diverged"]

    @property
    def accuracy(self) -> float | None:
        return mean_and_sd(self.accuracies)[0]

    @property
    def epochs(self) -> float:
        """Trained in all phases together."""
        return mean(len(run["curves"]["epoch"]) for run in self.runs)

    @property
    def cost(self) -> float:
        """The same as a multiple of the epochs of dense training."""
        return self.epochs / self.cell.settings["epochs"]

    @property
    def dead_layers(self) -> list[str]:
        """Layers that no path from input to output goes through, in any seed."""
        named = [name for run in self.runs for name in run["sparsity"]["dead_layers"]]
        return list(dict.fromkeys(named))

    @property
    def fixed_rate(self) -> bool:
        """Whether it is L0 whose multiplier gains the same in every step, however few there are."""
        return self.cell.settings["method_options"].get("dual_per") == "step"

    @property
    def open_before_cut(self) -> list[float]:
        """Shares of weights whose gate was open when L0's training ended, where recorded."""
        shares = [run.get("measured", {}).get("open_before_cut") for run in self.runs]
        return [share for share in shares if share is not None]

    @property
    def missed(self) -> bool:
        """Whether over 5 % more, or fewer, weights were left than asked for: not comparable."""
        left = mean(1 - run["sparsity"]["nominal"] for run in self.runs)
        return abs(left / (1 - self.sparsity) - 1) > TOLERANCE

    def report(self, field: str) -> float:
        """The mean over seeds of a number of the sparsity report."""
        return mean(run["sparsity"][field] for run in self.runs)


def method_families(records: Iterable[Record]) -> list[list[Entry]]:
    """The methods that may be compared: they share data, network and recipe.

    By sparsity and, in each, the best mean test accuracy first; a method's arms with a term follow
    its baseline. Records of a recipe with one method only are left out.
    """
    found = []
    for family in families(records):
        cells = sorted(family, key=_rank)
        found.append([Entry(cell, arm) for cell in cells for arm in cell.arms])
    return found


def methods_table(records: Iterable[Record]) -> str:
    """Markdown: a table for each family of methods; one line where there is none."""
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
    missed = [f"{entry.label} at {percent(entry.sparsity)}" for entry in entries if entry.missed]
    published = [e.cell.settings for e in entries if lookup(e.cell.settings, e.arm)]
    if broken:
        lines.append(f"- Diverged, not in the mean: {'; '.join(broken)}")
    if missed:
        lines.append(f"- Not the sparsity asked for, not to be compared: {'; '.join(missed)}")
    lines += _gates(entries)
    if max(len(entry.runs) for entry in entries) == 1:
        lines.append("- One seed each: only large differences say anything")
    if published and (different := deviations(published[0])):
        lines.append(f"- CKA-SR's appendix is of another recipe: {', '.join(different)}")
    return "\n".join(lines).rstrip() + "\n"


def _gates(entries: Sequence[Entry]) -> list[str]:
    """What the accuracies of L0 depend on: how much of the pruning its final cut had to do."""
    lines = [
        f"- {entry.label} at {percent(entry.sparsity)}: when training ended, the gates of "
        f"{100 * mean(shares):.1f} % of the weights were open; the cut closed the rest"
        for entry in entries
        if (shares := entry.open_before_cut)
    ]
    if old := [entry for entry in entries if entry.fixed_rate]:
        names = "; ".join(f"{entry.label} at {percent(entry.sparsity)}" for entry in old)
        lines.append(
            "- Made with a multiplier whose rate does not depend on the length of the training "
            "(dual_per=step), which can leave most gates of a short one open, so that the final "
            f"cut does the pruning: {names}"
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
    return (
        percent(entry.sparsity),
        entry.label,
        f"{accuracy} ({len(entry.accuracies)})",
        f"{100 * mean(held_out):.2f}" if held_out else NOTHING,
        f"{100 * entry.report('nominal'):.2f} %",
        f"{100 * entry.report('effective'):.2f} %",
        f"{entry.report('dead_classes'):.3g} of {entry.runs[0]['sparsity']['classes']}",
        f"{len(entry.dead_layers)}",
        f"{entry.epochs:.4g} ({entry.cost:.3g} x)",
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
    """By sparsity; then best first, cells without a finished run last."""
    first = Entry(cell, next(iter(cell.arms)))
    known = first.accuracy is not None
    return cell.settings["sparsity"], not known, -(first.accuracy or 0), first.form


def _parted(value: Any, own: str) -> str:
    """An option as text; in a list the run's own sparsity by name."""
    if not isinstance(value, str):
        return str(value)
    return ",".join("{sparsity}" if part.strip() == own else part for part in value.split(","))
