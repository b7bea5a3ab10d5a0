"""What a check returns: conditions with numbers in them, and the verdict that follows from them.

A theory module opens with a docstring of labelled paragraphs, the only place where its words live:

    Claim: what the paper says, and where.
    Statement: what is tested, precisely.
    Assumptions: under which it is tested.
    Proof: a few lines, where there is one.
    Verdict: the rule by which the conditions become a verdict.

Its `check` computes `Condition`s and hands them, with that docstring, to `judge`. A verdict is a
verdict on the *statement*; `bearing` says what the statement, once settled, means for the claim.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ckasr.analysis import holm

PROVED = "proved"
HOLDS = "holds numerically"
FALSE = "false (counterexample)"
INCONCLUSIVE = "inconclusive"
VERDICTS = (PROVED, HOLDS, FALSE, INCONCLUSIVE)

SUPPORTS, REFUTES, QUALIFIES, OPEN = "supports", "refutes", "qualifies", "open"
BEARINGS = (SUPPORTS, REFUTES, QUALIFIES, OPEN)

ALPHA = 1e-3
"""Family-wise error rate of the statistical tests of the whole suite."""


@dataclass(frozen=True)
class Condition:
    """One computed number against one bound. `p`: the number is a p-value (Holm corrects it).

    A p-value with relation "<=" is evidence that the verdict needs (a null that must be rejected),
    with ">=" a goodness of fit (a null that must survive). NaN satisfies nothing.
    `adjusted`: the p-value after correction over the suite; None before.
    """

    what: str
    value: float
    relation: str
    bound: float
    p: bool = False
    adjusted: float | None = None

    def __post_init__(self) -> None:
        if self.relation not in ("<=", ">="):
            raise ValueError(f"condition {self.what!r}: relation is <= or >=, not {self.relation}")
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "bound", float(self.bound))

    @property
    def holds(self) -> bool:
        """Correction only takes away: a fit that failed alone stays failed."""
        numbers = [self.value] if self.adjusted is None else [self.value, self.adjusted]
        if self.relation == "<=":
            return all(number <= self.bound for number in numbers)
        return all(number >= self.bound for number in numbers)

    def __str__(self) -> str:
        sign = self.relation if self.holds else f"not {self.relation}"
        number = self.value if self.adjusted is None else self.adjusted
        return f"{self.what}: {number:.3g} {sign} {self.bound:.3g}"


def at_most(what: str, value: ArrayLike, bound: float) -> Condition:
    """The number, or the largest of the numbers, is at most the bound (a NaN fails)."""
    return Condition(what, np.max(np.asarray(value)), "<=", bound)


def at_least(what: str, value: ArrayLike, bound: float) -> Condition:
    """The number, or the smallest of the numbers, is at least the bound (a NaN fails)."""
    return Condition(what, np.min(np.asarray(value)), ">=", bound)


def rejects(what: str, p_value: float, alpha: float = ALPHA) -> Condition:
    """A null hypothesis that has to be rejected for the verdict to stand."""
    return Condition(what, p_value, "<=", alpha, p=True)


def fits(what: str, p_value: float, alpha: float = ALPHA) -> Condition:
    """A null hypothesis (a law that is claimed) that must not be rejected."""
    return Condition(what, p_value, ">=", alpha, p=True)


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check; `verdict`, `reason` and `bearing` follow from the conditions.

    name: module; claim, statement, assumptions: from its docstring; computed: every condition;
    if_all_hold, otherwise: the verdicts (of VERDICTS) on the statement; finding: one line, the
    reason while all hold; on_claim: what an established statement says of the paper's claim (of
    BEARINGS); figure: plain lists and floats, all that `figure(verdict)` needs; seconds: wall time.
    """

    name: str
    claim: str
    statement: str
    assumptions: str
    computed: tuple[Condition, ...]
    if_all_hold: str
    finding: str
    on_claim: str
    otherwise: str = INCONCLUSIVE
    figure: Mapping[str, Any] = field(default_factory=dict)
    fast: bool = False
    seed: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if not self.computed:
            raise ValueError(f"{self.name}: a verdict without a condition was not computed")
        if not {self.if_all_hold, self.otherwise} <= set(VERDICTS):
            raise ValueError(f"{self.name}: a verdict is one of {', '.join(VERDICTS)}")
        if self.on_claim not in BEARINGS:
            raise ValueError(f"{self.name}: {self.on_claim!r} is not one of {', '.join(BEARINGS)}")
        if "\n" in self.finding:
            raise ValueError(f"{self.name}: the finding takes one line")

    @property
    def failing(self) -> list[Condition]:
        return [c for c in self.computed if not c.holds]

    @property
    def verdict(self) -> str:
        return self.otherwise if self.failing else self.if_all_hold

    @property
    def reason(self) -> str:
        return "; ".join(map(str, self.failing)) or self.finding

    @property
    def bearing(self) -> str:
        return OPEN if self.failing else self.on_claim

    @property
    def sentence(self) -> str:
        """The verdict in one sentence, for a reader."""
        verb = self.verdict if self.verdict == HOLDS else f"is {self.verdict}"
        bearing = "settles nothing" if self.failing else f"{self.bearing} the claim"
        return f"{self.name}: the statement {verb} and {bearing}: {self.reason}."

    @property
    def deciding(self) -> Condition:
        """The first condition that fails, or else the first."""
        return (self.failing or list(self.computed))[0]

    @property
    def statistic(self) -> float:
        return self.deciding.value

    @property
    def tolerance(self) -> float:
        return self.deciding.bound

    @property
    def p_value(self) -> float | None:
        """The largest p-value that must be small; None where nothing has to be rejected."""
        return max((c.value for c in self.computed if c.p and c.relation == "<="), default=None)

    def to_json(self) -> dict[str, Any]:
        """A dict that strict JSON takes: numbers that are not finite become null."""
        derived = ("verdict", "reason", "bearing", "statistic", "tolerance", "p_value")
        content = asdict(self) | {name: getattr(self, name) for name in derived}
        content["computed"] = [{**asdict(c), "holds": c.holds} for c in self.computed]
        return plain(content)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Verdict":
        """The verdict that `to_json` wrote (null numbers come back as NaN)."""
        known = {f.name: content[f.name] for f in fields(cls)}
        names = [f.name for f in fields(Condition)]
        rows = [{name: row[name] for name in names} for row in content["computed"]]
        nan = {"value": math.nan, "bound": math.nan}
        known["computed"] = tuple(
            Condition(**{k: nan.get(k) if v is None else v for k, v in row.items()}) for row in rows
        )
        return cls(**known)


def plain(value: Any) -> Any:
    """Arrays, tensors, tuples and numpy numbers as lists and Python numbers, for JSON."""
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
    raise TypeError(f"a verdict holds plain lists, numbers and text, not {type(value).__name__}")


def sections(doc: str) -> dict[str, str]:
    """The labelled paragraphs of a theory module's docstring, each on one line, lower-case keys."""
    pattern = re.compile(r"^(Claim|Statement|Assumptions|Proof|Verdict): ", re.MULTILINE)
    parts = pattern.split(doc)[1:]
    return {
        label.lower(): " ".join(text.split())
        for label, text in zip(parts[::2], parts[1::2], strict=True)
    }


def judge(
    name: str,
    doc: str,
    conditions: Sequence[Condition],
    *,
    verdict: str,
    reason: str,
    bearing: str,
    otherwise: str = INCONCLUSIVE,
    figure: Mapping[str, Any] | None = None,
) -> Verdict:
    """`verdict` if every condition holds, else `otherwise`, with the failing condition as reason.

    name, doc: the module's `__name__` and `__doc__`. `bearing` counts only when the verdict stands.
    """
    words = sections(doc)
    return Verdict(
        name=name.rpartition(".")[2],
        claim=words["claim"],
        statement=words["statement"],
        assumptions=words["assumptions"],
        computed=tuple(conditions),
        if_all_hold=verdict,
        otherwise=otherwise,
        finding=reason,
        on_claim=bearing,
        figure=plain(figure or {}),
    )


def corrected(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The suite with every p-value also adjusted by Holm; a verdict can only be taken back."""
    adjusted = iter(holm([c.value for v in verdicts for c in v.computed if c.p]))
    suite = []
    for v in verdicts:
        computed = tuple(replace(c, adjusted=next(adjusted)) if c.p else c for c in v.computed)
        suite.append(replace(v, computed=computed))
    return suite


def as_json(verdicts: Sequence[Verdict]) -> str:
    """The suite as strict JSON text."""
    return json.dumps([v.to_json() for v in verdicts], indent=1, allow_nan=False) + "\n"
