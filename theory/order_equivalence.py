"""A lower CKA does not mean less mutual information: five explicit families of counterexamples.

Claim: Minimising CKA(X, Y) is equivalent to minimising I(X; Y) (appendix, Lemmas 1 and 2).

Statement: Of two pairs (X, Y), the pair with the lower CKA(X, Y) has the lower I(X; Y).

Assumptions: All values are closed forms. Families (a) to (c) are jointly Gaussian. In (d) and (e),
X is uniform on N points and Y is a bijection of X, therefore I(X; Y) = ln N exactly.

Proof: The statement is refuted by counterexamples. (a) Y depends on the low-variance direction of X
only, and the variance of the other direction grows: CKA weights directions by variance, I does not.
(b) For whitened pairs, CKA is the mean of r_i^2, while I is dominated by the largest r_i. (c) The
weight vector of one neuron rotates from the high-variance to the low-variance direction while its
norm grows. (d) Y = S^-t X: a bijection keeps I = ln N, but CKA falls with t. (e) The inverse of
this map: by the data processing inequality, processing Y cannot raise I, but here it raises CKA.

Verdict: The statement is false if in every family CKA changes by more than 0.5 while I changes in
the opposite direction or not at all (1e-10). Otherwise it is inconclusive.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from theory import gaussian as g
from theory.plots import COLOURS, panels, style
from theory.result import FALSE, REFUTES, Result, at_least, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Moments = tuple[Tensor, Tensor, Tensor]


def tensor(values: Sequence) -> Tensor:
    """The values as a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def growing_direction() -> list[Moments]:
    """Family (a): X ~ N(0, diag(v, 1)) and Y = X_2 + 0.1 e, for v from 1 to 10^4."""
    covariances = [torch.diag(tensor([v, 1.0])) for v in (1, 3, 10, 30, 100, 1e4)]
    return [g.moments(tensor([[0.0, 1.0]]), s, tensor([[0.01]])) for s in covariances]


def whitened() -> list[Moments]:
    """Family (b): Sx and Sy are the identity in four dimensions.

    The squared correlations r_i^2 change from (.85, .85, .85, .85) to (.9999, 0, 0, 0).
    """
    squares = [tensor([1 - 0.15 * 0.00066**t, *[0.85 * (1 - t)] * 3]) for t in np.linspace(0, 1, 9)]
    return [(torch.diag(r.sqrt()), torch.eye(4).double(), torch.eye(4).double()) for r in squares]


def turning_neuron() -> list[Moments]:
    """Family (c): Y = a (cos t, sin t) X + e with X ~ N(0, diag(10, 1)) and e ~ N(0, 0.1).

    Both the angle t and the norm a of the weights grow.
    """
    path = [(0.3, 0.0), (0.45, 22.5), (0.6, 45.0), (1.2, 67.5), (2.0, 80.0), (3.0, 90.0)]
    rows = [tensor([[a * np.cos(np.radians(t)), a * np.sin(np.radians(t))]]) for a, t in path]
    return [g.moments(w, torch.diag(tensor([10.0, 1.0])), tensor([[0.1]])) for w in rows]


def bijections(points: int, seed: int) -> tuple[list[Moments], list[float]]:
    """Family (d): Y = S^-t X for t from 0 to 1, where X is uniform on a set of points.

    Args:
        points: number N of points. Their covariance S has condition number 100.
        seed: seed of the random points.

    Returns:
        The covariances (Sxy, Sx, Sy) for every t, and I(X; Y) in nats, the logarithm of the number
        of distinct values of Y.
    """
    rng = g.generator(seed)
    scale = torch.logspace(0, -1, 6, dtype=torch.float64)
    basis, _ = torch.linalg.qr(g.normal(points, 6, rng=rng) - 0.5)
    x = basis * scale * points**0.5
    s = x.mT @ x / points
    maps = [g.root(s, -t) for t in np.linspace(0, 1, 9)]
    distinct = [len(torch.unique(x @ w, dim=0)) for w in maps]
    return [g.moments(w, s, torch.zeros_like(s)) for w in maps], [
        float(np.log(k)) for k in distinct
    ]


def rank_correlation(
    cka: Callable, information: Callable, count: int, seed: int
) -> tuple[float, Tensor, Tensor]:
    """Spearman's rank correlation of CKA and I over ``count`` random layers.

    Returns:
        The rank correlation, the values of CKA and the values of I in nats, both (count,).
    """
    from scipy.stats import spearmanr

    rng = g.generator(seed)
    s = g.covariance(count, size=6, rng=rng, condition=100.0)
    w = g.normal(count, 4, 6, rng=rng)
    moments = g.moments(w, s, 0.1 * torch.eye(4).double())
    values = cka(*moments), information(*moments)
    return float(spearmanr(*values).statistic), *values


def check(
    fast: bool = False,
    seed: int = 0,
    cka: Callable[[Tensor, Tensor, Tensor], Tensor] = g.cka,
    information: Callable[[Tensor, Tensor, Tensor], Tensor] = g.information,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        cka: function that returns the CKA for the covariances (Sxy, Sx, Sy).
        information: function that returns the mutual information in nats for (Sxy, Sx, Sy).
    """
    paths = {}
    families = {"(a)": growing_direction(), "(b)": whitened(), "(c)": turning_neuron()}
    for name, family in families.items():
        paths[name] = [[float(f(*m)) for m in family] for f in (cka, information)]
    family, nats = bijections(64, seed)
    paths["(d)"] = [[float(cka(*m)) for m in family], nats]
    paths["(e)"] = [values[::-1] for values in paths["(d)"]]
    conditions = []
    for name, (similarity, nats) in paths.items():
        sign = -1 if name == "(e)" else 1  # (e) processes Y, so CKA should not rise, but it does.
        moved = sign * (similarity[0] - similarity[-1])
        conditions.append(at_least(f"{name} {'rise' if sign < 0 else 'fall'} of CKA", moved, 0.5))
        against = sign * (nats[-1] - nats[0])
        conditions.append(
            at_least(f"{name} change of I in the opposite direction, nats", against, -1e-10)
        )
    rank, similarity, nats = rank_correlation(cka, information, 500 if fast else 3000, seed)
    return judge(
        __name__,
        __doc__,
        conditions,
        verdict=FALSE,
        consequence=REFUTES,
        reason="in five families a change of CKA does not come with the same change of I; over "
        f"random layers their rank correlation is {rank:.2f}",
        figure={"paths": paths, "rank": rank, "cka": similarity[:500], "nats": nats[:500]},
    )


def figure(result: Result) -> "Figure":
    """Left: I against CKA along the families. Right: I against CKA for random layers."""
    data = result.figure
    drawing, (left, right) = panels(2)
    labels = {
        "(a)": "variance of $X_1$ grows",
        "(b)": "whitened: one strong correlation",
        "(c)": "neuron rotates, ||W|| grows",
        "(d)": "bijection S$^{-t}$ of 64 points",
    }
    for i, (name, label) in enumerate(labels.items()):
        cka, nats = data["paths"][name]
        left.plot(cka, nats, label=f"{name} {label}", **style(i, marker=True))
        k = int(np.argmin(np.diff(cka)))  # The arrow is drawn on the longest step.
        middle = [(a[k] + a[k + 1]) / 2 for a in (cka, nats)]
        arrow = {"arrowstyle": "-|>", "color": COLOURS[i], "mutation_scale": 16}
        left.annotate("", middle, (cka[k], nats[k]), arrowprops=arrow)
    left.set_ylim(0, 8)
    left.set_xlabel("population CKA(X, Y)")
    left.set_ylabel("I(X; Y) in nats, analytic")
    left.legend(fontsize=8)
    right.plot(data["cka"], data["nats"], "o", markersize=3, color="0.45")
    right.set_xlabel("population CKA(X, Y), random S and W")
    right.set_ylabel("I(X; Y) in nats, analytic")
    right.set_title(f"Spearman's rank correlation {data['rank']:.2f}", fontsize=9)
    return drawing
