"""The distribution of the CKA of a few samples, for independent and for dependent layers.

Claim: Eight samples of a batch suffice for CKA-SR (appendix, table 2); the appendix
prints the biased estimator (eq. 3), the code runs the unbiased one.

Statement: If two layers are independent, CKA_1 of n samples has mean 0 and variance exactly
2 / (n (n - 3)), for all data and dimensions. As the dimensions grow, (1 + CKA_1) / 2 converges in
distribution to Beta((m - 1)/2, (m - 1)/2) with m = n (n - 3)/2. The biased CKA has mean exactly
sqrt(PRx PRy) / (n - 1), where PR = tr(G)^2 / ||G||_F^2 is the participation ratio of the centred
Gram matrix of the samples. In terms of the population, the biased CKA is about
(1 + n C / sqrt(PRx PRy)) / sqrt((1 + n / PRx) (1 + n / PRy)) with C = CKA and
PR = tr(S)^2 / ||S||_F^2. For independent isotropic layers of d dimensions this is d / (d + n),
which is near 1 for wide layers.

Assumptions: Rows are independent and identically distributed, and n >= 4. The Beta limit requires
isotropic Gaussian rows. The last formula, for Gaussian rows, is a ratio of expectations (the check
requires an agreement within 0.01).

Proof: Given both Gram matrices, the pairing of the rows is a uniform random permutation P.
U-centred matrices form the irreducible representation (n - 2, 2) of S_n, whose dimension is m.
Schur's lemma gives E <A, PBP'> = 0 and E <A, PBP'>^2 = ||A||^2 ||B||^2 / m. A doubly centred Gram
matrix is the sum of such a part, a part in (n - 1, 1), and tr(G) / (n - 1) times the centring
matrix. Only the last part contributes to the mean, which is tr Gx tr Gy / (n - 1). For Gaussian
rows E <Gx, Gy> = (n - 1) (tr Sx tr Sy + n ||Sxy||_F^2) up to O(||S||^2).

Verdict: The statement is proved if the enumeration of all permutations gives both means and the
variance to 1e-10 on heavy-tailed data, Monte Carlo samples agree with 2 / (n (n - 3)) (z-test), the
Kolmogorov-Smirnov test does not reject the Beta distribution, and the last formula is within 0.01
of the measured mean. It is false if the enumeration disagrees; otherwise it is inconclusive.
"""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ckasr.cka import center, gram_linear
from theory.gaussian import generator, normal
from theory.plots import panels, style
from theory.result import PROVED, QUALIFIES, Condition, Result, at_most, decisive, fits, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ESTIMATORS = ("unbiased", "biased")


def null_variance(n: int) -> float:
    """Variance of CKA_1 of ``n`` >= 4 samples of independent layers."""
    return 2 / (n * (n - 3))


def biased_mean(pr_x: float, pr_y: float, n: int) -> float:
    """Mean of the biased CKA over all pairings of the rows of two layers.

    Args:
        pr_x, pr_y: participation ratios of the centred Gram matrices of the samples.
        n: number of samples.
    """
    return (pr_x * pr_y) ** 0.5 / (n - 1)


def biased_at(n: int, cka: float, pr_x: float, pr_y: float) -> float:
    """Approximate mean of the biased CKA of ``n`` samples.

    Args:
        n: number of samples.
        cka: CKA of the population.
        pr_x, pr_y: participation ratios of the population covariances.
    """
    return (1 + n * cka / (pr_x * pr_y) ** 0.5) / ((1 + n / pr_x) * (1 + n / pr_y)) ** 0.5


def cosines(a: Tensor, b: Tensor, estimator: str) -> Tensor:
    """CKA of Gram matrices (..., n, n) by the given estimator, shape (...)."""
    a, b = (center(gram, estimator).flatten(-2) for gram in (a, b))
    return torch.cosine_similarity(a, b, dim=-1)


def participation(gram: Tensor) -> float:
    """Participation ratio of a Gram matrix (n, n) after centring."""
    g = center(gram, "biased")
    return float(g.trace().square() / g.square().sum())


def enumerated(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """CKA for every pairing of the rows of ``x`` (n, d1) and ``y`` (n, d2), shape (n!,) each."""
    p = torch.tensor(list(itertools.permutations(range(len(x)))))
    a, b = gram_linear(x), gram_linear(y)
    return {e: cosines(a, b[p[:, :, None], p[:, None, :]], e) for e in ESTIMATORS}


def drawn(
    n: int, d: int, count: int, rng: torch.Generator, mixing: Tensor | None = None
) -> dict[str, Tensor]:
    """CKA of ``count`` random pairs of Gaussian layers.

    Args:
        n: number of samples.
        d: width of the layers.
        count: number of pairs.
        rng: random number generator.
        mixing: matrix (d, d) of the dependent pair X = Y mixing; None for independent layers.

    Returns:
        The values of each estimator, shape (count,).
    """
    parts: list[dict[str, Tensor]] = []
    batch = max(1, 4_000_000 // (n * d))
    for start in range(0, count, batch):
        x = normal(min(batch, count - start), n, d, rng=rng)
        y = normal(*x.shape, rng=rng) if mixing is None else x
        x = x if mixing is None else x @ mixing
        parts.append({e: cosines(x @ x.mT, y @ y.mT, e) for e in ESTIMATORS})
    return {e: torch.cat([part[e] for part in parts]) for e in ESTIMATORS}


def enumeration(largest: int, rng: torch.Generator, variance: Callable[[int], float],
                mean: Callable[[float, float, int], float]) -> list[Condition]:  # fmt: skip
    """Compare the formulas with the enumeration of all pairings of heavy-tailed, dependent data."""
    means, variances, biased = [], [], []
    for n in range(4, largest + 1):
        x = normal(n, 3, rng=rng) / torch.rand(n, 1, generator=rng, dtype=torch.float64)
        y = x[:, :2].exp() + normal(n, 2, rng=rng) / normal(n, 1, rng=rng)
        found = enumerated(x, y)
        means.append(abs(float(found["unbiased"].mean())))
        variances.append(abs(float(found["unbiased"].square().mean()) - variance(n)))
        ratios = participation(gram_linear(x)), participation(gram_linear(y))
        biased.append(abs(float(found["biased"].mean()) - mean(*ratios, n)))
    return [
        at_most("|mean of CKA_1 over all pairings|", means, 1e-10),
        at_most("|variance of CKA_1 over all pairings - 2 / (n (n - 3))|", variances, 1e-10),
        at_most("|mean of biased CKA - sqrt(PRx PRy) / (n - 1)|", biased, 1e-10),
    ]


def check(
    fast: bool = False,
    seed: int = 0,
    variance: Callable[[int], float] = null_variance,
    mean: Callable[[float, float, int], float] = biased_mean,
    few: Callable[[int, float, float, float], float] = biased_at,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        variance: formula of the variance of CKA_1, like `null_variance`.
        mean: formula of the mean of the biased CKA over all pairings, like `biased_mean`.
        few: formula of the mean of the biased CKA of n samples, like `biased_at`.
    """
    from scipy.stats import beta, kstest, norm

    rng = generator(seed)
    exact = enumeration(7 if fast else 8, rng, variance, mean)
    draws, tests, spread, quantiles = 500 if fast else 4000, [], [], []
    for n in (4, 5, 8, 16, 32):
        squares = drawn(n, 16, draws, rng)["unbiased"].square()
        z = float((squares.mean() - variance(n)) / (squares.std() / draws**0.5))
        tests.append(fits(f"variance of CKA_1 at n = {n}, d = 16 (z-test)", 2 * norm.sf(abs(z))))
        spread.append((n, float(squares.mean()) ** 0.5, variance(n) ** 0.5))
    levels = (torch.arange(50, dtype=torch.float64) + 0.5) / 50
    for n in (4, 5, 8):
        half = (n * (n - 3) / 2 - 1) / 2
        law = beta(half, half, loc=-1, scale=2)
        values = drawn(n, 1024, draws, rng)["unbiased"]
        p = kstest(values.numpy(), law.cdf).pvalue
        tests.append(fits(f"Beta distribution at n = {n}, d = 1024 (Kolmogorov-Smirnov test)", p))
        quantiles.append((n, law.ppf(levels.numpy()), values.quantile(levels)))
    mixing = torch.diag(torch.logspace(0, -1.5, 64, dtype=torch.float64))
    s = mixing.square()
    models = {
        "independent, d = 1024": (1024, None, 0.0, 1024.0, 1024.0),
        "independent, d = 64": (64, None, 0.0, 64.0, 64.0),
        "dependent, d = 64": (64, mixing, float(s.trace() / (s.norm() * 8)),
                              float(s.trace() ** 2 / s.norm() ** 2), 64.0),
    }  # fmt: skip
    sizes, measured, predicted = (8, 32, 128), {}, {}
    for name, (d, mix, *moments) in models.items():
        found = [drawn(n, d, 100 if fast else 1000, rng, mix) for n in sizes]
        measured[name] = {e: [float(f[e].mean()) for f in found] for e in ESTIMATORS}
        predicted[name] = [few(n, *moments) for n in sizes]
    gaps = [
        abs(a - b)
        for name in models
        for a, b in zip(measured[name]["biased"], predicted[name], strict=True)
    ]
    return judge(
        __name__,
        __doc__,
        [*decisive(exact), *tests, at_most("largest |mean of biased CKA - formula|", gaps, 0.01)],
        verdict=PROVED,
        consequence=QUALIFIES,
        reason="at n = 8, CKA_1 of independent layers has a standard deviation of 0.224; the "
        "biased CKA of wide layers is always near 1",
        figure={"spread": spread, "quantiles": quantiles, "sizes": sizes, "measured": measured,
                "predicted": predicted},
    )  # fmt: skip


def figure(result: Result) -> "Figure":
    """Left: spread of CKA_1. Middle: its quantiles. Right: mean CKA against its formula."""
    data = result.figure
    drawing, (left, middle, right) = panels(3)
    sizes, measured, exact = zip(*data["spread"], strict=True)
    left.loglog(sizes, exact, label=r"$\sqrt{2 / (n (n - 3))}$ (proved)", **style(0))
    left.loglog(sizes, measured, "s", color="0.5", label="independent Gaussian layers, d = 16")
    left.set_xticks(sizes, [str(n) for n in sizes])
    left.set_yticks([0.05, 0.1, 0.2, 0.5], ["0.05", "0.1", "0.2", "0.5"])
    left.minorticks_off()
    left.set(xlabel="number of samples n", ylabel="sd of CKA$_1$, independent layers")
    middle.plot([-1, 1], [-1, 1], color="0.7")
    for i, (n, expected, found) in enumerate(data["quantiles"]):
        look = style(i, marker=True) | {"linestyle": "none", "markersize": 3}
        middle.plot(expected, found, label=f"n = {n}", **look)
    middle.set(xlabel="quantile of the Beta distribution", ylabel="quantile of CKA$_1$, d = 1024")
    for i, (name, values) in enumerate(data["measured"].items()):
        look = style(i, marker=True) | {"linestyle": "none"}
        right.plot(data["sizes"], data["predicted"][name], **style(i))
        right.plot(data["sizes"], values["biased"], label=f"biased, {name}", **look)
        right.plot(data["sizes"], values["unbiased"], label="the same, unbiased",
                   **look | {"markerfacecolor": "white"})  # fmt: skip
    right.set_xscale("log")
    right.set_xticks(data["sizes"], [str(n) for n in data["sizes"]])
    right.minorticks_off()
    right.set(xlabel="number of samples n (lines: formula)", ylabel="mean CKA", ylim=(-0.6, 1.05))
    right.legend(fontsize="x-small", ncols=1, loc="lower left")
    left.legend(loc="upper right")
    middle.legend()
    return drawing
