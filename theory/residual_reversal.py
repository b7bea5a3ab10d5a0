"""With a skip connection the claim on the norm is reversed: low CKA needs a large residual branch.

Claim: Minimising CKA-SR shrinks ||W||_F^2 (summary of the main text; appendix, Lemma 1). The
official code regularises the outputs of residual blocks, after the skip connection is added.

Statement: For a residual layer Y = X + XW' with centred X, CKA(X, Y) <= c requires
||W||_op >= sqrt(1 + sqrt(1 - c^2)) - 1. W = 0 is the maximum of CKA, and the gradient flow of CKA
from small weights makes them grow. In a block with batch normalisation (BN), CKA falls as the scale
gamma of the last BN grows, and the gradient of CKA is orthogonal to every weight that BN
normalises.

Assumptions: The bound holds for any X and a linear branch. For the block
relu(X + gamma BN(W2 relu(BN(W1 X)))) on random X, dCKA/dlog gamma < 0 is observed, not proved; the
BN of this block has no epsilon.

Proof: Let t = ||W||_op, r = 2t + t^2, G = XX' and X = (XX')^(1/2) U. Then Gy - Gx = X M X' with
M = W + W' + W'W, -r <= M <= r, so -r Gx <= Gy - Gx <= r Gx in the order of semidefinite matrices.
-B <= A <= B implies ||A||_F <= ||B||_F, so ||Gy - Gx||_F <= r ||Gx||_F. Two vectors whose relative
distance is at most r have a cosine of at least sqrt(1 - r^2). Solve c >= sqrt(1 - r^2) for t.

Verdict: The statement is proved if no random layer violates the bound (slack >= -1e-10), CKA is 1
at W = 0, ||W||_F grows more than tenfold along the flow (integrated by LSODA) from small weights,
every BN weight is orthogonal to its gradient (1e-10), and dCKA/dlog gamma < 0 at all gammas in
significantly many seeds (one-sided sign test). It is false if the bound is violated; otherwise it
is inconclusive.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ckasr.cka import linear_cka
from theory.gaussian import generator, normal
from theory.plots import COLOURS, panels, style
from theory.result import PROVED, REFUTES, Result, at_least, at_most, decisive, judge, rejects

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAMMAS = (0.1, 0.3, 1.0)


def norm_needed(c: float) -> float:
    """Lower bound on the spectral norm of W if CKA(X, X + XW') is at most ``c``."""
    return float(np.sqrt(1 + np.sqrt(max(0.0, 1 - c * c))) - 1)


def normalised(h: Tensor) -> Tensor:
    """Batch normalisation of ``h`` (n, d) without scale, shift and epsilon."""
    return (h - h.mean(0)) / h.std(0, correction=0)


def bn_block(x: Tensor, w1: Tensor, w2: Tensor, gamma: Tensor) -> Tensor:
    """The residual block relu(x + gamma BN(relu(BN(x w1')) w2')).

    Args:
        x: input, shape (n, d).
        w1, w2: weights, shape (d, d).
        gamma: scale of the last batch normalisation.
    """
    return (x + gamma * normalised(normalised(x @ w1.T).relu() @ w2.T)).relu()


def random_layers(count: int, rng: torch.Generator) -> list[tuple[float, float]]:
    """CKA and ||W||_op of each of ``count`` random residual layers.

    In turn, W is dense, has rank one, or is close to a negative multiple of the identity.
    """
    rows = []
    for i in range(count):
        size = int(torch.randint(1, 9, (), generator=rng))
        x = normal(20, size, rng=rng) * 10 ** -torch.linspace(0, i % 4 / 2, size)
        w = normal(size, size, rng=rng)
        if i % 3 == 1:
            w = w[:, :1] @ w[:1]
        if i % 3 == 2:
            w = 0.1 * (w + w.T) - torch.eye(size)
        w *= 10 ** (2.5 * torch.rand((), generator=rng) - 2) / torch.linalg.matrix_norm(w, 2)
        value = linear_cka(x, x + (x - x.mean(0)) @ w.T, "biased")
        rows.append((float(value), float(torch.linalg.matrix_norm(w, 2))))
    return rows


def flow_from_small(rng: torch.Generator, end: float) -> dict[str, list[float]]:
    """The gradient flow of CKA(X, X + XW') from ||W||_F = 0.1 up to time ``end``, by LSODA.

    Returns:
        Time, CKA, Frobenius norm and spectral norm of W at 60 points of the flow.
    """
    from scipy.integrate import solve_ivp

    x, start = normal(40, 6, rng=rng), normal(6, 6, rng=rng)
    x = x - x.mean(0)

    def cka(w: Tensor) -> Tensor:
        return linear_cka(x, x + x @ w.T, "biased")

    gradient = torch.func.grad(cka)

    def velocity(_: float, w: np.ndarray) -> np.ndarray:
        return -gradient(torch.from_numpy(w.reshape(6, 6))).numpy().ravel()

    times = np.geomspace(0.1, end, 60)
    begin = (0.1 * start / start.norm()).numpy().ravel()
    path = solve_ivp(velocity, (0, end), begin, "LSODA", times, rtol=1e-8, atol=1e-10)
    weights = torch.from_numpy(path.y.T.copy()).unflatten(1, (6, 6))
    return {
        "time": times.tolist(),
        "cka": [float(cka(w)) for w in weights],
        "frobenius": weights.norm(dim=(1, 2)).tolist(),
        "spectral": torch.linalg.matrix_norm(weights, 2).tolist(),
    }


def bn_slopes(seed: int, block: Callable[..., Tensor]) -> tuple[list[float], float]:
    """Derivatives of the unbiased CKA of a random block and its input.

    Returns:
        dCKA_1/dlog gamma at each of `GAMMAS`, and the largest absolute cosine between a weight
        matrix and its gradient.
    """
    rng = generator(seed)
    x = normal(128, 16, rng=rng).relu()
    weights = [normal(16, 16, rng=rng).requires_grad_() for _ in range(2)]
    slopes, cosines = [], [0.0]
    for gamma in GAMMAS:
        log_gamma = torch.tensor(gamma, dtype=torch.float64).log().requires_grad_()
        value = linear_cka(x, block(x, *weights, log_gamma.exp()))
        slope, *gradients = torch.autograd.grad(value, [log_gamma, *weights])
        slopes.append(float(slope))
        cosines += [
            abs(float(torch.cosine_similarity(w.detach().ravel(), g.ravel(), 0)))
            for w, g in zip(weights, gradients, strict=True)
        ]
    return slopes, max(cosines)


def sign_test(successes: int, trials: int) -> float:
    """Probability of at least so many successes if success and failure are equally likely."""
    from scipy.stats import binom

    return float(binom.sf(successes - 1, trials, 0.5))


def check(
    fast: bool = False,
    seed: int = 0,
    bound: Callable[[float], float] = norm_needed,
    block: Callable[..., Tensor] = bn_block,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        bound: function that returns the spectral norm that a given CKA requires.
        block: residual block, a function of (x, w1, w2, gamma).
    """
    rng = generator(seed)
    cloud = random_layers(300 if fast else 20_000, rng)
    slack = at_least(
        f"smallest ||W||_op minus the bound, of {len(cloud)} layers",
        [norm - bound(c) for c, norm in cloud],
        -1e-10,
    )
    x = normal(20, 4, rng=rng)
    flow = flow_from_small(rng, 1e3 if fast else 1e5)
    seeds = 16 if fast else 100
    slopes, cosines = zip(*(bn_slopes(seed + i, block) for i in range(seeds)), strict=True)
    falling = sum(max(s) < 0 for s in slopes)
    conditions = [
        *decisive([slack]),
        at_most("1 - CKA at W = 0", abs(1 - float(linear_cka(x, x, "biased"))), 1e-12),
        at_least(
            "||W||_F at the end of the flow, relative to its initial value",
            flow["frobenius"][-1] / 0.1,
            10,
        ),
        at_most("CKA at the end of the flow", flow["cka"][-1], 0.5),
        rejects(f"dCKA/dlog gamma < 0 in {falling}/{seeds} seeds", sign_test(falling, seeds)),
        at_most("largest |cosine| of a BN weight and its gradient", cosines, 1e-10),
    ]
    grid = np.linspace(0, 1, 101).tolist()
    data = {"cloud": cloud[:1500], "grid": grid, "bound": [bound(c) for c in grid], "flow": flow}
    return judge(
        __name__,
        __doc__,
        conditions,
        verdict=PROVED,
        consequence=REFUTES,
        reason="with a skip connection, low CKA needs a large residual branch: minimising CKA "
        "makes the weights grow",
        figure=data | {"gammas": GAMMAS, "slopes": slopes},
    )


def figure(result: Result) -> "Figure":
    """Left: norm against CKA. Middle: the flow of CKA. Right: derivative of CKA in log gamma."""
    data = result.figure
    flow = data["flow"]
    drawing, (left, middle, right) = panels(3)
    left.scatter(*zip(*data["cloud"], strict=True), s=3, color="0.72", label="random layers")
    left.plot(data["grid"], data["bound"], label="needed for this CKA (proved)", **style(0))
    left.plot(flow["cka"], flow["spectral"], label=r"flow of CKA from $W \approx 0$", **style(2))
    left.set(xlabel="CKA$(X, X + XW')$, biased, n = 20 and 40", ylabel=r"$\|W\|_{op}$")
    left.set(yscale="log", ylim=(1e-2, 20))
    left.legend()
    middle.plot(flow["time"], flow["cka"], label="CKA, biased, n = 40", **style(1))
    middle.plot(flow["time"], flow["frobenius"], label=r"$\|W\|_F$", **style(2))
    middle.set(xlabel="time of the flow (1 / learning rate)", xscale="log")
    middle.legend()
    places = range(len(data["gammas"]))
    for slopes in data["slopes"]:
        right.plot(places, slopes, color=COLOURS[4], linewidth=0.6, marker=".", markersize=3)
    right.axhline(0, color="k", linewidth=1)
    right.set_xticks(places, [f"{g:g}" for g in data["gammas"]])
    right.set_xlabel(r"scale $\gamma$ of the last BN (one line per seed, n = 128)")
    right.set_ylabel(r"$d\,\mathrm{CKA}_1 / d\log\gamma$")
    return drawing
