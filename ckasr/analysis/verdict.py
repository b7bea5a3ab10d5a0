"""What a comparison shows, by the decision rule of results/PLAN.md: the interval decides."""

from collections.abc import Iterable
from statistics import mean

from .cells import Record
from .paper import Claim, paper_difference
from .statistics import Comparison, Interval, value_of

FEWEST_PAIRS = 3
MOST_DIVERGED = 1 / 5  # of the pairs
REPRODUCED = "reproduced"
SMALLER = "positive, smaller than the paper's"
NOT_REPRODUCED = "not reproduced"
UNDECIDED = "undecided"
COLLAPSE = 0.05
"""Accuracy whose loss is a collapse: far more than any effect that the paper reports."""

RULE = f"""\
Verdict, by the t interval. Where the paper has a gain for the cell and the schedule is full: \
*{REPRODUCED}* if the interval is above 0 and reaches the paper's gain; *{SMALLER}* if it is above \
0 and below that gain; *{NOT_REPRODUCED}* if it is not above 0 and excludes the gain; \
*{UNDECIDED}* if it holds both. Elsewhere: *positive*, *negative*, or *no difference shown*. \
Always *{UNDECIDED}* with fewer than {FEWEST_PAIRS} pairs, without an interval, or where more than \
one pair in five diverged."""


def verdict(comparison: Comparison) -> str:
    """The word of `RULE` for a comparison of test accuracies."""
    return verdict_on(comparison, paper_difference(comparison.cell.settings, comparison.arm))


def verdict_on(comparison: Comparison, gain: float | None) -> str:
    """The word of `RULE` with this gain, a fraction of 1, as the paper's; None: it has none."""
    if too_little(comparison):
        return UNDECIDED
    low, high = comparison.t_interval
    # Short schedules do not test the claim, which is about converged networks.
    if gain is None or gain <= 0 or comparison.cell.settings["schedule"] != "full":
        return "positive" if low > 0 else "negative" if high < 0 else "no difference shown"
    if low > 0:
        return REPRODUCED if high >= gain else SMALLER
    return UNDECIDED if high >= gain else NOT_REPRODUCED


def verdict_on_claim(comparison: Comparison, claim: Claim) -> str:
    """The word of `RULE` for a claim of the paper, or why this comparison does not test it."""
    settings = comparison.cell.settings
    if settings["dataset"] != claim.dataset:
        return f"not tested: claimed on {claim.dataset}"
    if settings["schedule"] != "full":
        return "not tested: short schedule"
    return verdict_on(comparison, claim.gain)


def difference_shown(comparison: Comparison) -> bool:
    """Whether the rule without a gain of the paper's says positive or negative."""
    return verdict_on(comparison, None) in ("positive", "negative")


def place(gain: float, interval: Interval) -> str:
    """Where a published gain lies: inside our interval, above or below it."""
    low, high = interval
    return "above" if gain > high else "below" if gain < low else "inside"


def too_little(comparison: Comparison) -> bool:
    """Whether nothing can be said: too few pairs, no interval, or too many that diverged."""
    lost = len(comparison.diverged)
    return (
        comparison.t_interval is None
        or comparison.n < FEWEST_PAIRS
        or lost > MOST_DIVERGED * (comparison.n + lost)
    )


def similarity_verdict(
    similarity: tuple[float, float], accuracy: tuple[float, float], classes: int
) -> str:
    """Whether the term lowered the similarity of layers in a network that still works.

    similarity, accuracy: without and with the term. It does not hold where the term cost more than
    `COLLAPSE` of accuracy, where the network without it is at chance (below 2 / ``classes``), or
    where a number is NaN: layers of a broken network may be as different as they like.
    """
    if not accuracy[0] >= 2 / classes:
        return "not tested: the network without the term is at chance"
    if not accuracy[1] >= accuracy[0] - COLLAPSE:
        return "does not hold here: accuracy collapsed"
    return "holds here" if similarity[1] < similarity[0] else "does not hold here"


def learned(runs: Iterable[Record]) -> bool:
    """Whether the mean test accuracy of the finished runs is above chance: 2 / classes or more."""
    finished = [run for run in runs if run["status"] == "finished"]
    if not finished:
        return False
    classes = max(run["sparsity"]["classes"] for run in finished)
    return mean(value_of(run) for run in finished) >= 2 / classes
