"""Less information does not mean sparser weights: the step that the appendix leaves out.

Claim: Minimising the mutual information of layers raises sparsity (title and summary of the main
text; the appendix goes from information to sparse weights without an argument).

Statement: For a noisy linear layer Y = WX + e, "W2 has less information I(X; Y) than W1, hence no
fewer zero weights" fails: (a) a rotation of the outputs leaves I as it is and removes all zeros;
(b) a smaller scale lowers I and leaves the zeros as they are; (c) at equal ||W||_F a dense matrix
of rank one has less information than a diagonal matrix; (d) setting a single weight to zero can
raise I. What does hold is the converse for whole rows: setting rows of W to zero never raises I.

Assumptions: X ~ N(0, I) with d coordinates, e ~ N(0, s^2 I). Zeros are counted exactly, not by a
threshold.

Proof: I = 1/2 ln det(I + W W' / s^2). (a) det(I + U W W' U' / s^2) is the same for orthogonal U.
(b) I grows with every singular value. (c) At equal norm, I = 1/2 sum ln(1 + v_i^2 / s^2) is
greatest for equal singular values and least for a single one (concavity of the logarithm). (d) By
example. Rows: Y without some coordinates is a function of Y (data processing).

Verdict: false (counterexample) if in (a) I agrees to 1e-10 while the share of zeros falls by more
than half, in (b) I falls by more than 0.1 nats at equal zeros, in (c) I falls by more than 1 nat
while the share of zeros falls by more than half, in (d) one or more of the random matrices gain
information, and no removal of rows raises I (1e-10); inconclusive otherwise.
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
    """I(X; WX + e) in nats for X ~ N(0, I), e ~ N(0, NOISE^2 I); w: (..., rows, columns)."""
    eye = torch.eye(w.shape[-2], dtype=w.dtype)
    return 0.5 * torch.logdet(eye + w @ w.mT / NOISE**2)


def zeros_of(w: Tensor) -> Tensor:
    """Share of weights that are exactly zero."""
    return (w == 0).double().mean((-2, -1))


def check(
    fast: bool = False,
    seed: int = 0,
    information: Callable[[Tensor], Tensor] = information_of,
    zeros: Callable[[Tensor], Tensor] = zeros_of,
) -> Result:
    """information: of weights, in nats; zeros: share of zero weights."""
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
        at_least("(a) share of zeros lost", z0 - z1, 0.5),
        at_least("(b) I lost by half the scale, nats", i0 - i2, 0.1),
        at_most("(b) |change of the share of zeros|", abs(z2 - z0), 1e-12),
        at_least("(c) I lost at equal norm, nats", i0 - i3, 1),
        at_least("(c) share of zeros lost", z0 - z3, 0.5),
        at_least("(d) most I gained by one zero, nats", float(gains.max()), 0.01),
        at_most("I gained by zero rows, most", float(row_gains.max()), 1e-10),
    ]
    share = float((gains > 0).double().mean())
    return judge(
        __name__,
        __doc__,
        conditions,
        verdict=FALSE,
        consequence=REFUTES,
        reason=f"at equal norm I falls from {i0:.1f} to {i3:.1f} nats as zeros fall from {z0:.0%} "
        f"to {z3:.0%}; one weight set to zero raises I in {share:.0%} of random 4 x 4 layers",
        figure={"points": points, "gains": gains[:500]},
    )


def figure(result: Result) -> "Figure":
    """Left: information and zeros of four layers. Right: what one zero weight does to I."""
    data = result.figure
    drawing, (left, right) = panels(2)
    for index, (name, (zeros, nats)) in enumerate(data["points"].items()):
        left.plot(zeros, nats, label=name, **style(index, marker=True) | {"linestyle": ""})
    left.set(xlabel="share of zero weights", ylabel="I(X; Y) in nats", xlim=(-0.05, 1.05))
    left.set_ylim(bottom=0)
    left.legend()
    right.hist(data["gains"], bins=60, color="0.6")
    right.axvline(0, color="k", linewidth=1)
    right.set(xlabel="change of I by setting one weight to zero, nats", ylabel="layers, 4 x 4")
    return drawing
