"""The result of a check: computed conditions, and the outcome that follows from them.

The docstring of a check's module has labelled paragraphs, which are the only source of its texts:

    Claim: what the paper says, and where.
    Statement: what is tested.
    Assumptions: the assumptions of the test.
    Proof: a proof in a few lines, if there is one.
    Verdict: the rule that turns the conditions into a verdict.

The function `check` of the module computes `Condition`s and passes them, with this docstring, to
`judge`. An outcome has three parts: the `verdict` on the statement, the `consequence` for the
paper's claim, and the `reason`.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from ckasr.analysis import holm

Word = Literal["proved", "holds numerically", "false (counterexample)", "inconclusive"]
VERDICTS = PROVED, HOLDS, FALSE, INCONCLUSIVE = get_args(Word)
"""Possible verdicts on a statement."""

Consequence = Literal["supports", "refutes", "qualifies", "open"]
CONSEQUENCES = SUPPORTS, REFUTES, QUALIFIES, OPEN = get_args(Consequence)
"""Possible consequences for the paper's claim; "open" if the verdict is not established."""

ALPHA = 1e-3
"""Family-wise error rate of the statistical tests of all checks together."""


@dataclass(frozen=True)
class Condition:
    """One computed number and the bound that it must satisfy. NaN satisfies no bound.

    Args:
        what: name of the number.
        value: the number.
        relation: ``"<="`` or ``">="``.
        bound: the bound.
        p: whether the number is a p-value. With the relation ``"<="`` the null hypothesis must be
            rejected; with ``">="`` it must not be rejected.
        decisive: whether a failure makes the statement false. Otherwise a failure makes it
            inconclusive.
        adjusted: p-value after Holm's correction over all checks; None before the correction.

    Raises:
        ValueError: if the relation is not one of the two.
    """

    what: str
    value: float
    relation: str
    bound: float
    p: bool = False
    decisive: bool = False
    adjusted: float | None = None

    def __post_init__(self) -> None:
        if self.relation not in ("<=", ">="):
            raise ValueError(f"condition {self.what!r}: relation is <= or >=, not {self.relation}")
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "bound", float(self.bound))

    @property
    def holds(self) -> bool:
        """Whether the number, and the adjusted p-value if there is one, satisfy the bound.

        Holm's correction can therefore make a condition fail, but cannot make it hold.
        """
        numbers = [self.value] if self.adjusted is None else [self.value, self.adjusted]
        if self.relation == "<=":
            return all(number <= self.bound for number in numbers)
        return all(number >= self.bound for number in numbers)

    def __str__(self) -> str:
        sign = self.relation if self.holds else f"not {self.relation}"
        number = self.value if self.adjusted is None else self.adjusted
        return f"{self.what}: {number:.3g} {sign} {self.bound:.3g}"


def at_most(what: str, value: ArrayLike, bound: float) -> Condition:
    """The condition that a number, or the largest of several, is at most the bound."""
    return Condition(what, np.max(np.asarray(value)), "<=", bound)


def at_least(what: str, value: ArrayLike, bound: float) -> Condition:
    """The condition that a number, or the smallest of several, is at least the bound."""
    return Condition(what, np.min(np.asarray(value)), ">=", bound)


def rejects(what: str, p_value: float, alpha: float = ALPHA) -> Condition:
    """The condition that a null hypothesis is rejected at level ``alpha``."""
    return Condition(what, p_value, "<=", alpha, p=True)


def fits(what: str, p_value: float, alpha: float = ALPHA) -> Condition:
    """The condition that a null hypothesis, a claimed distribution, is not rejected."""
    return Condition(what, p_value, ">=", alpha, p=True)


def decisive(conditions: Iterable[Condition]) -> list[Condition]:
    """The same conditions, each marked as one whose failure makes the statement false."""
    return [replace(condition, decisive=True) for condition in conditions]


@dataclass(frozen=True)
class Outcome:
    """Verdict, consequence and reason.

    Args:
        verdict: verdict on the statement, one of `VERDICTS`.
        consequence: consequence for the paper's claim, one of `CONSEQUENCES`.
        reason: explanation in one line.

    Raises:
        ValueError: if the verdict or the consequence is unknown, or the reason has several lines.
    """

    verdict: str
    consequence: str
    reason: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"{self.verdict!r} is not a verdict: {', '.join(VERDICTS)}")
        if self.consequence not in CONSEQUENCES:
            raise ValueError(
                f"{self.consequence!r} is not a consequence: {', '.join(CONSEQUENCES)}"
            )
        if "\n" in self.reason:
            raise ValueError(f"a reason must have one line, got {self.reason!r}")


@dataclass(frozen=True)
class Result:
    """The conditions of one check, and the outcome that follows from them.

    Args:
        name: name of the theory module.
        claim, statement, assumptions: paragraphs of its docstring.
        conditions: every condition, at least one.
        established: outcome if all conditions hold.
        figure: data of the figure, as plain lists and numbers.
        fast: whether the check ran with small sizes.
        seed: seed of the random numbers.
        seconds: wall time in seconds.

    Raises:
        ValueError: if there is no condition.
    """

    name: str
    claim: str
    statement: str
    assumptions: str
    conditions: tuple[Condition, ...]
    established: Outcome
    figure: Mapping[str, Any] = field(default_factory=dict)
    fast: bool = False
    seed: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if not self.conditions:
            raise ValueError(f"{self.name}: a result without a condition was not computed")

    @property
    def failing(self) -> list[Condition]:
        """The conditions that do not hold."""
        return [condition for condition in self.conditions if not condition.holds]

    @property
    def outcome(self) -> Outcome:
        """`established` if all conditions hold. Otherwise the consequence is "open".

        The reason then lists the conditions that fail.
        """
        if not self.failing:
            return self.established
        verdict = FALSE if any(condition.decisive for condition in self.failing) else INCONCLUSIVE
        return Outcome(verdict, OPEN, "; ".join(map(str, self.failing)))

    @property
    def verdict(self) -> str:
        return self.outcome.verdict

    @property
    def consequence(self) -> str:
        return self.outcome.consequence

    @property
    def reason(self) -> str:
        return self.outcome.reason

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        verb = self.verdict if self.verdict == HOLDS else f"is {self.verdict}"
        means = "leaves the claim open" if self.failing else f"{self.consequence} the claim"
        return f"{self.name}: the statement {verb} and {means}: {self.reason}."

    def to_json(self) -> dict[str, Any]:
        """The result as a dict for strict JSON. Numbers that are not finite become None."""
        content = asdict(self) | asdict(self.outcome)
        content["conditions"] = [asdict(c) | {"holds": c.holds} for c in self.conditions]
        return plain(content)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Result":
        """The result from the dict of `to_json`. Values and bounds that are None become NaN."""
        known = {f.name: content[f.name] for f in fields(cls)}
        names = [f.name for f in fields(Condition)]
        rows = [{name: row[name] for name in names} for row in content["conditions"]]
        nan = {"value": math.nan, "bound": math.nan}
        known["conditions"] = tuple(
            Condition(**{k: nan.get(k) if v is None else v for k, v in row.items()}) for row in rows
        )
        known["established"] = Outcome(**content["established"])
        return cls(**known)


def plain(value: Any) -> Any:
    """Convert arrays, tensors, tuples and NumPy numbers to lists and Python numbers, for JSON.

    Raises:
        TypeError: if the value cannot be converted.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a result holds plain lists, numbers and text, not {type(value).__name__}")


def sections(doc: str) -> dict[str, str]:
    """The labelled paragraphs of the docstring of a check's module, each on one line.

    The keys are the labels in lower case.
    """
    pattern = re.compile(r"^(Claim|Statement|Assumptions|Proof|Verdict): ", re.MULTILINE)
    parts = pattern.split(doc)[1:]
    return {
        label.lower(): " ".join(text.split())
        for label, text in zip(parts[::2], parts[1::2], strict=True)
    }


def judge(
    name: str,
    doc: str | None,
    conditions: Iterable[Condition],
    *,
    verdict: str,
    consequence: str,
    reason: str,
    figure: Mapping[str, Any] | None = None,
) -> Result:
    """Make the result of a check.

    Args:
        name: ``__name__`` of the check's module.
        doc: docstring of the module.
        conditions: all computed conditions.
        verdict, consequence, reason: outcome if all conditions hold.
        figure: data of the figure.

    Raises:
        KeyError: if the docstring has no claim, statement or assumptions.
    """
    words = sections(doc or "")
    return Result(
        name=name.rpartition(".")[2],
        claim=words["claim"],
        statement=words["statement"],
        assumptions=words["assumptions"],
        conditions=tuple(conditions),
        established=Outcome(verdict, consequence, reason),
        figure=plain(figure or {}),
    )


def corrected(results: Sequence[Result]) -> list[Result]:
    """The results with all their p-values adjusted together by Holm's method.

    The adjustment can make a condition fail, but cannot make it hold.
    """
    adjusted = iter(holm([c.value for r in results for c in r.conditions if c.p]))
    suite = []
    for result in results:
        conditions = tuple(
            replace(c, adjusted=next(adjusted)) if c.p else c for c in result.conditions
        )
        suite.append(replace(result, conditions=conditions))
    return suite


def as_json(results: Sequence[Result]) -> str:
    """The results as strict JSON text."""
    return json.dumps([r.to_json() for r in results], indent=1, allow_nan=False) + "\n"
