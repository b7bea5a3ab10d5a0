"""The effect of the term on several networks: accuracy, layer CKA, and time per epoch."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

from . import words
from .cells import BASELINE, Arm, Cell, Record, cells, percent, recipe_title
from .failures import SECONDS
from .mechanism import SIMILARITY, Quantity, difference, difference_text
from .statistics import CONFIDENCE, Comparison, compare
from .tables import (
    DIFFERENCE,
    INTERVAL,
    NOTHING,
    PAIRS,
    SPARSITY,
    VERDICT,
    corrected_table,
    interval_text,
    p_text,
    points_text,
)
from .verdict import RULE, learned, verdict_of

PER_NETWORK = ("dataset", "model", "sparsity", "learning_rate", "validation")
"""Settings that may differ between the rows of one table. All others are the same."""


def _log_seconds(record: Record) -> float | None:
    seconds = SECONDS.read(record)
    return math.log(seconds) if seconds else None


TIME = Quantity("logarithm of the time per epoch", "logarithm of the\ntime per epoch", _log_seconds)

COLUMNS = (
    "network",
    "data set",
    SPARSITY,
    "arm",
    PAIRS,
    "baseline, %",
    "with the term, %",
    DIFFERENCE,
    INTERVAL,
    "p",
    "Holm p",
    "change of layer CKA",
    "ratio of time per epoch, with / without the term",
    VERDICT,
)

LEGEND = f"""\
Accuracies are test accuracies after the last epoch, averaged over the pairs. Difference: with \
the term minus without it, averaged over pairs with the same seed, mask and data order; its \
interval is Student's t interval. p is the p-value of the exact two-sided sign-flip test, and \
Holm p is its value after Holm's correction for all rows of the table. Change of layer CKA: mean \
paired difference of the mean CKA over all pairs of layers, with its {100 * CONFIDENCE:g} % \
interval. Ratio of time per epoch: geometric mean over pairs. It depends on the other load of the \
machine. A network whose mean accuracy is below 2 / classes is at chance and does not test the \
claim.

{RULE}
"""


@dataclass(frozen=True)
class Effect:
    """The effect of one arm on one network at one sparsity.

    Attributes:
        accuracy: paired differences of the test accuracy, as fractions.
        similarity: paired differences of the mean CKA over all pairs of layers.
        time: paired differences of the natural logarithm of the mean seconds per epoch.
        learned: whether the mean accuracy of all runs is above chance.
    """

    accuracy: Comparison
    similarity: Comparison
    time: Comparison
    learned: bool

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that both arms share."""
        return self.accuracy.cell.settings

    @property
    def label(self) -> str:
        """Network, data set and sparsity."""
        network = words.network(self.settings["model"])
        dataset = words.dataset(self.settings["dataset"])
        return f"{network}, {dataset}, {percent(self.settings['sparsity'])}"

    @property
    def slowdown(self) -> float | None:
        """Geometric mean of the ratio of the times per epoch; None if it is not known."""
        return None if self.time.mean is None else math.exp(self.time.mean)

    @property
    def verdict(self) -> str:
        """The verdict on the difference of accuracies."""
        return verdict_of(self.accuracy) if self.learned else "not tested: accuracy is at chance"


def architecture_effects(records: Iterable[Record]) -> list[Effect]:
    """The effect of every arm that has a term, in every cell with a baseline."""
    return [
        _effect(cell, arm)
        for cell in cells(records)
        if BASELINE in cell.arms
        for arm in cell.arms
        if arm != BASELINE
    ]


def architecture_studies(records: Iterable[Record]) -> list[list[Effect]]:
    """Group the effects of several networks whose runs differ only in `PER_NETWORK`.

    Groups that have only one network are left out.
    """
    found: dict[str, list[Effect]] = {}
    for each in architecture_effects(records):
        found.setdefault(json.dumps(common(each), sort_keys=True), []).append(each)
    return [study for study in found.values() if len({e.settings["model"] for e in study}) > 1]


def common(effect: Effect) -> dict[str, Any]:
    """The settings that all rows of a table share."""
    return {name: value for name, value in effect.settings.items() if name not in PER_NETWORK}


def architectures_title(study: Sequence[Effect]) -> str:
    """The title of a study: method, epochs, and settings that are unusual."""
    return recipe_title(common(study[0]))


def architectures_table(studies: Iterable[Sequence[Effect]]) -> str:
    """Markdown: a table for each study, a row for each network, sparsity and arm."""
    tables = [
        corrected_table(
            f"Networks: {architectures_title(study)}",
            COLUMNS,
            [(each.label, each.accuracy, partial(_row, each)) for each in study],
        )
        for study in studies
    ]
    return (
        "\n".join([*tables, LEGEND]) if tables else "There are no runs of several networks yet.\n"
    )


def _effect(cell: Cell, arm: Arm) -> Effect:
    runs = [run for side in (BASELINE, arm) for run in cell.arms[side].values()]
    return Effect(
        compare(cell, arm),
        difference(cell, arm, SIMILARITY),
        difference(cell, arm, TIME),
        learned(runs),
    )


def _row(each: Effect, adjusted: float | None) -> tuple[str, ...]:
    accuracy = each.accuracy

    def percents(values: Sequence[float]) -> str:
        return f"{100 * mean(values):.2f}" if values else NOTHING

    return (
        words.network(each.settings["model"]),
        words.dataset(each.settings["dataset"]),
        percent(each.settings["sparsity"]),
        accuracy.arm.label,
        str(accuracy.n),
        percents(accuracy.baseline),
        percents(accuracy.treated),
        points_text(accuracy.mean),
        interval_text(accuracy.t_interval),
        p_text(accuracy.p),
        p_text(adjusted),
        difference_text(each.similarity, SIMILARITY.digits),
        NOTHING if each.slowdown is None else f"{each.slowdown:.2f}",
        each.verdict,
    )
