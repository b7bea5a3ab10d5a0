"""CKA = 0 and I = 0 describe the same pairs if the pairs are Gaussian, but not in general.

Claim: Minimising CKA(X, Y) is equivalent to minimising the mutual information I(X; Y). The proof
shows that both vanish together for Gaussian features, "reasonable, for there exist BN layers"
(appendix, Lemmas 1 and 2, by the inequality |S| <= |Sx||Sy|).

Statement: For jointly Gaussian X and Y, CKA = 0 if and only if I = 0. More precisely,
-1/2 ln(1 - CKA) <= I <= -1/2 ln(1 - k CKA) with k = ||Sx|| ||Sy|| / (l_min(Sx) l_min(Sy)), where
the upper bound requires k CKA < 1. Without joint Gaussianity the equivalence fails: for standard
normal X and e, Y = X^2 - 1 + e/2 has CKA = 0 and I > 0.

Assumptions: X and Y are jointly Gaussian (batch normalisation fixes only the mean and the variance
of each feature, which does not imply this), and their covariances are nonsingular.

Proof: CKA = 0 iff Sxy = 0 iff all canonical correlations r_i are 0 iff I = -1/2 sum ln(1 - r_i^2)
is 0. The lower bound is proved in theory/one_sided_bound.py. The upper bound follows from sum r_i^2
= ||Sx^-1/2 Sxy Sy^-1/2||^2 <= k CKA and prod(1 - r_i^2) >= 1 - sum r_i^2. For the pair that is not
Gaussian, Cov(X, X^2) = E X^3 = 0.

Verdict: The statement is proved if both bounds hold on random models down to CKA = 1e-16 and
exactly at 0, and if the pair X, X^2 - 1 + e/2 has |CKA_1| <= 0.01 pooled over all samples while a
chi-square test rejects independence. Otherwise it is inconclusive.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ckasr.cka import MinibatchCKA
from theory import gaussian as g
from theory.plots import panels, style
from theory.result import PROVED, QUALIFIES, Result, at_least, at_most, judge, rejects

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Similarity = Callable[[Tensor, Tensor, Tensor], Tensor]


def noisy_information(link: Callable[[Tensor], Tensor], noise: float) -> float:
    """I(X; link(X) + noise e) in nats for independent X, e ~ N(0, 1).

    The value is h(Y) - h(noise e), where the entropy h(Y) is computed by quadrature.

    Args:
        link: function that maps a tensor of shape (n,) elementwise.
        noise: standard deviation of the noise.
    """
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.exp(-(x**2) / 2)
    centre = link(x)
    low, high = float(centre.min()) - 8 * noise, float(centre.max()) + 8 * noise
    y = torch.arange(low, high, noise / 8, dtype=torch.float64)
    kernel = torch.exp(-((y[:, None] - centre) ** 2) / (2 * noise**2))
    density = kernel @ (weight / weight.sum()) / (noise * (2 * torch.pi) ** 0.5)
    entropy = -torch.xlogy(density, density).sum() * (y[1] - y[0])
    return float(entropy) - 0.5 * np.log(2 * np.pi * np.e * noise**2)


def check(
    fast: bool = False,
    seed: int = 0,
    cka: Similarity = g.cka,
    information: Similarity = g.information,
    link: Callable[[Tensor], Tensor] = lambda x: x**2 - 1,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        cka: function that returns the CKA for the covariances (Sxy, Sx, Sy).
        information: function that returns the mutual information in nats for (Sxy, Sx, Sy).
        link: function of X in Y = link(X) + e/2, the pair that is not jointly Gaussian.
    """
    rng = g.generator(seed)
    models, noise = (300, 0.5) if fast else (3000, 0.5)
    s_x, s_y = (g.covariance(models, size=k, rng=rng) for k in (3, 4))
    unit = g.normal(models, 3, 4, rng=rng)
    unit = unit / torch.linalg.matrix_norm(unit, 2)[:, None, None]
    scales = torch.cat([torch.zeros(1), torch.logspace(-8, np.log10(0.999), models - 1)]).double()
    cross = scales[:, None, None] * (g.root(s_x) @ unit @ g.root(s_y))
    similarity, nats = cka(cross, s_x, s_y), information(cross, s_x, s_y)
    smallest = [torch.linalg.eigvalsh(s)[:, 0] for s in (s_x, s_y)]
    stretch = g.norm(s_x) * g.norm(s_y) / (smallest[0] * smallest[1])
    below = -0.5 * torch.log1p(-similarity)
    above = -0.5 * torch.log1p(-(stretch * similarity).clamp(max=1))
    live = scales > 0

    samples = 100_000 if fast else 400_000
    x = g.normal(samples, 1, rng=rng)
    y = link(x) + noise * g.normal(samples, 1, rng=rng)
    pooled = MinibatchCKA("unbiased")
    for rows in torch.arange(samples).split(100):
        pooled.update([x[rows], y[rows]])
    sampled = float(pooled.compute()[0, 1])
    p_value, nearest = independence_tests(x, y, seed)
    truth = noisy_information(link, noise)
    shown = torch.arange(1, models, models // 150)
    conditions = [
        at_most("CKA and I of independent Gaussians", [similarity[0].abs(), nats[0].abs()], 1e-12),
        at_least("relative slack of the lower bound", ((nats - below) / nats)[live], -1e-7),
        at_least("relative slack of the upper bound", ((above - nats) / nats)[live], -1e-7),
        at_most("|CKA_1| of X and X^2 - 1 + e/2", abs(sampled), 0.01),
        rejects("chi-square test of the independence of X and X^2 - 1 + e/2", p_value),
        at_least("I of X and X^2 - 1 + e/2 by quadrature, nats", truth, 0.1),
        at_most("|KSG estimate - quadrature|, nats", abs(nearest - truth), 0.1),
    ]
    return judge(
        __name__,
        __doc__,
        conditions,
        verdict=PROVED,
        consequence=QUALIFIES,
        reason="CKA and I are zero together for Gaussian pairs only (X, X^2 - 1 + e/2: "
        f"CKA {sampled:.4f}, I {truth:.2f} nats); this does not give them the same order",
        figure={
            "cka": similarity[shown],
            "nats": nats[shown],
            "above": above[shown],
            "x": x[:400, 0],
            "y": y[:400, 0],
            "sampled": sampled,
            "samples": samples,
            "truth": truth,
            "nearest": nearest,
        },
    )


def independence_tests(x: Tensor, y: Tensor, seed: int) -> tuple[float, float]:
    """P-value of a chi-square test of independence, and the KSG estimate of I(X; Y) in nats.

    Args:
        x, y: samples, shape (n, 1). The test counts them in 8 x 8 bins whose edges are the octiles.
            The estimate of Kraskov et al. (2004) uses the first 2000 samples.
        seed: seed of the estimate.
    """
    from scipy.stats import chi2_contingency
    from sklearn.feature_selection import mutual_info_regression

    cuts = torch.arange(1, 8, dtype=torch.float64) / 8
    rows, columns = (torch.bucketize(z, torch.quantile(z, cuts)) for z in (x[:, 0], y[:, 0]))
    counts = torch.bincount(8 * rows + columns, minlength=64).reshape(8, 8)
    nats = mutual_info_regression(x[:2000].numpy(), y[:2000, 0].numpy(), random_state=seed)
    return float(chi2_contingency(counts.numpy()).pvalue), float(nats[0])


def figure(result: Result) -> "Figure":
    """Left: I against CKA for Gaussian pairs. Right: a dependent pair with CKA = 0."""
    data = result.figure
    drawing, (left, right) = panels(2)
    left.loglog(data["cka"], data["nats"], "o", markersize=3, color="0.45", label="random models")
    line = np.logspace(np.log10(min(data["cka"])), np.log10(0.9))
    left.loglog(line, -0.5 * np.log1p(-line), label="$-\\frac{1}{2}\\ln(1-CKA)$", **style(0))
    finite = [(c, a) for c, a in zip(data["cka"], data["above"], strict=True) if a is not None]
    left.loglog(
        *zip(*finite, strict=True),
        "^",
        markersize=4,
        markerfacecolor="none",
        color="#d55e00",
        label="upper bound of each model",
    )
    left.set_xlabel("population CKA, Gaussian")
    left.set_ylabel("I(X; Y) in nats, analytic")
    left.legend(loc="upper left", fontsize=8)
    right.plot(data["x"], data["y"], "o", markersize=2, color="0.45")
    right.set_xlabel("X")
    right.set_ylabel("Y = X$^2$ − 1 + e/2")
    right.set_title(
        f"CKA$_1$ = {data['sampled']:.4f} ({data['samples']:,} samples, pooled)\n"
        f"I = {data['truth']:.2f} nats (quadrature), {data['nearest']:.2f} (KSG, 2,000)",
        fontsize=9,
    )
    return drawing
