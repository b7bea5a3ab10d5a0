"""Less mutual information does not mean sparser weights: the step that the appendix leaves out.

Claim: Minimising the mutual information of layers raises sparsity (title and summary of the main
text; the appendix goes from information to sparse weights without an argument).

Statement: For a noisy linear layer Y = WX + e, if W2 has less information I(X; Y) than W1, then W2
has at least as many zero weights as W1. The check computes four cases. (a) A rotation of the
outputs keeps I and removes all zeros. (b) A smaller scale lowers I and adds no zero. (c) At equal
||W||_F, a dense matrix of rank one has less information than a diagonal matrix. (d) Setting a
single weight to zero can raise I. A weaker converse does hold: setting rows of W to zero never
raises I.

Assumptions: X ~ N(0, I) with d coordinates, and e ~ N(0, s^2 I). Zeros are counted exactly, not by
a threshold.

Proof: I = 1/2 ln det(I + W W' / s^2). (a) det(I + U W W' U' / s^2) is the same for orthogonal U.
(b) I grows with every singular value. (c) At equal norm, I = 1/2 sum ln(1 + v_i^2 / s^2) is
largest for equal singular values and smallest for a single one (concavity of the logarithm). (d) By
example. For rows, Y without some of its coordinates is a function of Y, so that I cannot rise (data
processing inequality).

Verdict: The statement is false (counterexample) if in (a) I agrees to 1e-10 while the fraction of
zeros falls by more than 0.5, in (b) I falls by more than 0.1 nats at equal zeros, in (c) I falls by
more than 1 nat while the fraction of zeros falls by more than 0.5, in (d) I rises by at least 0.01
nats for at least one random matrix, and setting rows to zero never raises I (1e-10). Otherwise it
is inconclusive.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theory.gaussian import generator, norm, normal
from theory.plots import panels, style
from theory.result import FALSE, REFUTES, Result, at_least, at_most, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE, NOISE = 16, 0.5


def information_of(w: Tensor) -> Tensor:
    """I(X; WX + e) in nats for X ~ N(0, I) and e ~ N(0, NOISE^2 I), shape (...).

    Args:
        w: weights, shape (..., rows, columns).
    """
    eye = torch.eye(w.shape[-2], dtype=w.dtype)
    return 0.5 * torch.logdet(eye + w @ w.mT / NOISE**2)


def zeros_of(w: Tensor) -> Tensor:
    """Fraction of the weights (..., rows, columns) that are exactly zero, shape (...)."""
    return (w == 0).double().mean((-2, -1))


def check(
    fast: bool = False,
    seed: int = 0,
    information: Callable[[Tensor], Tensor] = information_of,
    zeros: Callable[[Tensor], Tensor] = zeros_of,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        information: function that returns the mutual information in nats for weights.
        zeros: function that returns the fraction of zero weights.
    """
    rng = generator(seed)
    diagonal = torch.diag(1 + torch.rand(SIZE, generator=rng, dtype=torch.float64))
    rotated = torch.linalg.qr(normal(SIZE, SIZE, rng=rng))[0] @ diagonal
    thin = normal(SIZE, 1, rng=rng) @ normal(1, SIZE, rng=rng)
    thin = thin * norm(diagonal) / norm(thin)
    shapes = {"diagonal": diagonal, "rotated": rotated, "half the scale": diagonal / 2,
              "rank one, equal norm": thin}  # fmt: skip
    points = {name: (float(zeros(w)), float(information(w))) for name, w in shapes.items()}
    (z0, i0), (z1, i1), (z2, i2), (z3, i3) = points.values()

    count = 500 if fast else 5000
    w = normal(count, 4, 4, rng=rng)
    one_less = w.clone()
    one_less[:, 0, 0] = 0
    gains = information(one_less) - information(w)
    rows = w * (torch.rand(count, 4, 1, generator=rng) < 0.5)
    row_gains = information(rows) - information(w)
    conditions = [
        at_most("(a) |change of I| by a rotation", abs(i1 - i0), 1e-10),
        at_least("(a) decrease of the fraction of zeros", z0 - z1, 0.5),
        at_least("(b) decrease of I by half the scale, nats", i0 - i2, 0.1),
        at_most("(b) |change of the fraction of zeros|", abs(z2 - z0), 1e-12),
        at_least("(c) decrease of I at equal norm, nats", i0 - i3, 1),
        at_least("(c) decrease of the fraction of zeros", z0 - z3, 0.5),
        at_least("(d) largest rise of I by one zero, nats", float(gains.max()), 0.01),
        at_most("largest rise of I by zero rows, nats", float(row_gains.max()), 1e-10),
    ]
    share = float((gains > 0).double().mean())
    return judge(
        __name__,
        __doc__,
        conditions,
        verdict=FALSE,
        consequence=REFUTES,
        reason=f"at equal norm I falls from {i0:.1f} to {i3:.1f} nats while the fraction of zeros "
        f"falls from {z0:.0%} to {z3:.0%}; setting one weight to zero raises I in {share:.0%} of "
        "random 4 x 4 layers",
        figure={"points": points, "gains": gains[:500]},
    )


def figure(result: Result) -> "Figure":
    """Left: information and zeros of four layers. Right: change of I by a zero weight."""
    data = result.figure
    drawing, (left, right) = panels(2)
    for index, (name, (zeros, nats)) in enumerate(data["points"].items()):
        left.plot(zeros, nats, label=name, **style(index, marker=True) | {"linestyle": ""})
    left.set(xlabel="fraction of zero weights", ylabel="I(X; Y) in nats", xlim=(-0.05, 1.05))
    left.set_ylim(bottom=0)
    left.legend()
    right.hist(data["gains"], bins=60, color="0.6")
    right.axvline(0, color="k", linewidth=1)
    right.set(xlabel="change of I if one weight is set to zero (nats)", ylabel="number of layers")
    return drawing
