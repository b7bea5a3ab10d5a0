"""What a comparison shows: the decision rule of results/PLAN.md, which reads the interval."""

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
"""Loss of accuracy that counts as a collapse: far more than any effect that the paper reports."""

RULE = f"""\
The verdict follows from the 95 % interval. If the paper has a gain for the cell and the schedule \
is full (160 epochs or more), it is *{REPRODUCED}* if the interval is above 0 and reaches the \
paper's gain; *{SMALLER}* if it is above 0 and below that gain; *{NOT_REPRODUCED}* if it is not \
above 0 and excludes the gain; *{UNDECIDED}* if it contains both. Otherwise it is *positive*, \
*negative*, or *no difference shown*. It is always *{UNDECIDED}* with fewer than {FEWEST_PAIRS} \
pairs, without an interval, or if more than one pair in five diverged."""


def verdict_of(comparison: Comparison) -> str:
    """The verdict of `RULE` on a comparison of test accuracies."""
    return verdict_on(comparison, paper_difference(comparison.cell.settings, comparison.arm))


def verdict_on(comparison: Comparison, gain: float | None) -> str:
    """The verdict of `RULE`.

    Args:
        comparison: the comparison to judge.
        gain: the paper's gain as a fraction; None: it has none.
    """
    interval = usable_interval(comparison)
    if interval is None:
        return UNDECIDED
    low, high = interval
    # Short schedules do not test the claim, which is about converged networks.
    if gain is None or gain <= 0 or comparison.cell.settings["schedule"] != "full":
        return "positive" if low > 0 else "negative" if high < 0 else "no difference shown"
    if low > 0:
        return REPRODUCED if high >= gain else SMALLER
    return UNDECIDED if high >= gain else NOT_REPRODUCED


def verdict_on_claim(comparison: Comparison, claim: Claim) -> str:
    """The verdict of `RULE` on a claim of the paper, or why the comparison does not test it."""
    settings = comparison.cell.settings
    if settings["dataset"] != claim.dataset:
        return f"not tested: claimed on {claim.dataset}"
    if settings["schedule"] != "full":
        return "not tested: short schedule"
    return verdict_on(comparison, claim.gain)


def difference_shown(comparison: Comparison) -> bool:
    """Whether the verdict, without a gain of the paper's, is positive or negative."""
    return verdict_on(comparison, None) in ("positive", "negative")


def place(gain: float, interval: Interval) -> str:
    """The place of a published gain: "inside" our interval, "above" or "below" it."""
    low, high = interval
    return "above" if gain > high else "below" if gain < low else "inside"


def usable_interval(comparison: Comparison) -> Interval | None:
    """The interval that a verdict reads.

    None if nothing can be said: too few pairs, no interval, or too many diverged pairs.
    """
    lost = len(comparison.diverged)
    too_many_lost = lost > MOST_DIVERGED * (comparison.n + lost)
    return None if comparison.n < FEWEST_PAIRS or too_many_lost else comparison.t_interval


def similarity_verdict(
    similarity: tuple[float, float], accuracy: tuple[float, float], classes: int
) -> str:
    """Whether the term lowered the similarity of the layers of a network that still works.

    It does not hold if the accuracy fell by more than `COLLAPSE` or if a number is NaN: how similar
    the layers of a broken network are means nothing. It is not tested if the network without the
    term is at chance, with an accuracy below 2 / ``classes``.

    Args:
        similarity: mean CKA between layers without and with the term.
        accuracy: accuracy without and with the term, as fractions.
        classes: number of classes.
    """
    if not accuracy[0] >= 2 / classes:
        return "not tested: the network without the term is at chance"
    if not accuracy[1] >= accuracy[0] - COLLAPSE:
        return "does not hold here: accuracy collapsed"
    return "holds here" if similarity[1] < similarity[0] else "does not hold here"


def learned(runs: Iterable[Record]) -> bool:
    """Whether the mean test accuracy of the finished runs is 2 / classes or more, above chance."""
    finished = [run for run in runs if run["status"] == "finished"]
    if not finished:
        return False
    classes = max(run["sparsity"]["classes"] for run in finished)
    return mean(value_of(run) for run in finished) >= 2 / classes
