"""The table of numbers of samples, intervals and betas, and the bias of selecting one of them.

The appendix of the paper (table 2) trains one network for each of 60 settings of the term, and
reports the test accuracy of each. The best of many single runs exceeds a single baseline run even
if the term has no effect. Therefore a setting is selected here in four ways from the same runs.
Only the first way gives an unbiased estimate of the gain of the term.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from .cells import BASELINE, Arm, Cell, Record, cell_title, cells
from .paper import PUBLISHED, Published
from .statistics import Comparison, compare, of_values, value_of
from .tables import (
    DIFFERENCE,
    INTERVAL,
    NOTHING,
    PAIRS,
    PAPER,
    VERDICT,
    interval_text,
    markdown,
    points_text,
)
from .verdict import COLLAPSE, verdict_on

COLUMNS = (
    "samples",
    "interval, steps",
    "beta",
    "validation, %",
    "test, %",
    PAIRS,
    DIFFERENCE,
    INTERVAL,
    PAPER,
    "paper's difference",
)
CHOICE_COLUMNS = (
    "setting selected by",
    "settings",
    PAIRS,
    "reported gain, points",
    INTERVAL,
    VERDICT,
)

UNBIASED = "validation accuracy, other seeds"
SAME_VALIDATION = "validation accuracy, same runs"
SAME_TEST = "test accuracy, mean over seeds"
SINGLE_TEST = "test accuracy, single run of each seed"

LEGEND = f"""\
Difference: test accuracy with the term minus that without it, averaged over pairs with the same \
seed, mask and data order, with Student's t interval. The paper's numbers are from its table 2 \
(CIFAR-10, ResNet20, random ERK masks at 95 %, best test epoch, one run per setting). If the \
sparsity of our runs is not 95 %, they are a different experiment.

The second table compares four ways to select one setting, with the gain over the baseline that \
each of them reports. *{UNBIASED}*: for each seed, the setting with the best mean validation \
accuracy of all other seeds. The gain is measured on runs that have no part in the selection, so \
only this row has a verdict. *{SAME_VALIDATION}*: the setting with the best mean validation \
accuracy of all seeds. A run that is better by chance is often better on both sets, so this gain \
is too large. *{SAME_TEST}*: the setting with the best mean test accuracy, which is also the \
reported number. *{SINGLE_TEST}*: for each seed, the setting with the best test accuracy, as in a \
table with one run per setting whose best entry is compared with one run of the baseline. The \
gain of the last row minus that of the first is the selection bias.
"""


@dataclass(frozen=True)
class Choice:
    """A way of selecting the setting of the term, and the gain that it reports.

    Attributes:
        rule: name of the way, one of four.
        arms: the settings that were selected, without repetitions.
        comparison: paired comparison of the test accuracy of the selected runs with the baseline.
    """

    rule: str
    arms: tuple[Arm, ...]
    comparison: Comparison

    @property
    def unbiased(self) -> bool:
        """Whether the gain is measured on runs that were not used for the selection."""
        return self.rule == UNBIASED


def few_shot_studies(records: Iterable[Record]) -> list[Cell]:
    """Return the cells with more than one number of samples or interval of steps of CKA-SR.

    Args:
        records: the records of runs.
    """
    return [
        cell
        for cell in cells(records)
        if len({(a.samples, a.every) for a in settings_of_term(cell)}) > 1
    ]


def settings_of_term(cell: Cell) -> list[Arm]:
    """Return the arms of a cell with CKA-SR in the form of the official code."""
    return [
        arm
        for arm in cell.arms
        if arm.beta and (arm.term, arm.variant, arm.pairs) == (BASELINE.term, BASELINE.variant, "")
    ]


def choices(cell: Cell) -> list[Choice]:
    """Select a setting in four ways, from the seeds that have every run.

    Args:
        cell: one of the cells of `few_shot_studies`.

    Returns:
        The four choices. The list is empty if fewer than two seeds are complete, because then no
        seed can be held out.
    """
    arms = settings_of_term(cell)
    seeds = _complete_seeds(cell)
    if len(seeds) < 2:
        return []

    def value(arm: Arm, seed: int, outcome: str) -> float:
        return value_of(cell.arms[arm][seed], outcome)

    def best(over: Sequence[int], outcome: str) -> Arm:
        return max(arms, key=lambda arm: mean(value(arm, seed, outcome) for seed in over))

    ways: dict[str, Callable[[int], Arm]] = {
        UNBIASED: lambda seed: best([s for s in seeds if s != seed], "validation_accuracy"),
        SAME_VALIDATION: lambda seed: best(seeds, "validation_accuracy"),
        SAME_TEST: lambda seed: best(seeds, "test_accuracy"),
        SINGLE_TEST: lambda seed: best([seed], "test_accuracy"),
    }
    found = []
    for rule, choose in ways.items():
        chosen = {seed: choose(seed) for seed in seeds}
        pairs = {
            seed: (value(BASELINE, seed, "test_accuracy"), value(arm, seed, "test_accuracy"))
            for seed, arm in chosen.items()
        }
        distinct = tuple(sorted(set(chosen.values())))
        found.append(Choice(rule, distinct, of_values(cell, distinct[0], pairs)))
    return found


def selection_bias(cell: Cell) -> float | None:
    """Return the gain of the best single run by test accuracy minus that of the unbiased choice.

    Args:
        cell: one of the cells of `few_shot_studies`.

    Returns:
        The difference as a fraction of 1, or None if fewer than two seeds are complete.
    """
    means = {choice.rule: choice.comparison.mean for choice in choices(cell)}
    single, unbiased = means.get(SINGLE_TEST), means.get(UNBIASED)
    return None if single is None or unbiased is None else single - unbiased


def few_shots_table(studies: Iterable[Cell]) -> str:
    """Return Markdown tables of all settings and of the four ways of selecting one.

    Args:
        studies: the cells of `few_shot_studies`.
    """
    tables = [_table(cell) for cell in studies]
    if not tables:
        return "There are no runs with different numbers of samples yet.\n"
    return "\n".join([*tables, LEGEND, _paper_in_words()])


def expected_best(average: float, spread: float, count: int) -> float:
    """Return the expected maximum of independent normal values, by numerical integration.

    Args:
        average: mean of the values.
        spread: standard deviation of the values.
        count: number of values.
    """
    from scipy.stats import norm

    def density(x: float) -> float:
        return float(x * count * norm.cdf(x) ** (count - 1))

    return average + spread * float(norm.expect(density))


def published_few_shots() -> list[Published]:
    """Return table 2 of the paper's appendix: CIFAR-10, ResNet20, random ERK at 95 %."""
    return [p for p in PUBLISHED if p.dataset == "cifar10" and p.variant == "official"]


def published_baseline() -> Published:
    """Return the accuracy without the term with which table 2 is compared."""
    return next(p for p in PUBLISHED if p.dataset == "cifar10" and p.beta == 0)


def beside_the_paper(cell: Cell) -> bool:
    """Return whether table 2 may be shown with a cell: CIFAR-10 and ResNet20, at any sparsity."""
    return (cell.settings["dataset"], cell.settings["model"]) == ("cifar10", "resnet20")


def _complete_seeds(cell: Cell) -> list[int]:
    """Return the seeds for which every setting of the term forms a pair with the baseline."""
    shared = [set(compare(cell, arm).seeds) for arm in settings_of_term(cell)]
    seeds = sorted(set.intersection(*shared)) if BASELINE in cell.arms and shared else []
    runs = [[cell.arms[arm][seed] for arm in (BASELINE, *settings_of_term(cell))] for seed in seeds]
    validated = [all(run["validation_accuracy"] is not None for run in each) for each in runs]
    return [seed for seed, fine in zip(seeds, validated, strict=True) if fine]


def _table(cell: Cell) -> str:
    rows = [
        _row(cell, arm) for arm in (BASELINE, *_ordered(settings_of_term(cell))) if arm in cell.arms
    ]
    lines = [f"### Samples and beta: {cell_title(cell.settings)}", "", *markdown(COLUMNS, rows), ""]
    for arm in settings_of_term(cell):
        comparison = compare(cell, arm)
        lost = [*comparison.diverged, *comparison.incomplete]
        if lost:
            lines.append(f"- {arm.label}: excluded: {', '.join(lost)}")
    found = choices(cell)
    if not found:
        lines.append("- No setting is selected, because fewer than two seeds have all runs.")
        return "\n".join(lines) + "\n"
    lines += [*markdown(CHOICE_COLUMNS, [_choice_row(choice) for choice in found]), ""]
    bias = selection_bias(cell)
    if bias is not None:
        count = len(settings_of_term(cell))
        lines.append(
            f"- The selection bias is {100 * bias:+.2f} points: the gain of the best of {count} "
            "single runs on the test set, minus the gain of the unbiased selection."
        )
    return "\n".join(lines) + "\n"


def _ordered(arms: Iterable[Arm]) -> list[Arm]:
    """Sort arms by number of samples, with the whole batch first, and by interval and beta."""
    return sorted(arms, key=lambda arm: (arm.samples != 0, -arm.samples, arm.every, arm.beta))


def _row(cell: Cell, arm: Arm) -> tuple[str, ...]:
    runs = [run for run in cell.arms[arm].values() if run["status"] == "finished"]
    compared = BASELINE in cell.arms and arm != BASELINE
    comparison = compare(cell, arm) if compared else None
    setting = [f"{arm.samples or 'all'}", str(arm.every), f"{arm.beta:g}"]
    if arm == BASELINE:
        setting = ["baseline", NOTHING, "0"]
    reference = published_baseline()
    published = _published(arm) if beside_the_paper(cell) else None
    gain = published and published.percent - reference.percent
    return (
        *setting,
        _percent_mean([run["validation_accuracy"] for run in runs]),
        _percent_mean([run["test_accuracy"] for run in runs]),
        str(comparison.n) if comparison else NOTHING,
        points_text(comparison.mean if comparison else None),
        interval_text(comparison.t_interval if comparison else None),
        NOTHING if published is None else f"{published.percent:.2f}",
        NOTHING if gain is None or arm == BASELINE else f"{gain:+.2f}",
    )


def _choice_row(choice: Choice) -> tuple[str, ...]:
    comparison = choice.comparison
    return (
        choice.rule,
        "; ".join(f"{arm.sampling}, beta {arm.beta:g}" for arm in choice.arms),
        str(comparison.n),
        points_text(comparison.mean),
        interval_text(comparison.t_interval),
        verdict_on(comparison, None) if choice.unbiased else "none, because of the selection",
    )


def _published(arm: Arm) -> Published | None:
    """Return the entry of table 2 with the settings of an arm, or None."""
    if arm == BASELINE:
        return published_baseline()
    for number in published_few_shots():
        same = (number.samples, number.every) == (arm.samples, arm.every)
        if same and number.beta and abs(number.beta / arm.beta - 1) < 1e-9:
            return number
    return None


def _paper_in_words() -> str:
    """Return a comparison of the best entry of table 2 with its expected value by chance."""
    reference = published_baseline().percent
    shown = [number.percent for number in published_few_shots()]
    kept = [value for value in shown if value > reference - 100 * COLLAPSE]
    average, spread, count = mean(kept), stdev(kept), len(kept)
    return (
        f"The paper's table 2 has {len(shown)} settings, of which {len(shown) - count} collapsed. "
        f"The other {count} have a mean of {average:.2f} % and a standard deviation of "
        f"{spread:.2f} points; the best of them, {max(kept):.2f} %, is compared with one run of "
        f"{reference:.2f} % without the term. The expected maximum of {count} independent normal "
        "values with this mean and standard deviation is "
        f"{expected_best(average, spread, count):.2f} %, so the best entry does not show that its "
        "setting is better than the others.\n"
    )


def _percent_mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * mean(known):.2f}" if known else NOTHING
