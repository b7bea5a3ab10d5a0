"""Test whether the term lowers the information about the input more than a placebo does.

The gradient of the placebo has a random direction and the same norm as that of the term. The
results are those of ``ckasr.experiments.run_information``, which contain bounds of I(X; T) per
noisy layer. For the first noisy layer the lower bound is I(X; T) itself, so the test uses this
layer. For the last layer only the bounds are known.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from .cells import BASELINE, Arm, arm_of
from .statistics import Interval, t_interval
from .tables import PAIRS, interval_text, markdown, points_text
from .verdict import COLLAPSE, FEWEST_PAIRS

PLACEBO = "random_direction"
"""Name of the term whose gradient has a random direction and the norm of that of CKA-SR."""
Result = Mapping[str, Any]

CRITERION = f"""\
The paper's mechanism (the term decreases the mutual information, and this increases the \
accuracy) would be supported if the following holds for some beta. (1) The information of the \
first noisy layer decreases: the 95 % Student-t interval of the paired difference to the baseline \
lies below 0. (2) It decreases more than with the placebo of equal gradient norm: the interval of \
the paired difference to the placebo of the same beta lies below 0. (3) The accuracy does not \
decrease: its paired interval does not lie below 0, and its mean decreases by less than \
{100 * COLLAPSE:g} points. A decrease of the information in a network whose accuracy collapsed \
does not support the mechanism."""


@dataclass(frozen=True)
class Effect:
    """Paired differences of one arm from the baseline, and from the placebo of the same beta.

    Args:
        sparsity: sparsity of the networks, a fraction of 1.
        arm: the arm.
        seeds: seeds for which both runs exist.
        first: differences of the information of the first noisy layer, in nats.
        last_lower, last_upper: differences of the bounds of the last noisy layer, in nats.
        accuracy: differences of the test accuracy, as fractions of 1.
        against_placebo: differences of the information of the first noisy layer from the placebo,
            in nats. It is empty if there is no placebo.
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
        """Whether the arm supports the mechanism according to `CRITERION`, or why it does not."""
        if len(self.seeds) < FEWEST_PAIRS:
            return "undecided: too few pairs"
        if mean(self.accuracy) <= -COLLAPSE:
            return "not supported: the accuracy collapsed"
        if not _below(t_interval(self.first)):
            return "not supported: no decrease of the information shown"
        if _below(t_interval(self.accuracy)):
            return "not supported: the accuracy decreases as well"
        if self.arm.term == PLACEBO:
            return "a placebo: the information decreases"
        if len(self.against_placebo) < FEWEST_PAIRS:
            return "undecided: no placebo to compare with"
        if not _below(t_interval(self.against_placebo)):
            return "not supported: no larger decrease than with the placebo shown"
        return "supported here"


def information_effects(results: Iterable[Result]) -> list[Effect]:
    """Return the effect of every arm, ordered by sparsity and then by arm.

    A pair counts only if both runs have the same device, commit and settings except for the term.

    Args:
        results: results of ``run_information``.
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
    """Return the information of the first noisy layer after the last measured epoch, in nats."""
    return result["lower"][-1][0]


def information_table(effects: Sequence[Effect]) -> str:
    """Return the effects as a Markdown table.

    Args:
        effects: the effects, from `information_effects`.
    """
    header = (
        "sparsity",
        "arm",
        PAIRS,
        "first noisy layer, nats",
        "difference to the placebo, nats",
        "last noisy layer: lower bound, nats",
        "upper bound, nats",
        "test accuracy, points",
        "verdict on the mechanism",
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
    """Return, for each seed, the pair of results if both were measured in the same way."""
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
