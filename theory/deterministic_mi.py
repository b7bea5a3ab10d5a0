"""The mutual information of a layer without noise is infinite or constant for all weights.

Claim: CKA-SR minimises the mutual information of input and intermediate representations, which a
network computes without noise (appendix, Theorem 3; summary of the main text).

Statement: I(X; WX + s e) = rank(W) ln(1/s) + c + o(1) as s -> 0, therefore I(X; WX) is infinite for
every W != 0. On a data set of N distinct points it is ln N for every injective W. The objective of
the paper is thus either undefined or independent of the weights.

Assumptions: X is Gaussian with nonsingular covariance (any distribution with a density gives the
same rate), or X is uniform on N distinct points.

Proof: I = 1/2 sum_i ln(1 + n_i / s^2) over the eigenvalues n_i of W S W'. Of these, rank(W) are
positive, and each contributes ln(1/s) + 1/2 ln n_i + O(s^2). On N points, I(X; f(X)) = H(f(X)).

Verdict: The statement is proved if the slope of I against ln(1/s) is within 0.01 of rank(W) for
ranks from 1 to 5, the constant is within 1e-6 of 1/2 ln pdet(W S W') (pdet is the product of the
positive eigenvalues), the entropy of N points under W at scales from 10^-3 to 10^3 is exactly ln N,
and the k-nearest-neighbour estimate agrees with the formula in one dimension to 0.1 nats. Otherwise
it is false.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from theory import gaussian as g
from theory.plots import panels, style
from theory.result import PROVED, REFUTES, Result, at_most, decisive, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def noisy_information(w: Tensor, s: Tensor, noise: float) -> Tensor:
    """I(X; WX + noise e) in nats for X ~ N(0, S) and standard normal e.

    The value is computed from singular values, which is also accurate if it is very small.

    Args:
        w: weights, shape (q, p).
        s: covariance of X, shape (p, p).
        noise: standard deviation of the noise.
    """
    values = torch.linalg.svdvals(w @ g.root(s))
    return 0.5 * torch.log1p((values / noise).square()).sum()


def entropy_of_points(y: Tensor) -> float:
    """Entropy in nats of the empirical distribution of the rows of ``y`` (n, d)."""
    _, counts = torch.unique(y, dim=0, return_counts=True)
    shares = counts.double() / counts.sum()
    return float(-torch.xlogy(shares, shares).sum())


def nearest_neighbours(x: Tensor, y: Tensor, seed: int) -> float:
    """Estimate of I(X; Y) in nats by Kraskov et al. (2004); ``x`` and ``y`` have shape (n,)."""
    from sklearn.feature_selection import mutual_info_regression

    return float(mutual_info_regression(x[:, None].numpy(), y.numpy(), random_state=seed)[0])


def check(
    fast: bool = False,
    seed: int = 0,
    information: Callable[[Tensor, Tensor, float], Tensor] = noisy_information,
    entropy: Callable[[Tensor], float] = entropy_of_points,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes; has no effect here, because the check takes a second.
        seed: seed of the random numbers.
        information: function that returns I(X; WX + noise e) in nats for (W, S, noise).
        entropy: function that returns the entropy in nats of the rows of a data set.
    """
    rng = g.generator(seed)
    noises = torch.logspace(-1, -6, 11, dtype=torch.float64)
    ranks, slopes, constants, curves = [1, 2, 3, 5], [], [], []
    for rank in ranks:
        s = g.covariance(size=6, rng=rng)
        w = g.normal(5, rank, rng=rng) @ g.normal(rank, 6, rng=rng)
        nats = torch.stack([information(w, s, float(noise)) for noise in noises])
        curves.append(nats)
        slope = (nats[-1] - nats[-5]) / (noises[-5] / noises[-1]).log()
        slopes.append(abs(slope - rank))
        volume = torch.linalg.svdvals(w @ g.root(s))[:rank].log().sum()
        constants.append(abs(nats[-1] + rank * noises[-1].log() - volume))

    points = g.normal(256, 6, rng=rng)
    w = g.normal(6, 6, rng=rng)
    entropies = [entropy(points @ w * scale) - np.log(256) for scale in (1e-3, 1.0, 1e3)]

    x, e = g.normal(2, 2000, rng=rng)
    one = torch.ones(1, 1, dtype=torch.float64)
    gaps = [
        nearest_neighbours(x, x + noise * e, seed) - float(information(one, one, noise))
        for noise in (1.0, 0.3, 0.1)
    ]
    sizes = [125, 250, 500, 1000, 2000]
    estimates = [nearest_neighbours(x[:n], x[:n], seed) for n in sizes]
    conditions = [
        at_most("|slope of I against ln(1/s) - rank(W)|", slopes, 0.01),
        at_most("|constant - 1/2 ln pdet(W S W')|", constants, 1e-6),
        at_most("|entropy of 256 points - ln 256|, nats", np.abs(entropies), 1e-12),
        at_most("|KSG estimate - formula| in one dimension, nats", np.abs(gaps), 0.1),
    ]
    return judge(
        __name__,
        __doc__,
        decisive(conditions),
        verdict=PROVED,
        consequence=REFUTES,
        reason="without noise I is infinite, or ln N on N points; it does not depend on the "
        "weights, so there is nothing to minimise",
        figure={
            "noises": noises,
            "ranks": ranks,
            "curves": [curve.tolist() for curve in curves],
            "sizes": sizes,
            "estimates": estimates,
        },
    )


def figure(result: Result) -> "Figure":
    """Left: I against ln(1/s) for several ranks. Right: estimates of I(X; X) against N."""
    data = result.figure
    drawing, (left, right) = panels(2)
    logs = -np.log(data["noises"])
    for i, (rank, curve) in enumerate(zip(data["ranks"], data["curves"], strict=True)):
        left.plot(logs, curve, label=f"rank(W) = {rank}", **style(i, marker=True))
        left.plot(logs, curve[-1] + rank * (logs - logs[-1]), color="0.6", linewidth=0.8)
    left.set_xlabel("ln(1/s), s: standard deviation of the noise")
    left.set_ylabel("I(X; WX + s e) in nats, analytic")
    left.legend(title="grey: slope rank(W)", title_fontsize=8)
    right.semilogx(data["sizes"], data["estimates"], label="KSG estimate, Y = X", **style(1, True))
    right.semilogx(
        data["sizes"], np.log(data["sizes"]), label="ln N, the plug-in value", **style(0)
    )
    right.set_xticks(data["sizes"], data["sizes"])
    right.minorticks_off()
    right.set_xlabel("N samples of a Gaussian X in one dimension")
    right.set_ylabel("I(X; Y = X) in nats (true value: infinite)")
    right.legend()
    return drawing
