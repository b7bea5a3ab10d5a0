"""Checks 9 to 16: each reaches its verdict, and each loses it when a formula is wrong."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

import theory
from theory import concentration, fewshot_gradient, hsic_norm, renyi2, residual_reversal
from theory import gaussian as g
from theory.continuity_eps_sparsity import below, lipschitz_bound, rescaled
from theory.fewshot_law import enumerated
from theory.rank_one_minimum import best_layer, effective_rank, near_zero, smallest_cka
from theory.verdict import FALSE, HOLDS, INCONCLUSIVE, PROVED, Verdict

EXPECTED = {
    "hsic_norm": (PROVED, "qualifies"),
    "residual_reversal": (PROVED, "refutes"),
    "rank_one_minimum": (PROVED, "refutes"),
    "concentration": (HOLDS, "refutes"),
    "fewshot_law": (PROVED, "qualifies"),
    "fewshot_gradient": (PROVED, "qualifies"),
    "continuity_eps_sparsity": (FALSE, "refutes"),
    "renyi2": (FALSE, "refutes"),
}


def swapped_bounds(hsic, norm2, low, high, s2):
    """Least and greatest eigenvalue exchanged."""
    return hsic_norm.bounds_of(hsic, norm2, high, low, s2)


def slow_flow(W0, S, t):
    return hsic_norm.flow_of(W0, S, t / 2)


def no_skip(x, w1, w2, gamma):
    return residual_reversal.bn_block(x, w1, w2, gamma) - x


def no_bn(x, w1, w2, gamma):
    return (x + gamma * (x @ w1.T).relu() @ w2.T).relu()


def greatest_variance(s, rows):
    return torch.linalg.eigh(s)[1][:, -1].expand(rows, -1)


def no_term(features):
    return 0 * features[0].sum()


def bursting(features):
    """A gradient that leaves the range of float32."""
    return 1e38 * features[0].sum() ** 3


def shrinking(model):
    """As if the term had shrunk what it grew."""
    found = concentration.measured(model)
    return found | {"squared_norm": 1 / found["squared_norm"]}


def numerator_only(w, s):
    """HSIC in place of CKA: continuous at 0."""
    return (w @ s).square().sum()


WRONG: dict[str, list[tuple[str, dict[str, Callable], str]]] = {
    "hsic_norm": [
        ("HSIC as tr W S W'", {"hsic": lambda W, S: np.trace(W @ S @ W.T)}, FALSE),
        ("flow without its 2", {"flow": slow_flow}, FALSE),
        ("bounds swapped", {"bounds": swapped_bounds}, FALSE),
    ],
    "residual_reversal": [
        ("bound doubled", {"bound": lambda c: 2 * residual_reversal.norm_needed(c)}, FALSE),
        ("no skip", {"block": no_skip}, INCONCLUSIVE),
        ("no BN", {"block": no_bn}, INCONCLUSIVE),
    ],
    "rank_one_minimum": [
        ("minimum too high", {"minimum": lambda s: 1.5 * smallest_cka(s)}, FALSE),
        ("minimum too low", {"minimum": lambda s: 0.999 * smallest_cka(s)}, INCONCLUSIVE),
        ("greatest variance", {"minimiser": greatest_variance}, INCONCLUSIVE),
    ],
    "concentration": [
        ("no term", {"term": no_term}, INCONCLUSIVE),
        ("norm shrinks", {"measure": shrinking}, INCONCLUSIVE),
    ],
    "fewshot_law": [
        ("variance 2 / n^2", {"variance": lambda n: 2 / n**2}, FALSE),
        ("mean over n", {"mean": lambda a, b, n: (a * b) ** 0.5 / n}, FALSE),
        ("no bias", {"few": lambda n, cka, a, b: cka}, INCONCLUSIVE),
    ],
    "fewshot_gradient": [
        ("biased has no force", {"few": fewshot_gradient.biased}, FALSE),
        ("force doubled", {"force": lambda a, b: 2 * fewshot_gradient.rank_force(a, b)}, FALSE),
        ("skipping costs nothing", {"share": lambda every: 1.0}, FALSE),
    ],
    "continuity_eps_sparsity": [
        ("numerator only", {"loss": numerator_only}, INCONCLUSIVE),
        ("bound too small", {"bound": lambda w, e: 1e-3 * lipschitz_bound(w, e)}, INCONCLUSIVE),
        ("half a rescaling", {"rescale": lambda w, c: [c * w[0], *w[1:]]}, INCONCLUSIVE),
    ],
    "renyi2": [
        ("rank in nats", {"entropy": lambda a: -a.square().sum().log()}, INCONCLUSIVE),
        ("centred moment", {"information": lambda a, b: (a * b).sum().log2()}, INCONCLUSIVE),
        ("I that falls", {"truth": lambda *m: -g.layer_information(*m)}, INCONCLUSIVE),
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


def test_norm_needed_by_hand():
    assert residual_reversal.norm_needed(1.0) == 0
    assert residual_reversal.norm_needed(0.0) == pytest.approx(2**0.5 - 1)
    t = residual_reversal.norm_needed(0.5)
    assert (1 - (2 * t + t * t) ** 2) ** 0.5 == pytest.approx(0.5)


def test_enumeration_goes_through_every_pairing():
    x, y = g.normal(4, 3, rng=g.generator(0)), g.normal(4, 2, rng=g.generator(1))
    found = enumerated(x, y)
    assert found["unbiased"].shape == (24,)
    assert found["biased"].unique().numel() > 12


def test_rank_and_share_near_zero_by_hand():
    assert effective_rank(torch.eye(5).double()) == pytest.approx(5)
    assert effective_rank(torch.ones(5, 3).double()) == pytest.approx(1)
    assert near_zero(torch.tensor([0.0, 1.0, 1.0, 1.0])) == 0.25
    assert best_layer(torch.diag(torch.tensor([3.0, 1.0, 2.0])), 2)[:, [0, 2]].abs().max() < 1e-6


def test_rescaling_moves_the_share_and_not_the_function():
    weights = [torch.full((2, 2), 0.5), torch.full((2, 2), 0.5)]
    assert below(weights) == 0
    assert below(rescaled(weights, 1e-3)) == 0.5


def test_matrix_information_of_identical_layers_is_their_entropy():
    a = renyi2.unit_diagonal(g.normal(12, 4, rng=g.generator(0)))
    doubled = -(a.square() * 12).square().sum().log2()
    assert renyi2.closed_information(a, a) == pytest.approx(
        float(2 * renyi2.closed_entropy(a) - doubled)
    )


def test_networks_trained_together_are_those_trained_alone():
    """The batch over arms and seeds must not leak from one network into another."""
    together = concentration.train([0.0, 0.1], [0, 1], 2, concentration.official)
    (alone,) = concentration.train([0.1], [1], 2, concentration.official)
    for name, weight in alone.state_dict().items():
        torch.testing.assert_close(together[3].state_dict()[name], weight, rtol=1e-3, atol=1e-4)
    moved = together[1].net.blocks[0].linear1.weight - alone.net.blocks[0].linear1.weight
    assert moved.abs().max() > 1e-2


def test_diverged_networks_are_an_error_that_says_so():
    with pytest.raises(ValueError, match="diverged: lower the learning rate or beta"):
        theory.run("concentration", fast=True, term=bursting)
