"""One linear layer with noise: along the gradient flow of CKA both claims of the paper hold.

Claim: Minimising CKA-SR minimises mutual information, and shrinks ||W||_F^2 (appendix, Lemmas 1
and 2; summary of the main text).

Statement: Let Y = WX + e. Along dW/dt = -grad CKA(X, Y), I(X; Y) never increases, and
d||W||_F^2/dt = -4 CKA tr(D R) / ||D||_F^2 < 0, where D = W S W' + R.

Assumptions: There is one linear layer. X ~ N(0, S) with S nonsingular, and e ~ N(0, R), where R is
any fixed covariance that is not trained. Time is continuous. (Finite steps can raise I; the check
reports how often they do.)

Proof: With A = W S^1/2 and P = A' D^-1 A: <grad I, grad log CKA> =
2 [tr(P S^2) / tr(A S A') - tr(A S A') / ||D||^2], and the Cauchy-Schwarz inequality for D^-1/2 and
D^1/2 gives tr(A S A')^2 <= tr(S A' D^-1 A S) tr(A' D A) with tr(A' D A) = tr(A A' D) <= ||D||^2.
For the norm, CKA depends on the scale of W only through R, and d log CKA(cW)/dc at c = 1 is
2 tr(D R) / ||D||^2.

Verdict: The statement is proved if no cosine of grad I and grad CKA is below -1e-8 over random
layers, autograd agrees with both formulas to 1e-8, and I and ||W||^2 rise by at most 1e-9 along
every integrated flow. Otherwise it is false.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from theory import gaussian as g
from theory.plots import panels, style
from theory.result import PROVED, QUALIFIES, Result, at_least, at_most, decisive, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def inner_product(w: Tensor, s: Tensor, r: Tensor) -> Tensor:
    """Inner product <grad I, grad log CKA> by its closed form, shape (...).

    Args:
        w: weights, shape (..., q, p).
        s: covariance of X, shape (..., p, p).
        r: covariance of the noise, shape (..., q, q).
    """
    d = w @ s @ w.mT + r
    power = g.trace(w @ s @ s @ w.mT)
    kept = g.trace(s @ w.mT @ torch.linalg.solve(d, w) @ s @ s)
    return 2 * (kept / power - power / g.norm(d).square())


def norm_rate(w: Tensor, s: Tensor, r: Tensor) -> Tensor:
    """d||W||_F^2/dt along the gradient flow of CKA, for (W, S, R) with batch dimensions (...)."""
    d = w @ s @ w.mT + r
    return -4 * g.layer_cka(w, s, r) * g.trace(d @ r) / g.norm(d).square()


def gradient(function: Layer, w: Tensor, s: Tensor, r: Tensor) -> Tensor:
    """Gradient in ``w`` of a function of (W, S, R); the batch elements do not interact."""
    w = w.detach().requires_grad_()
    return torch.autograd.grad(function(w, s, r).sum(), w)[0]


def random_layers(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random W (count, 3, 4), S (count, 4, 4) and R (count, 3, 3).

    In the first half the noise is isotropic.
    """
    s, r = (g.covariance(count, size=k, rng=rng, condition=100.0) for k in (4, 3))
    r[: count // 2] = torch.eye(3).double()
    levels = 10 ** (3 * torch.rand(2, count, 1, 1, generator=rng, dtype=torch.float64) - 2)
    return levels[0] * g.normal(count, 3, 4, rng=rng), s, levels[1] * r


def flow(w: Tensor, s: Tensor, r: Tensor, similarity: Layer, times: np.ndarray) -> Tensor:
    """Solution W(t) of dW/dt = -grad similarity, integrated by LSODA.

    Args:
        w: weights at the first time, shape (q, p).
        s, r: covariances of X and of the noise.
        similarity: function of (W, S, R) that the flow minimises.
        times: times, in increasing order.

    Returns:
        The weights at these times, shape (len(times), q, p).
    """
    from scipy.integrate import solve_ivp

    def right_hand_side(_: float, flat: np.ndarray) -> np.ndarray:
        return -gradient(similarity, torch.tensor(flat).reshape(w.shape), s, r).numpy().ravel()

    start = w.detach().numpy().ravel()
    span = (times[0], times[-1])
    solution = solve_ivp(right_hand_side, span, start, "LSODA", t_eval=times, rtol=1e-9, atol=1e-12)
    return torch.tensor(solution.y.T).reshape(-1, *w.shape)


def share_raised(layers: tuple[Tensor, Tensor, Tensor], rate: float, steps: int) -> float:
    """Fraction of the layers whose I rises in at least one of the first ``steps`` steps.

    The steps are those of gradient descent on CKA with learning rate ``rate``.
    """
    w, s, r = layers
    nats, raised = g.layer_information(w, s, r), torch.zeros(len(w), dtype=torch.bool)
    for _ in range(steps):
        w = w - rate * gradient(g.layer_cka, w, s, r)
        before, nats = nats, g.layer_information(w, s, r)
        raised |= nats > before + 1e-9
    return float(raised.double().mean())


def check(
    fast: bool = False,
    seed: int = 0,
    similarity: Layer = g.layer_cka,
    inner: Layer = inner_product,
    rate: Layer = norm_rate,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        similarity: function of (W, S, R) that the flow minimises.
        inner: closed form of <grad I, grad log CKA>, a function of (W, S, R).
        rate: closed form of d||W||_F^2/dt, a function of (W, S, R).
    """
    rng = g.generator(seed)
    w, s, r = random_layers(1000 if fast else 5000, rng)
    down, nats = gradient(similarity, w, s, r), gradient(g.layer_information, w, s, r)
    product = (down * nats).sum((-2, -1))
    sizes = g.norm(down) * g.norm(nats)
    value = similarity(w, s, r)
    measured = -2 * (w * down).sum((-2, -1))
    predicted = rate(w, s, r)

    times = np.concatenate([[0.0], np.logspace(-2, 3, 60)])
    curves, rises = [], []
    flows = 6 if fast else 60
    spread = value.argsort(descending=True)[:: len(value) // flows][:flows].tolist()
    for k in spread:  # from high to low CKA
        path = flow(w[k], s[k], r[k], similarity, times)
        trajectory = [f(path, s[k], r[k]) for f in (similarity, g.layer_information)] + [
            g.norm(path).square()
        ]
        rises.append([float(values.diff().max()) for values in trajectory[1:]])
        curves.append([values.tolist() for values in trajectory])
    rates = [0.001, 0.01, 0.1, 1.0]
    finite = [share_raised((w, s, r), rate, 20 if fast else 100) for rate in rates]
    conditions = [
        at_least("smallest cosine of grad I and grad CKA", product / sizes, -1e-8),
        at_most(
            "largest relative error of the formula of <grad I, grad CKA>",
            (product - value * inner(w, s, r)).abs() / sizes,
            1e-8,
        ),
        at_most(
            "largest relative error of the formula of d||W||^2/dt",
            (measured - predicted).abs() / (g.norm(w) * g.norm(down)),
            1e-8,
        ),
        at_most("largest d||W||^2/dt", predicted, 0),
        at_most("largest rise of I along a flow, nats", [rise[0] for rise in rises], 1e-9),
        at_most("largest rise of ||W||^2 along a flow", [rise[1] for rise in rises], 1e-9),
    ]
    return judge(
        __name__,
        __doc__,
        decisive(conditions),
        verdict=PROVED,
        consequence=QUALIFIES,
        reason="the CKA flow lowers I and ||W|| in one noisy linear layer, the only such case that "
        f"was found; finite steps of 0.1 raise I in {finite[2]:.0%} of layers",
        figure={
            "rates": rates,
            "finite": finite,
            "times": times,
            "curves": curves[: flows * 3 // 4 : flows // 6],
        },
    )


def figure(result: Result) -> "Figure":
    """CKA, I and ||W||^2 along several flows, and how often finite steps raise I."""
    data = result.figure
    drawing, axes = panels(2, rows=2)
    labels = ["population CKA", "I(X; Y) / its initial value", "||W||$_F^2$ / its initial value"]
    for axis, label, part in zip(axes[:3], labels, range(3), strict=True):
        for i, curve in enumerate(data["curves"]):
            values = np.array(curve[part])
            scaled = values / values[0] if part else values
            name = f"from CKA {curve[0][0]:.2f}"
            axis.semilogx(data["times"][1:], scaled[1:], label=name, **style(i))
        axis.set_xlabel("time of the flow dW/dt = −∇CKA")
        axis.set_ylabel(label)
    axes[2].legend(fontsize=8)
    axes[3].semilogx(data["rates"], data["finite"], **style(0, marker=True))
    axes[3].set_ylim(0, 1)
    axes[3].set_xlabel("step size of gradient descent on CKA")
    axes[3].set_ylabel("fraction of layers where a step raises I")
    return drawing
