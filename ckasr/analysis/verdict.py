"""The decision rule of results/PLAN.md, which gives the verdict on a comparison."""

from collections.abc import Iterable
from statistics import mean

from .cells import Record
from .paper import Claim, paper_difference
from .statistics import Comparison, Interval, value_of

FEWEST_PAIRS = 3
MOST_DIVERGED = 1 / 5  # Fraction of the pairs.
REPRODUCED = "reproduced"
SMALLER = "positive, smaller than the paper's"
NOT_REPRODUCED = "not reproduced"
UNDECIDED = "undecided"
COLLAPSE = 0.05
"""Loss of accuracy that counts as a collapse, which exceeds all effects in the paper by far."""

RULE = f"""\
The verdict follows from the 95 % interval. If the paper has a gain for the cell and the schedule \
is full (160 epochs or more), the verdict is *{REPRODUCED}* if the interval lies above 0 and its \
upper end is at least the paper's gain; *{SMALLER}* if the interval lies above 0 and below that \
gain; *{NOT_REPRODUCED}* if the interval includes values of 0 or less and lies below that gain; \
and *{UNDECIDED}* if it contains both 0 and that gain. In all other cases the verdict is \
*positive* if the interval lies above 0, *negative* if it lies below 0, and otherwise *no \
difference shown*. It is always *{UNDECIDED}* with fewer than {FEWEST_PAIRS} pairs, without an \
interval, or if a run diverged in more than one fifth of the pairs."""


def verdict_of(comparison: Comparison) -> str:
    """Return the verdict of `RULE` on a comparison of test accuracies.

    Args:
        comparison: the comparison. The gain of the paper is that of its cell and arm.
    """
    return verdict_on(comparison, paper_difference(comparison.cell.settings, comparison.arm))


def verdict_on(comparison: Comparison, gain: float | None) -> str:
    """Return the verdict of `RULE` for a given gain of the paper.

    Args:
        comparison: the comparison to judge.
        gain: the paper's gain as a fraction of 1, or None if there is none.
    """
    interval = usable_interval(comparison)
    if interval is None:
        return UNDECIDED
    low, high = interval
    # Short schedules do not test the claim, because it is about converged networks.
    if gain is None or gain <= 0 or comparison.cell.settings["schedule"] != "full":
        return "positive" if low > 0 else "negative" if high < 0 else "no difference shown"
    if low > 0:
        return REPRODUCED if high >= gain else SMALLER
    return UNDECIDED if high >= gain else NOT_REPRODUCED


def verdict_on_claim(comparison: Comparison, claim: Claim) -> str:
    """Return the verdict of `RULE` on a claim, or why the comparison does not test the claim."""
    settings = comparison.cell.settings
    if settings["dataset"] != claim.dataset:
        return f"not tested: claimed on {claim.dataset}"
    if settings["schedule"] != "full":
        return "not tested: short schedule"
    return verdict_on(comparison, claim.gain)


def difference_shown(comparison: Comparison) -> bool:
    """Return whether the verdict without a gain of the paper is positive or negative."""
    return verdict_on(comparison, None) in ("positive", "negative")


def place(gain: float, interval: Interval) -> str:
    """Return whether a published gain is "inside", "above" or "below" our interval."""
    low, high = interval
    return "above" if gain > high else "below" if gain < low else "inside"


def usable_interval(comparison: Comparison) -> Interval | None:
    """Return the interval on which a verdict is based.

    It is None if there are too few pairs, no interval, or too many diverged pairs.

    Args:
        comparison: the comparison.
    """
    lost = len(comparison.diverged)
    too_many_lost = lost > MOST_DIVERGED * (comparison.n + lost)
    return None if comparison.n < FEWEST_PAIRS or too_many_lost else comparison.t_interval


def similarity_verdict(
    similarity: tuple[float, float], accuracy: tuple[float, float], classes: int
) -> str:
    """Return the verdict on the claim that the term lowers the similarity of layers.

    The claim does not hold if the accuracy decreases by more than `COLLAPSE` or if a value is NaN,
    because the similarity of layers has no meaning for a network that failed. The claim is not
    tested if the accuracy without the term is at chance, that is, below 2 / ``classes``.

    Args:
        similarity: mean CKA between layers without and with the term.
        accuracy: accuracy without and with the term, as fractions of 1.
        classes: number of classes.
    """
    if not accuracy[0] >= 2 / classes:
        return "not tested: the network without the term is at chance"
    if not accuracy[1] >= accuracy[0] - COLLAPSE:
        return "does not hold here: accuracy collapsed"
    return "holds here" if similarity[1] < similarity[0] else "does not hold here"


def learned(runs: Iterable[Record]) -> bool:
    """Return whether the mean test accuracy of the finished runs is at least 2 / classes.

    Args:
        runs: the records of runs.
    """
    finished = [run for run in runs if run["status"] == "finished"]
    if not finished:
        return False
    classes = max(run["sparsity"]["classes"] for run in finished)
    return mean(value_of(run) for run in finished) >= 2 / classes
