"""How many samples, how often and with which beta: one table, and what choosing from it claims.

The appendix of the paper (table 2) trains one network for each of 60 settings of the term, shows
the test accuracy of all, and stands out by the best of them. The best of many single runs lies
above a single baseline run even where the term does nothing. So the choice is made here in four
ways, from the same runs; only the first one measures what the term gains.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from .cells import BASELINE, Arm, Cell, Record, cell_title, cells
from .paper import PUBLISHED, Published
from .statistics import Comparison, compare, of_values, value_of
from .tables import NOTHING, interval_text, markdown, points_text
from .verdict import COLLAPSE, verdict_on

COLUMNS = (
    "samples",
    "every",
    "beta",
    "validation, %",
    "test, %",
    "pairs",
    "difference, points",
    "t 95 %",
    "the paper's, %",
    "the paper's difference",
)
CHOICE_COLUMNS = (
    "setting chosen by",
    "settings",
    "pairs",
    "gain it claims, points",
    "t 95 %",
    "verdict",
)

UNBIASED = "validation, on the other seeds"
SAME_VALIDATION = "validation, on the same runs"
SAME_TEST = "test set, best mean over seeds"
SINGLE_TEST = "test set, best single run of each seed"

LEGEND = """\
Difference: test accuracy with the term minus without, mean over pairs of the same seed, mask and \
data order, with its Student-t interval. The paper's numbers are of its table 2 (CIFAR-10, \
ResNet20, random ERK at 95 %, best test epoch, one run each); beside ours at another sparsity \
they are those of another experiment.

Four ways of choosing one setting, with the gain over the baseline that each would report. \
*Validation, on the other seeds*: for each seed the setting with the best mean validation \
accuracy of all other seeds; the gain is measured on runs that had no part in the choice, so the \
verdict is given for this row only. *Validation, on the same runs*: the best mean validation \
accuracy of all seeds; a lucky run is lucky on both sets. *Test set, best mean over seeds*: \
chosen by what is reported. *Test set, best single run of each seed*: as in a table of one run \
for each setting, whose best entry is set against one run of the baseline. The last row minus the \
first is the selection bias.
"""


@dataclass(frozen=True)
class Choice:
    """A way of choosing the setting of the term, and the gain that it claims.

    Attributes:
        rule: one of the four ways, in words.
        arms: the settings that were chosen, each once.
        comparison: test accuracy of the chosen runs against the baseline, pair by pair.
    """

    rule: str
    arms: tuple[Arm, ...]
    comparison: Comparison

    @property
    def unbiased(self) -> bool:
        """Whether the runs that are measured had no part in the choice."""
        return self.rule == UNBIASED


def few_shot_studies(records: Iterable[Record]) -> list[Cell]:
    """Cells in which CKA-SR was run with more than one number of samples or interval of steps."""
    return [
        cell
        for cell in cells(records)
        if len({(a.samples, a.every) for a in settings_of_term(cell)}) > 1
    ]


def settings_of_term(cell: Cell) -> list[Arm]:
    """The arms with CKA-SR in its official form."""
    return [
        arm
        for arm in cell.arms
        if arm.beta and (arm.term, arm.variant, arm.pairs) == (BASELINE.term, BASELINE.variant, "")
    ]


def choices(cell: Cell) -> list[Choice]:
    """The four ways of choosing a setting, from the seeds that have every run.

    Empty where fewer than two seeds are complete: nothing can be held out then.
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
    """Gain of the best single run by test accuracy minus that of the unbiased choice.

    A fraction of 1; None where fewer than two seeds are complete.
    """
    means = {choice.rule: choice.comparison.mean for choice in choices(cell)}
    single, unbiased = means.get(SINGLE_TEST), means.get(UNBIASED)
    return None if single is None or unbiased is None else single - unbiased


def few_shots_table(studies: Iterable[Cell]) -> str:
    """Markdown: for every study a row for each setting, and the four ways of choosing one."""
    tables = [_table(cell) for cell in studies]
    if not tables:
        return "There are no runs with different numbers of samples yet.\n"
    return "\n".join([*tables, LEGEND, _paper_in_words()])


def expected_best(average: float, spread: float, count: int) -> float:
    """Expected largest of ``count`` independent normal values with this mean and spread."""
    from scipy.stats import norm

    def density(x: float) -> float:
        return float(x * count * norm.cdf(x) ** (count - 1))

    return average + spread * float(norm.expect(density))


def published_few_shots() -> list[Published]:
    """Table 2 of the paper's appendix: CIFAR-10, ResNet20, random ERK at 95 %."""
    return [p for p in PUBLISHED if p.dataset == "cifar10" and p.variant == "official"]


def published_baseline() -> Published:
    """The run without the term that table 2 is set against."""
    return next(p for p in PUBLISHED if p.dataset == "cifar10" and p.beta == 0)


def beside_the_paper(cell: Cell) -> bool:
    """Whether table 2 may stand beside a cell: CIFAR-10 and ResNet20, at any sparsity."""
    return (cell.settings["dataset"], cell.settings["model"]) == ("cifar10", "resnet20")


def setting_label(arm: Arm) -> str:
    """Samples and interval of an arm in words: "8 samples every 5"."""
    return f"{arm.samples or 'all'} samples every {arm.every}"


def _complete_seeds(cell: Cell) -> list[int]:
    """Seeds whose baseline and every setting of the term are complete pairs."""
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
            lines.append(f"- {arm.label}: left out: {', '.join(lost)}")
    found = choices(cell)
    if not found:
        lines.append("- No setting is chosen: fewer than two seeds have every run.")
        return "\n".join(lines) + "\n"
    lines += [*markdown(CHOICE_COLUMNS, [_choice_row(choice) for choice in found]), ""]
    bias = selection_bias(cell)
    if bias is not None:
        count = len(settings_of_term(cell))
        lines.append(
            f"- Choosing the best of {count} single runs on the test set would claim "
            f"{100 * bias:+.2f} points more than the unbiased choice: the selection bias."
        )
    return "\n".join(lines) + "\n"


def _ordered(arms: Iterable[Arm]) -> list[Arm]:
    """The whole batch first, then by number of samples, interval and beta, as in the paper."""
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
        "; ".join(f"{setting_label(arm)}, beta {arm.beta:g}" for arm in choice.arms),
        str(comparison.n),
        points_text(comparison.mean),
        interval_text(comparison.t_interval),
        verdict_on(comparison, None) if choice.unbiased else "none: the runs were selected",
    )


def _published(arm: Arm) -> Published | None:
    """Entry of table 2 with the settings of this arm."""
    if arm == BASELINE:
        return published_baseline()
    for number in published_few_shots():
        same = (number.samples, number.every) == (arm.samples, arm.every)
        if same and number.beta and abs(number.beta / arm.beta - 1) < 1e-9:
            return number
    return None


def _paper_in_words() -> str:
    """Whether the best entry of table 2 is more than the best of so many equal ones."""
    reference = published_baseline().percent
    shown = [number.percent for number in published_few_shots()]
    kept = [value for value in shown if value > reference - 100 * COLLAPSE]
    average, spread, count = mean(kept), stdev(kept), len(kept)
    return (
        f"The paper's table 2 has {len(shown)} settings, of which {len(shown) - count} collapsed. "
        f"The other {count} have a mean of {average:.2f} % and a standard deviation of "
        f"{spread:.2f} points; the best of them, {max(kept):.2f} %, is compared with one run of "
        f"{reference:.2f} %. The best of {count} independent normal values with this mean and "
        f"spread is expected at {expected_best(average, spread, count):.2f} %: the best entry "
        "shows no setting that is better than the others.\n"
    )


def _percent_mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * mean(known):.2f}" if known else NOTHING
