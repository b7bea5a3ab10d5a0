"""The formulas that the checks of the theory rest on, by hand or by another route."""

import numpy as np
import pytest
import torch
from theory_cases import bursting

import theory
from ckasr.cka import linear_cka
from theory import concentration, multilayer_sum, renyi2, residual_reversal
from theory import gaussian as g
from theory.continuity_eps_sparsity import below, rescaled
from theory.fewshot_law import enumerated
from theory.order_equivalence import bijections
from theory.rank_one_minimum import best_layer, effective_rank, near_zero
from theory.scale_invariance import cka_1
from theory.zero_set import noisy_information


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


def test_required_norm_by_hand():
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
