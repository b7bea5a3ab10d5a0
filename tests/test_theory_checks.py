"""Every check of the theory reaches its verdict, and loses it when a formula is wrong."""

from types import SimpleNamespace

import pytest
import torch
from theory_cases import CASES, Case

import theory
from theory.result import Result

FAST: dict[str, Result] = {}
each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def fast(case: Case) -> Result:
    """The result at small sizes, computed once in a session."""
    if case.name not in FAST:
        FAST[case.name] = theory.run(case.name, fast=True)
    return FAST[case.name]


def test_every_check_has_a_case():
    """`trained_networks` reads records and has tests of its own."""
    assert [case.name for case in CASES] == [n for n in theory.NAMES if n != "trained_networks"]


@each
def test_verdict(case):
    result = fast(case)
    assert (result.verdict, result.consequence) == (case.verdict, case.consequence), result.reason


@each
def test_figure_is_drawn_from_what_json_keeps(case):
    figure = theory.load(case.name).figure(Result.from_json(fast(case).to_json()))
    figure.draw_without_rendering()
    for axis in figure.axes:
        assert axis.has_data()
        assert axis.get_xlabel() or axis.get_title()


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        pytest.param(case.name, overrides, expected, id=f"{case.name}: {label}")
        for case in CASES
        for label, overrides, expected in case.wrong
    ],
)
def test_a_wrong_formula_changes_the_verdict(name, overrides, expected):
    result = theory.run(name, fast=True, **overrides)
    assert (result.verdict, result.consequence) == (expected, "open")
    assert result.failing


@pytest.mark.slow
@each
def test_full_size_reaches_the_same_verdict(case):
    result = theory.run(case.name)
    assert (result.verdict, result.consequence) == (case.verdict, case.consequence), result.reason


def test_denormal_numbers_are_zero_during_a_check_and_not_after_it(monkeypatch):
    """With them, networks that fit their data take 40 times as long on some processors."""
    result, small, seen = fast(CASES[0]), torch.tensor([1e-20]), []

    def check(**_: object) -> Result:
        seen.append((small * small).item())
        return result

    monkeypatch.setattr(theory, "load", lambda name: SimpleNamespace(check=check))
    theory.run(CASES[0].name)
    assert seen == [0.0]
    assert (small * small).item() > 0
