"""Checks 1 to 8: each reaches its verdict, and each loses it when a formula is wrong."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

import theory
from ckasr.cka import hsic, linear_cka
from theory import deterministic_mi, estimators, multilayer_sum
from theory import gaussian as g
from theory.order_equivalence import bijections
from theory.scale_invariance import cka_1
from theory.verdict import FALSE, INCONCLUSIVE, PROVED, Verdict
from theory.zero_set import noisy_information

EXPECTED = {
    "estimators": (PROVED, "qualifies"),
    "zero_set": (PROVED, "qualifies"),
    "one_sided_bound": (PROVED, "qualifies"),
    "order_equivalence": (FALSE, "refutes"),
    "deterministic_mi": (PROVED, "refutes"),
    "noisy_gradient_flow": (PROVED, "qualifies"),
    "multilayer_sum": (FALSE, "refutes"),
    "scale_invariance": (PROVED, "refutes"),
}


def bound_as_similarity(cross, s_x, s_y):
    """A similarity that is a monotone function of I: the equivalence the paper wants."""
    return -torch.expm1(-2 * g.information(cross, s_x, s_y))


def information_for_cka(*net):
    """Two layers whose CKA has been replaced by their I, pair by pair."""
    _, nats = multilayer_sum.pair_values(*net)
    return nats, nats


def numerator_only(x, y):
    """HSIC_1: the step of the appendix that drops the denominator of CKA."""
    return hsic(x @ x.mT, y @ y.mT)


def ordered_pairs(features):
    return 2 * estimators.sum_over_pairs(features)


def power_for_amplitude(w, s, noise):
    return deterministic_mi.noisy_information(w, s, noise**0.5)


WRONG: dict[str, list[tuple[str, dict[str, Callable], str]]] = {
    "estimators": [
        ("biased", {"estimator": lambda K, L: hsic(K, L, "biased")}, FALSE),
        ("ordered pairs", {"pair_sum": ordered_pairs}, FALSE),
        ("nan", {"estimator": lambda K, L: hsic(K, L) * float("nan")}, FALSE),
    ],
    "zero_set": [
        ("linear link", {"link": lambda x: x}, INCONCLUSIVE),
        ("I without its half", {"information": lambda *m: 2 * g.information(*m)}, INCONCLUSIVE),
        ("CKA as a root", {"cka": lambda *m: g.cka(*m).sqrt()}, INCONCLUSIVE),
    ],
    "one_sided_bound": [
        ("no half", {"bound": lambda c: -torch.log1p(-c)}, FALSE),
        ("too weak to be tight", {"bound": lambda c: -0.4 * torch.log1p(-c)}, FALSE),
        ("no squares", {"bounded": lambda h, a, b: 20 * h.sqrt() / (a * b)}, FALSE),
    ],
    "order_equivalence": [
        ("CKA that orders as I", {"cka": bound_as_similarity}, INCONCLUSIVE),
        ("I that orders as CKA", {"information": g.cka}, INCONCLUSIVE),
    ],
    "deterministic_mi": [
        ("power for amplitude", {"information": power_for_amplitude}, FALSE),
        ("bits", {"entropy": lambda y: np.log2(len(y))}, FALSE),
    ],
    "noisy_gradient_flow": [
        ("ascent", {"similarity": lambda *m: -g.layer_cka(*m)}, FALSE),
        ("rate without noise", {"rate": lambda w, s, r: -4 * g.layer_cka(w, s, r)}, FALSE),
        ("no product", {"inner": lambda *m: 0 * g.layer_cka(*m)}, FALSE),
    ],
    "multilayer_sum": [("I in place of CKA", {"values": information_for_cka}, INCONCLUSIVE)],
    "scale_invariance": [
        ("numerator only", {"similarity": numerator_only}, FALSE),
        ("growth by eta", {"growth": lambda rate, squares: rate * squares.sum()}, FALSE),
        ("equilibrium without 2", {"settled": lambda e, b, d, q: (e * b**2 * q / d) ** 0.5}, FALSE),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    return {name: theory.run(name, fast=True) for name in EXPECTED}


@pytest.mark.parametrize("name", EXPECTED)
def test_verdict(name, verdicts):
    v = verdicts[name]
    assert (v.verdict, v.bearing) == EXPECTED[name], v.reason


@pytest.mark.parametrize("name", EXPECTED)
def test_figure_is_drawn_from_what_json_keeps(name, verdicts, tmp_path):
    stored = Verdict.from_json(verdicts[name].to_json())
    theory.load(name).figure(stored).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        pytest.param(name, overrides, expected, id=f"{name}: {label}")
        for name, cases in WRONG.items()
        for label, overrides, expected in cases
    ],
)
def test_a_wrong_formula_changes_the_verdict(name, overrides, expected):
    v = theory.run(name, fast=True, **overrides)
    assert (v.verdict, v.bearing) == (expected, "open")
    assert v.failing


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_full_size_reaches_the_same_verdict(name):
    v = theory.run(name, fast=False)
    assert (v.verdict, v.bearing) == EXPECTED[name], v.reason


def test_gaussian_information_is_the_log_ratio_of_determinants():
    rng = g.generator(1)
    joint = g.covariance(50, size=7, rng=rng)
    parts = joint[:, :3, 3:], joint[:, :3, :3], joint[:, 3:, 3:]
    logs = [torch.logdet(s) for s in (parts[1], parts[2], joint)]
    expected = 0.5 * (logs[0] + logs[1] - logs[2])
    torch.testing.assert_close(g.information(*parts), expected, rtol=1e-10, atol=1e-12)


def test_layer_formulas_agree_with_those_of_any_gaussian_pair():
    rng = g.generator(2)
    w, s = g.normal(20, 3, 4, rng=rng), g.covariance(20, size=4, rng=rng)
    r = g.covariance(20, size=3, rng=rng)
    moments = g.moments(w, s, r)
    torch.testing.assert_close(g.layer_information(w, s, r), g.information(*moments))
    torch.testing.assert_close(g.layer_cka(w, s, r), g.cka(*moments))


def test_sample_cka_is_the_population_formula_at_the_sample_covariance():
    rng = g.generator(3)
    x = g.normal(50, 4, rng=rng)
    y = x[:, :3] * 2 + g.normal(50, 3, rng=rng)
    joint = torch.cov(torch.cat([x, y], 1).T)
    formula = g.cka(joint[:4, 4:], joint[:4, :4], joint[4:, 4:])
    torch.testing.assert_close(linear_cka(x, y, "biased"), formula, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(linear_cka(x, y), cka_1(x, y), rtol=1e-12, atol=1e-12)


def test_quadrature_against_the_closed_form():
    assert noisy_information(lambda x: x, 0.5) == pytest.approx(0.5 * np.log(5), abs=1e-6)


def test_two_layer_information_against_the_joint_covariance():
    w1, w2, s, noise = multilayer_sum.random_nets(5, 3, 0)
    _, nats = multilayer_sum.pair_values(w1, w2, s, noise)
    e = noise * torch.eye(3).double()
    through = w2 @ w1
    s2 = through @ s @ through.mT + w2 @ e @ w2.mT + e
    torch.testing.assert_close(nats["X,Z2"], g.information(s @ through.mT, s, s2))


def test_bijections_keep_all_points_apart():
    _, nats = bijections(32, seed=0)
    assert nats == pytest.approx([np.log(32)] * 9)
