"""CKA is the mean alignment of linear read-outs under a large ridge penalty, not of the best ones.

Claim: Layers with low CKA have different features, and layers with high CKA have redundant features
(summary of the main text).

Statement: For a target z let P_X(q) z = X (X'X + q I)^-1 X'z be its ridge prediction from centred
features X with penalty q. The mean alignment of the predictions from X and Y over targets z with
covariance I is tr(P_X P_Y) / (||P_X|| ||P_Y||). It converges to CKA(X, Y) as q grows, and to the
mean squared canonical correlation, sum r_i^2 / sqrt(rank X rank Y), as q goes to 0. For Y = XA with
invertible A every target is predicted equally well from both layers as q goes to 0, while CKA takes
any value down to l_min / ||S||_F, S = X'X.

Assumptions: CKA is the biased CKA. Targets have no preferred direction, so that CKA weights all of
them equally. n is larger than the numbers of features. The relation between CKA and read-outs is
due to Harvey et al. (2024).

Proof: q P_X(q) converges to XX' as q grows, and E <Kz, Lz> = tr(KL). As q goes to 0, P_X converges
to the projection onto the columns of X, tr(P_X P_Y) is the sum of r_i^2, and ||P_X||^2 = rank X.
For Y = XA both projections are equal. The lower end of CKA is proved in theory/rank_one_minimum.py.

Verdict: The statement is proved if the mean over an orthonormal set of targets agrees with both
limits (1e-6), and for layers Y = XA all predictions agree (1e-6) while CKA falls below one half.
Otherwise it is false.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ckasr.cka import linear_cka
from theory.gaussian import generator, normal
from theory.plots import panels, style
from theory.result import PROVED, QUALIFIES, Result, at_most, decisive, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ridge(x: Tensor, z: Tensor, penalty: float) -> Tensor:
    """Ridge predictions (n, tasks) of the targets ``z`` (n, tasks) from centred features (n, d)."""
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    return x @ torch.linalg.solve(x.T @ x + penalty * eye, x.T @ z)


def correlations_of(x: Tensor, y: Tensor) -> Tensor:
    """Canonical correlations of centred features ``x`` (n, d1) and ``y`` (n, d2)."""
    return torch.linalg.svdvals(torch.linalg.qr(x)[0].T @ torch.linalg.qr(y)[0])


def alignment(a: Tensor, b: Tensor) -> Tensor:
    """Mean inner product of predictions (n, tasks), divided by their root mean squared norms."""
    return (a * b).sum() / (a.norm() * b.norm())


def check(
    fast: bool = False,
    seed: int = 0,
    readout: Callable[[Tensor, Tensor, float], Tensor] = ridge,
    correlations: Callable[[Tensor, Tensor], Tensor] = correlations_of,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        readout: function that predicts targets from (features, targets, penalty), like `ridge`.
        correlations: function that returns the canonical correlations of two layers.
    """
    rng = generator(seed)
    heavy, light = [], []
    for _ in range(20 if fast else 200):
        x, y = normal(30, 5, rng=rng), normal(30, 7, rng=rng)
        y[:, :3] += 2 * x[:, :3]
        x, y = x - x.mean(0), y - y.mean(0)
        z = torch.linalg.qr(normal(30, 30, rng=rng))[0]  # targets: an orthonormal basis
        ends = [alignment(readout(x, z, q), readout(y, z, q)) for q in (1e9, 1e-9)]
        heavy.append(ends[0] - linear_cka(x, y, "biased"))
        light.append(ends[1] - correlations(x, y).square().sum() / 35**0.5)
    x = normal(60, 6, rng=rng)
    x = x - x.mean(0)
    stretch = torch.diag(torch.logspace(0, 3, 6).double())
    y = x @ torch.linalg.qr(normal(6, 6, rng=rng))[0] @ stretch
    z = torch.linalg.qr(normal(60, 60, rng=rng))[0]
    predictions = [readout(f, z, 1e-9) for f in (x, y)]
    low = linear_cka(x, y, "biased")
    penalties = torch.logspace(-6, 9, 61).tolist()
    curve = [float(alignment(readout(x, z, q), readout(y, z, q))) for q in penalties]
    conditions = [
        at_most("|alignment under a large penalty - CKA|", torch.stack(heavy).abs(), 1e-6),
        at_most("|alignment without penalty - mean r^2|", torch.stack(light).abs(), 1e-6),
        at_most(
            "|predictions from XA - predictions from X|",
            (predictions[0] - predictions[1]).abs(),
            1e-6,
        ),
        at_most("CKA of X and XA", low, 0.5),
    ]
    return judge(
        __name__,
        __doc__,
        decisive(conditions),
        verdict=PROVED,
        consequence=QUALIFIES,
        reason="X and XA predict every target equally well although their CKA is "
        f"{low:.2f}: low CKA does not mean that layers contain different information",
        figure={"penalties": penalties, "curve": curve, "cka": low},
    )


def figure(result: Result) -> "Figure":
    """The alignment of read-outs from X and XA against the penalty."""
    data = result.figure
    drawing, (axis,) = panels(1, width=5.5)
    axis.semilogx(data["penalties"], data["curve"], label="alignment of read-outs", **style(1))
    axis.axhline(data["cka"], label="CKA(X, XA), the limit (proved)", **style(0))
    axis.axhline(1, label="without penalty: 1 (proved)", **style(2))
    axis.set(xlabel="ridge penalty", ylabel="mean alignment over targets")
    axis.legend()
    return drawing
