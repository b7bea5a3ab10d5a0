"""What every check of the theory must say, and the wrong formulas that must change it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ckasr.cka import hsic
from theory import (
    concentration,
    deterministic_mi,
    estimators,
    fewshot_gradient,
    hsic_norm,
    information_and_sparsity,
    multilayer_sum,
    readout_alignment,
    residual_reversal,
    vanishing_gradient,
)
from theory import gaussian as g
from theory.continuity_eps_sparsity import lipschitz_bound
from theory.rank_one_minimum import smallest_cka
from theory.result import FALSE, HOLDS, INCONCLUSIVE, PROVED, QUALIFIES, REFUTES

Wrong = tuple[str, dict[str, Callable[..., object]], str]
"""A name, the arguments of `check` that are replaced, and the verdict that must follow."""


@dataclass(frozen=True)
class Case:
    """One check: the verdict and the consequence that it must reach, and its wrong formulas."""

    name: str
    verdict: str
    consequence: str
    wrong: list[Wrong]


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


def layer_numerator(w, s):
    """HSIC in place of CKA: continuous at 0."""
    return (w @ s).square().sum()


def unrooted_bound(c, y, gram_norm):
    """As if the gradient vanished in proportion to 1 - c^2."""
    return vanishing_gradient.bound_of(c, y, gram_norm) * (1 - c.square()).sqrt()


def informed_by_zeros(w):
    """Information that follows the zeros: the step that the appendix leaves out."""
    return 20 * (1 - information_and_sparsity.zeros_of(w))


def rank_deficit(w):
    """Missing rank in place of zeros."""
    return 1 - torch.linalg.matrix_rank(w) / w.shape[-1]


CASES = [
    Case("estimators", PROVED, QUALIFIES, [
        ("biased", {"estimator": lambda K, L: hsic(K, L, "biased")}, FALSE),
        ("ordered pairs", {"pair_sum": ordered_pairs}, FALSE),
        ("nan", {"estimator": lambda K, L: hsic(K, L) * float("nan")}, FALSE),
    ]),
    Case("zero_set", PROVED, QUALIFIES, [
        ("linear link", {"link": lambda x: x}, INCONCLUSIVE),
        ("I without its half", {"information": lambda *m: 2 * g.information(*m)}, INCONCLUSIVE),
        ("CKA as a root", {"cka": lambda *m: g.cka(*m).sqrt()}, INCONCLUSIVE),
    ]),
    Case("one_sided_bound", PROVED, QUALIFIES, [
        ("no half", {"bound": lambda c: -torch.log1p(-c)}, FALSE),
        ("too weak to be tight", {"bound": lambda c: -0.4 * torch.log1p(-c)}, FALSE),
        ("no squares", {"bounded": lambda h, a, b: 20 * h.sqrt() / (a * b)}, FALSE),
    ]),
    Case("order_equivalence", FALSE, REFUTES, [
        ("CKA that orders as I", {"cka": bound_as_similarity}, INCONCLUSIVE),
        ("I that orders as CKA", {"information": g.cka}, INCONCLUSIVE),
    ]),
    Case("deterministic_mi", PROVED, REFUTES, [
        ("power for amplitude", {"information": power_for_amplitude}, FALSE),
        ("bits", {"entropy": lambda y: np.log2(len(y))}, FALSE),
    ]),
    Case("noisy_gradient_flow", PROVED, QUALIFIES, [
        ("ascent", {"similarity": lambda *m: -g.layer_cka(*m)}, FALSE),
        ("rate without noise", {"rate": lambda w, s, r: -4 * g.layer_cka(w, s, r)}, FALSE),
        ("no product", {"inner": lambda *m: 0 * g.layer_cka(*m)}, FALSE),
    ]),
    Case("multilayer_sum", FALSE, REFUTES, [
        ("I in place of CKA", {"values": information_for_cka}, INCONCLUSIVE),
    ]),
    Case("scale_invariance", PROVED, REFUTES, [
        ("numerator only", {"similarity": numerator_only}, FALSE),
        ("growth by eta", {"growth": lambda rate, squares: rate * squares.sum()}, FALSE),
        ("equilibrium without 2", {"settled": lambda e, b, d, q: (e * b**2 * q / d) ** 0.5}, FALSE),
    ]),
    Case("hsic_norm", PROVED, QUALIFIES, [
        ("HSIC as tr W S W'", {"hsic": lambda W, S: np.trace(W @ S @ W.T)}, FALSE),
        ("flow without its 2", {"flow": slow_flow}, FALSE),
        ("bounds swapped", {"bounds": swapped_bounds}, FALSE),
    ]),
    Case("residual_reversal", PROVED, REFUTES, [
        ("bound doubled", {"bound": lambda c: 2 * residual_reversal.norm_needed(c)}, FALSE),
        ("no skip", {"block": no_skip}, INCONCLUSIVE),
        ("no BN", {"block": no_bn}, INCONCLUSIVE),
    ]),
    Case("rank_one_minimum", PROVED, REFUTES, [
        ("minimum too high", {"minimum": lambda s: 1.5 * smallest_cka(s)}, FALSE),
        ("minimum too low", {"minimum": lambda s: 0.999 * smallest_cka(s)}, INCONCLUSIVE),
        ("greatest variance", {"minimiser": greatest_variance}, INCONCLUSIVE),
    ]),
    Case("concentration", HOLDS, REFUTES, [
        ("no term", {"term": no_term}, INCONCLUSIVE),
        ("norm shrinks", {"measure": shrinking}, INCONCLUSIVE),
    ]),
    Case("fewshot_law", PROVED, QUALIFIES, [
        ("variance 2 / n^2", {"variance": lambda n: 2 / n**2}, FALSE),
        ("mean over n", {"mean": lambda a, b, n: (a * b) ** 0.5 / n}, FALSE),
        ("no bias", {"few": lambda n, cka, a, b: cka}, INCONCLUSIVE),
    ]),
    Case("fewshot_gradient", PROVED, QUALIFIES, [
        ("biased has no force", {"few": fewshot_gradient.biased}, FALSE),
        ("force doubled", {"force": lambda a, b: 2 * fewshot_gradient.rank_force(a, b)}, FALSE),
        ("skipping costs nothing", {"share": lambda every: 1.0}, FALSE),
    ]),
    Case("continuity_eps_sparsity", FALSE, REFUTES, [
        ("numerator only", {"loss": layer_numerator}, INCONCLUSIVE),
        ("bound too small", {"bound": lambda w, e: 1e-3 * lipschitz_bound(w, e)}, INCONCLUSIVE),
        ("half a rescaling", {"rescale": lambda w, c: [c * w[0], *w[1:]]}, INCONCLUSIVE),
    ]),
    Case("renyi2", FALSE, REFUTES, [
        ("rank in nats", {"entropy": lambda a: -a.square().sum().log()}, INCONCLUSIVE),
        ("centred moment", {"information": lambda a, b: (a * b).sum().log2()}, INCONCLUSIVE),
        ("I that falls", {"truth": lambda *m: -g.layer_information(*m)}, INCONCLUSIVE),
    ]),
    Case("outlier", PROVED, QUALIFIES, [
        ("limit of all samples", {"limit": lambda k, i: k.trace() / len(k) / k.norm()}, FALSE),
        ("without 1 - 1/n", {"limit": lambda k, i: k[i, i] / k.norm()}, FALSE),
        ("all samples move", {"move": lambda x, i, by: x + by}, FALSE),
    ]),
    Case("vanishing_gradient", PROVED, QUALIFIES, [
        ("no projection", {"gradient": lambda k, m, y: 2 * k @ y / k.norm() / m.norm()}, FALSE),
        ("bound without root", {"bound": unrooted_bound}, FALSE),
        ("bound halved", {"bound": lambda *m: vanishing_gradient.bound_of(*m) / 2}, FALSE),
    ]),
    Case("readout_alignment", PROVED, QUALIFIES, [
        ("no penalty", {"readout": lambda x, z, q: readout_alignment.ridge(x, z, 0.0)}, FALSE),
        ("fixed penalty", {"readout": lambda x, z, q: readout_alignment.ridge(x, z, 1.0)}, FALSE),
        ("no whitening", {"correlations": lambda x, y: torch.linalg.svdvals(x.T @ y)}, FALSE),
    ]),
    Case("input_structure", PROVED, QUALIFIES, [
        ("input subtracted", {"correct": lambda gram, inputs: gram - inputs}, FALSE),
        ("no correction", {"correct": lambda gram, inputs: gram}, FALSE),
        ("width alone", {"formula": lambda width, ratio: 1 / (1 + 1 / width)}, INCONCLUSIVE),
    ]),
    Case("information_and_sparsity", FALSE, REFUTES, [
        ("I of the zeros", {"information": informed_by_zeros}, INCONCLUSIVE),
        ("I of the norm", {"information": lambda w: (w**2).sum((-2, -1))}, INCONCLUSIVE),
        ("zeros by rank", {"zeros": rank_deficit}, INCONCLUSIVE),
    ]),
]  # fmt: skip
