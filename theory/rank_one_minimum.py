"""The minimum of CKA for a linear layer: rank one, in the direction of least variance, at any norm.

Claim: Minimising CKA-SR makes the weights small and concentrates them around zero (summary of the
main text; figures 1 and 2, the histograms).

Statement: For a layer Y = WX the smallest CKA(X, Y) over W != 0 is l_min / ||S||_F > 0. It is
attained if and only if W has rank one and its rows lie in the eigenspace of l_min, for every norm
of W. Gradient descent on CKA therefore lowers the rank, not the norm. As W approaches rank one, its
histogram develops a peak at zero and heavy tails although ||W||_F does not fall.

Assumptions: There is one linear layer without noise, with input covariance S > 0. That descent
reaches rank one, and how the histogram changes, is observed on one 64 x 64 layer.

Proof: With M = S^(1/2) W'W S^(1/2) >= 0, CKA = <S, M> / (||S|| ||M||). We have <S, M> >= l_min tr M
and tr M >= ||M||_F. The first is an equality iff the range of M lies in the eigenspace of l_min,
the second iff M has rank one. So CKA >= l_min / ||S|| for every scale of W.

Verdict: The statement is proved if CKA of the minimiser equals l_min / ||S|| at norms 1e-3, 1 and
1e3 (1e-12), no other layer, random or near the minimiser, has a lower CKA (-1e-12), and gradient
descent ends with effective rank < 2, with a norm that is not smaller, and with more weights below a
tenth of their RMS. It is false if another layer has a lower CKA; otherwise it is inconclusive.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theory.gaussian import covariance, generator, layer_cka, norm, normal
from theory.plots import panels, style
from theory.result import PROVED, REFUTES, Result, at_least, at_most, decisive, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def smallest_cka(s: Tensor) -> Tensor:
    """The smallest CKA(X, WX) over W, l_min / ||S||_F, for covariances (..., p, p) of X."""
    return torch.linalg.eigvalsh(s)[..., 0] / norm(s)


def best_layer(s: Tensor, rows: int) -> Tensor:
    """A minimiser of CKA with rank one and norm 1, shape (rows, p).

    Every row is a multiple of the eigenvector of the smallest eigenvalue of ``s`` (p, p).
    """
    vector = torch.linalg.eigh(s)[1][:, 0]
    return vector.expand(rows, -1) / rows**0.5


def cka_of(w: Tensor, s: Tensor) -> Tensor:
    """Population CKA of X and WX, for W (..., q, p) and the covariance of X (..., p, p)."""
    return layer_cka(w, s, torch.zeros((), dtype=s.dtype))


def effective_rank(w: Tensor) -> Tensor:
    """Effective rank of a matrix: the participation ratio of its squared singular values."""
    squares = torch.linalg.svdvals(w).square()
    return squares.sum().square() / squares.square().sum()


def near_zero(w: Tensor) -> Tensor:
    """Fraction of weights below a tenth of their RMS, which does not depend on their scale."""
    return (w.abs() < 0.1 * w.square().mean().sqrt()).double().mean()


def descend(w: Tensor, s: Tensor, steps: int) -> tuple[dict[str, list[float]], Tensor]:
    """Gradient descent on CKA(X, WX) alone.

    Args:
        w: initial weights, shape (q, p).
        s: covariance of X, shape (p, p).
        steps: number of steps.

    Returns:
        A dict of columns, and the weights after the last step. The columns are CKA, relative norm,
        effective rank and the fraction of weights near zero at up to 60 steps, which are equally
        spaced on a logarithmic scale.
    """
    trace: dict[str, list[float]] = {"step": [], "cka": [], "norm": [], "rank": [], "near": []}
    gradient = torch.func.grad(lambda v: cka_of(v, s))
    scale = norm(w)
    seen = {round(steps ** (i / 59)) for i in range(60)}
    for step in range(1, steps + 1):
        if step in seen:
            values = (step, cka_of(w, s), norm(w) / scale, effective_rank(w), near_zero(w))
            for column, value in zip(trace.values(), values, strict=True):
                column.append(float(value))
        w = w - 0.1 * scale.square() * gradient(w)
    return trace, w


def check(
    fast: bool = False,
    seed: int = 0,
    minimum: Callable[[Tensor], Tensor] = smallest_cka,
    minimiser: Callable[[Tensor, int], Tensor] = best_layer,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        minimum: function that returns the smallest CKA for a covariance (p, p).
        minimiser: function that returns a layer (rows, p) with this CKA.
    """
    rng = generator(seed)
    attained, below = [], []
    for _ in range(20 if fast else 200):
        size, rows = (int(k) for k in torch.randint(2, 9, (2,), generator=rng))
        s = covariance(size=size, rng=rng)
        best, least = minimiser(s, rows), minimum(s)
        attained += [float(cka_of(c * best, s) - least) for c in (1e-3, 1.0, 1e3)]
        far = normal(100, rows, size, rng=rng)
        others = torch.cat([far, best + 10 ** (-4 * torch.rand(100, 1, 1, generator=rng)) * far])
        below.append(float((cka_of(others, s) - least).min()))
    lowest = at_least("smallest CKA of other layers minus the minimum", below, -1e-12)
    s = covariance(size=64, rng=rng, condition=30.0)
    start = normal(64, 64, rng=rng) / 8
    trace, end = descend(start, s, 1000 if fast else 6000)
    conditions = [
        *decisive([lowest]),
        at_most("|CKA of the minimiser - l_min / ||S|||", torch.tensor(attained).abs(), 1e-12),
        at_most("effective rank after descent", trace["rank"][-1], 2),
        at_least("||W||_F after descent, relative to its initial value", trace["norm"][-1], 1),
        at_least(
            "P(|w| < 0.1 RMS) after descent, relative to its initial value",
            trace["near"][-1] / trace["near"][0],
            1.2,
        ),
    ]
    histograms = [
        torch.histc(w / w.square().mean().sqrt(), 81, -4, 4) / w.numel() for w in (start, end)
    ]
    return judge(
        __name__,
        __doc__,
        conditions,
        verdict=PROVED,
        consequence=REFUTES,
        reason="CKA is minimal at rank one, for any norm: the weights concentrate at zero without "
        "shrinking",
        figure={"trace": trace, "least": minimum(s), "histograms": histograms},
    )


def figure(result: Result) -> "Figure":
    """Left: CKA during descent. Middle: rank and norm. Right: histograms of the weights."""
    data = result.figure
    trace = data["trace"]
    drawing, (left, middle, right) = panels(3)
    left.plot(trace["step"], trace["cka"], label="CKA during descent", **style(1))
    left.axhline(data["least"], label=r"minimum $\lambda_{min} / \|S\|_F$ (proved)", **style(0))
    left.set(xlabel="steps of gradient descent on CKA", ylabel="CKA, population", xscale="log")
    middle.plot(trace["step"], trace["rank"], label="effective rank of W", **style(2))
    middle.plot(trace["step"], trace["norm"], label=r"$\|W\|_F$ / its initial value", **style(1))
    middle.axhline(1, color="0.6", linewidth=0.8)
    middle.set(xlabel="steps of gradient descent on CKA", xscale="log", yscale="log")
    centres = [-4 + 8 * (i + 0.5) / 81 for i in range(81)]
    for i, (values, label) in enumerate(zip(data["histograms"], ("start", "end"), strict=True)):
        right.step(centres, values, where="mid", label=label, **style(i))
    right.set(xlabel="weight / its RMS", ylabel="fraction of the 64 x 64 weights")
    for axis in (left, middle, right):
        axis.legend()
    return drawing
