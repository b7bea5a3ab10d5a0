"""Interaction of the term with other regularizers: a 2 x 2 factorial for each partner.

A partner is another regularizer. The four arms are a method without and with the partner, each
without and with the term. The interaction is ``(both - partner) - (term - neither)``, the effect of
the term with the partner minus its effect without it. It is computed for each seed, because the
four runs of a seed share initial weights, split, order and augmentation.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

from ckasr.experiments.partners import PARTNERS, Partner
from ckasr.experiments.settings import Settings

from .cells import BASELINE, Arm, Cell, Record, cells, family_title, percent
from .statistics import CONFIDENCE, Comparison, compare, compare_sides, of_values
from .tables import NOTHING, PAIRS, corrected_table, interval_text, p_text, points_text
from .verdict import FEWEST_PAIRS, difference_shown, learned, verdict_on

COLUMNS = (
    "partner",
    "strength",
    PAIRS,
    "neither, %",
    "partner, %",
    "term, %",
    "both, %",
    "effect of the term without partner, points",
    "effect of the term with partner, points",
    "interaction, points",
    f"{100 * CONFIDENCE:g} % interval",
    "p",
    "Holm p",
    "verdict",
)

LEGEND = f"""\
Accuracies are test accuracies after the last epoch, averaged over the seeds for which all four \
runs are finished: with neither the partner nor the term, with one of them, and with both. \
Interaction: effect of the term with the partner minus its effect without the partner, (both - \
partner) - (term - neither), averaged over seeds. Its interval is Student's t interval. p is the \
p-value of the exact two-sided sign-flip test, and Holm p is its value after Holm's correction \
for all rows of the table. The verdict is *positive interaction* if the {100 * CONFIDENCE:g} % \
interval lies above 0, *negative interaction* if it lies below 0, and otherwise *no interaction \
shown*, which does not mean that there is none. It is *undecided* with fewer than {FEWEST_PAIRS} \
seeds, without an interval, or if more than one fifth of the seeds have a run that diverged.
"""


@dataclass(frozen=True)
class Interaction:
    """The factorial of one partner and one arm with the term.

    Args:
        partner: the partner.
        strength: strength of the partner in the cell that has it.
        off: term compared with the baseline without the partner, for the seeds with all four runs.
        on: the same comparison with the partner.
        difference: the interaction. Its values are the effects of the term in ``off`` and in
            ``on``, as fractions of 1, and its differences are ``on - off``.
        learned: whether the mean accuracy of all runs is above chance.
    """

    partner: Partner
    strength: float
    off: Comparison
    on: Comparison
    difference: Comparison
    learned: bool

    @property
    def label(self) -> str:
        """Name of the partner with its strength."""
        return f"{self.partner.label} {self.strength:g}"

    @property
    def common(self) -> dict[str, Any]:
        """The settings that the cells of all partners share, with partners at their defaults."""
        own = {p.field: getattr(Settings, p.field) for p in PARTNERS.values() if not p.method}
        left_out = {"method", "method_options", "distribution"}
        shared = {**self.off.cell.settings, **own}
        return {name: value for name, value in shared.items() if name not in left_out}

    @property
    def title(self) -> str:
        """The arm, the data set, the network, the sparsity, and the non-default settings."""
        sparsity = percent(self.common["sparsity"])
        return f"{self.difference.arm.label}, {family_title(self.common)}, sparsity {sparsity}"

    @property
    def verdict(self) -> str:
        """What the interval of the interaction shows, by the names that ``LEGEND`` defines."""
        if not self.learned:
            return "not tested: accuracy is at chance"
        word = verdict_on(self.difference, None)
        if difference_shown(self.difference):
            return f"{word} interaction"
        return word.replace("difference", "interaction")


def interactions(records: Iterable[Record]) -> list[Interaction]:
    """Return the interaction of each partner and each arm with the term.

    A factorial consists of two cells that differ only in the strength of one partner. One cell is
    without the partner, and both cells have a baseline and the arm.

    Args:
        records: the records of runs.
    """
    found = cells(records)
    hosts = {_host(cell).id: cell for cell in found if BASELINE in cell.arms}
    return [
        _interaction(partner, strength, off, on, arm)
        for partner in PARTNERS.values()
        for on in hosts.values()
        for host in [_host(on)]
        if (strength := partner.strength(host)) not in (None, partner.off)
        for off in [hosts.get(partner.host(host, partner.off).id)]
        if off is not None
        for arm in on.arms
        if arm != BASELINE and arm in off.arms
    ]


def studies(found: Iterable[Interaction]) -> list[list[Interaction]]:
    """Group the interactions that differ only in the partner.

    Args:
        found: the interactions, from `interactions`.
    """
    groups: dict[str, list[Interaction]] = {}
    for each in found:
        key = json.dumps([each.common, each.difference.arm], sort_keys=True)
        groups.setdefault(key, []).append(each)
    return list(groups.values())


def interactions_table(found: Iterable[Interaction]) -> str:
    """Return a Markdown table for each of the `studies`, with a row for each partner.

    Args:
        found: the interactions, from `interactions`.
    """
    tables = [
        corrected_table(
            f"Interactions: {members[0].title}",
            COLUMNS,
            [(each.label, each.difference, partial(_row, each)) for each in members],
        )
        for members in studies(found)
    ]
    return (
        "\n".join([*tables, LEGEND]) if tables else "There are no complete factorial designs yet.\n"
    )


def _row(each: Interaction, adjusted: float | None) -> tuple[str, ...]:
    def accuracy(values: Sequence[float]) -> str:
        return f"{100 * mean(values):.2f}" if values else NOTHING

    return (
        each.partner.label,
        f"{each.strength:g}",
        str(each.difference.n),
        accuracy(each.off.baseline),
        accuracy(each.on.baseline),
        accuracy(each.off.treated),
        accuracy(each.on.treated),
        points_text(each.off.mean),
        points_text(each.on.mean),
        points_text(each.difference.mean),
        interval_text(each.difference.t_interval),
        p_text(each.difference.p),
        p_text(adjusted),
        each.verdict,
    )


def _interaction(partner: Partner, strength: float, off: Cell, on: Cell, arm: Arm) -> Interaction:
    sides = {
        "baseline without the partner": off.arms[BASELINE],
        "baseline with the partner": on.arms[BASELINE],
    }
    parts = {
        "": compare_sides(on, arm, sides),
        "without the partner, ": compare(off, arm),
        "with the partner, ": compare(on, arm),
    }
    seeds = set.intersection(*(set(part.seeds) for part in parts.values()))
    diverged, incomplete = (
        sorted({f"{where}{text}" for where, part in parts.items() for text in getattr(part, lost)})
        for lost in ("diverged", "incomplete")
    )

    def only_common(cell: Cell, part: Comparison) -> Comparison:
        pairs = zip(part.seeds, zip(part.baseline, part.treated, strict=True), strict=True)
        return of_values(cell, arm, {seed: pair for seed, pair in pairs if seed in seeds})

    without, with_ = (
        only_common(cell, part)
        for cell, part in zip((off, on), list(parts.values())[1:], strict=True)
    )
    effects = zip(without.differences, with_.differences, strict=True)
    values = dict(zip(without.seeds, effects, strict=True))
    runs = [run for cell in (off, on) for a in (BASELINE, arm) for run in cell.arms[a].values()]
    return Interaction(
        partner,
        strength,
        without,
        with_,
        of_values(on, arm, values, diverged, incomplete),
        learned(runs),
    )


def _host(cell: Cell) -> Settings:
    """Return the settings of the baseline of a cell, with seed 0."""
    # from_dict would replace missing options by the values of old records.
    return Settings(**{name: v for name, v in cell.settings.items() if name != "schedule"})
