"""Does the term lower the information about the input, and more than a placebo of equal gradient?

The results are those of ``ckasr.experiments.run_information``: bounds of I(X; T) per noisy layer.
For the first noisy layer the lower bound is I(X; T) itself, so the question is answered there; of
the last layer only the bounds are known.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from .cells import BASELINE, Arm, arm_of
from .statistics import Interval, t_interval
from .tables import interval_text, markdown, points_text
from .verdict import COLLAPSE, FEWEST_PAIRS

PLACEBO = "random_direction"
"""Term whose gradient has the norm of that of CKA-SR and a random direction."""
Result = Mapping[str, Any]

CRITERION = f"""\
The paper's mechanism (the term lowers the mutual information, and the accuracy rises because of \
it) would be supported if, for some beta, (1) the information of the first noisy layer falls: the \
95 % Student-t interval of the paired difference to the baseline lies below 0; (2) it falls more \
than with the placebo of equal gradient norm: the interval of the paired difference to the placebo \
of the same beta lies below 0; and (3) the accuracy does not fall: its paired interval is not \
below 0, and its mean falls by less than {100 * COLLAPSE:g} points. Less information in a network \
that has stopped working supports nothing."""


@dataclass(frozen=True)
class Effect:
    """Paired differences of one arm to the baseline, and to the placebo of the same beta.

    Args:
        sparsity: sparsity of the networks.
        arm: the arm.
        seeds: seeds that both sides have.
        first: differences of the information of the first noisy layer, in nats.
        last_lower, last_upper: differences of the bounds of the last noisy layer, in nats.
        accuracy: differences of the test accuracy, as fractions.
        against_placebo: differences of ``first`` to the placebo; empty if there is none.
    """

    sparsity: float
    arm: Arm
    seeds: tuple[int, ...]
    first: tuple[float, ...]
    last_lower: tuple[float, ...]
    last_upper: tuple[float, ...]
    accuracy: tuple[float, ...]
    against_placebo: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """Whether this arm supports the mechanism, by `CRITERION`, or why it does not."""
        if len(self.seeds) < FEWEST_PAIRS:
            return "undecided: too few pairs"
        if mean(self.accuracy) <= -COLLAPSE:
            return "not supported: the accuracy collapsed"
        if not _below(t_interval(self.first)):
            return "not supported: no fall of the information shown"
        if _below(t_interval(self.accuracy)):
            return "not supported: the accuracy falls as well"
        if self.arm.term == PLACEBO:
            return "a placebo: the information falls"
        if len(self.against_placebo) < FEWEST_PAIRS:
            return "undecided: no placebo to compare with"
        if not _below(t_interval(self.against_placebo)):
            return "not supported: no larger fall than with the placebo shown"
        return "supported here"


def information_effects(results: Iterable[Result]) -> list[Effect]:
    """Return the effect of every arm, by sparsity and then by arm.

    Only pairs with the same settings besides the term, on the same device and commit, count.
    """
    sides: dict[tuple[float, Arm], dict[int, Result]] = {}
    for result in results:
        settings = result["settings"]
        sides.setdefault((settings["sparsity"], arm_of(settings)), {})[settings["seed"]] = result
    found = []
    for (sparsity, arm), runs in sorted(sides.items()):
        baseline = sides.get((sparsity, BASELINE), {})
        if arm == BASELINE:
            continue
        pairs = _pairs(runs, baseline)
        placebo = sides.get((sparsity, arm._replace(term=PLACEBO)), {})
        beside = {} if arm.term == PLACEBO else _pairs(runs, placebo)
        found.append(
            Effect(
                sparsity,
                arm,
                tuple(pairs),
                _differences(pairs.values(), first_layer),
                _differences(pairs.values(), lambda run: run["lower"][-1][-1]),
                _differences(pairs.values(), lambda run: run["upper"][-1][-1]),
                _differences(pairs.values(), lambda run: run["test_accuracy"]),
                _differences(beside.values(), first_layer),
            )
        )
    return found


def first_layer(result: Result) -> float:
    """Information of the first noisy layer after the last measured epoch, in nats."""
    return result["lower"][-1][0]


def information_table(effects: Sequence[Effect]) -> str:
    """Return the effects as a Markdown table."""
    header = (
        "sparsity",
        "arm",
        "n pairs",
        "first layer, nats",
        "against the placebo, nats",
        "last layer: lower bound, nats",
        "upper bound, nats",
        "test accuracy, points",
        "the mechanism is",
    )
    rows = [
        (
            f"{100 * effect.sparsity:g} %",
            effect.arm.label,
            str(len(effect.seeds)),
            _nats(effect.first),
            _nats(effect.against_placebo),
            _nats(effect.last_lower),
            _nats(effect.last_upper),
            f"{points_text(mean(effect.accuracy))} {interval_text(t_interval(effect.accuracy))}"
            if effect.seeds
            else "-",
            effect.verdict,
        )
        for effect in effects
    ]
    return "\n".join(markdown(header, rows))


def _pairs(
    runs: Mapping[int, Result], others: Mapping[int, Result]
) -> dict[int, tuple[Result, Result]]:
    """Return by seed the results that were measured in the same way."""
    same = ("device", "commit", "epochs", "samples")
    return {
        seed: (runs[seed], others[seed])
        for seed in sorted(set(runs) & set(others))
        if all(runs[seed][name] == others[seed][name] for name in same)
    }


def _differences(pairs: Iterable[tuple[Result, Result]], value: Any) -> tuple[float, ...]:
    return tuple(value(treated) - value(baseline) for treated, baseline in pairs)


def _below(interval: Interval | None) -> bool:
    return interval is not None and interval[1] < 0


def _nats(differences: Sequence[float]) -> str:
    if not differences:
        return "-"
    interval = t_interval(differences)
    text = f"{mean(differences):+.2f}"
    return text if interval is None else f"{text} [{interval[0]:+.2f}, {interval[1]:+.2f}]"
