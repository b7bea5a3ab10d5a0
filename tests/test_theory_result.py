import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import theory
from ckasr.analysis import holm
from theory.result import (
    ALPHA,
    FALSE,
    INCONCLUSIVE,
    PROVED,
    Condition,
    Result,
    as_json,
    at_least,
    at_most,
    corrected,
    decisive,
    fits,
    judge,
    plain,
    rejects,
    sections,
)

DOC = """One line.

Claim: what the paper says
(its place).

Statement: what is tested.

Assumptions: none.

Verdict: the rule.
"""


def result(*conditions: Condition, **words: str) -> Result:
    settings = {"verdict": PROVED, "reason": "it holds", "consequence": "supports"} | words
    return judge("theory.toy", DOC, conditions, **settings)


def test_docstring_becomes_the_words_of_the_verdict():
    assert sections(DOC)["claim"] == "what the paper says (its place)."
    v = result(at_most("error", 1e-12, 1e-10))
    assert (v.name, v.statement, v.assumptions) == ("toy", "what is tested.", "none.")
    assert (v.verdict, v.reason, v.consequence) == (PROVED, "it holds", "supports")
    assert v.sentence == "toy: the statement is proved and supports the claim: it holds."


@pytest.mark.parametrize("value", [2.0, math.inf, math.nan])
def test_one_failing_condition_changes_the_verdict_and_is_named(value):
    first, second = at_most("first", 0, 1), at_most("second", value, 1)
    for failing, expected in ((second, INCONCLUSIVE), (*decisive([second]), FALSE)):
        v = result(first, failing)
        assert (v.verdict, v.consequence) == (expected, "open")
        assert v.reason.startswith("second:")


def test_a_failure_is_a_counterexample_only_where_its_condition_is_decisive():
    good, bad = at_least("x", 1, 1), at_least("y", 0, 1)
    assert result(*decisive([good]), bad).verdict == INCONCLUSIVE
    assert result(good, *decisive([bad])).verdict == FALSE


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_raw_and_bonferroni_and_keeps_the_order(p):
    adjusted = holm(p)
    for raw, new in zip(p, adjusted, strict=True):
        assert raw <= new <= min(1.0, len(p) * raw) + 1e-15
    assert [a for _, a in sorted(zip(p, adjusted, strict=True))] == sorted(adjusted)


def test_correction_can_withdraw_a_rejection_and_never_adds_one():
    weak = result(rejects("p", 0.6 * ALPHA))
    suite = corrected([weak, weak])
    assert weak.verdict == PROVED
    assert [v.verdict for v in suite] == [INCONCLUSIVE] * 2
    misfit = result(fits("fit", 0.6 * ALPHA))
    assert [v.verdict for v in corrected([misfit, misfit])] == [INCONCLUSIVE] * 2
    assert corrected(suite) == suite


def test_json_is_strict_and_can_be_read_back():
    v = result(at_most("a", math.nan, 1), rejects("p", 1e-5))
    text = as_json(corrected([v]))
    assert "NaN" not in text
    (content,) = json.loads(text)
    assert content["verdict"] == INCONCLUSIVE
    assert content["established"]["verdict"] == PROVED
    back = Result.from_json(content)
    assert (back.outcome, back.established) == (v.outcome, v.established)
    assert math.isnan(back.conditions[0].value)


def test_plain_refuses_values_that_json_cannot_represent():
    with pytest.raises(TypeError, match="object"):
        plain({"x": object()})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"verdict": "true"}, "'true' is not a verdict"),
        ({"consequence": "yes"}, "'yes' is not a consequence"),
        ({"reason": "two\nlines"}, "one line"),
    ],
)
def test_words_outside_the_vocabulary_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        result(at_most("a", 0, 1), **words)


def test_a_result_needs_a_condition():
    with pytest.raises(ValueError, match="not computed"):
        result()


def test_unknown_name_gets_the_nearest():
    with pytest.raises(LookupError, match="nearest: zero_set"):
        theory.load("zeroset")
