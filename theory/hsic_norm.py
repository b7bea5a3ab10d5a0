"""Minimising *unnormalised* HSIC shrinks the weights, as the paper claims for CKA.

Claim: Minimising CKA-SR drives X'WX, and therefore ||W||_F^2, toward zero. (Lemma 1 of the appendix
refers to the distance between X'Y and the zero matrix. The step to ||W||_F^2 is inferred; it drops
the denominator of CKA.)

Statement: For a linear layer Y = WX the population HSIC is ||WS||_F^2. It lies between
l_min^2 ||W||^2 and l_max^2 ||W||^2, and its gradient flow is W(t) = W0 exp(-2 S^2 t), therefore
||W|| -> 0. With noise of standard deviation s, HSIC bounds the mutual information:
ln(1 + HSIC/(s^2 l_max))/2 <= I <= HSIC/(2 s^2 l_min). The same bounds hold with l_max ||W||^2 in
place of HSIC/l_min and l_min ||W||^2 in place of HSIC/l_max.

Assumptions: There is one linear layer, and the covariance S > 0 of its input is fixed and has
eigenvalues from l_min to l_max. The bounds on I also require Gaussian X and fixed isotropic
Gaussian noise of standard deviation s.

Proof: ||WS||^2 = tr(W S^2 W') and l_min^2 <= S^2 <= l_max^2. The gradient is 2 W S^2, so the flow
dW/dt = -grad HSIC is linear. With N = W S W': I = ln det(1 + N/s^2)/2 <= tr N/(2 s^2) because
ln(1+x) <= x, and I >= ln(1 + tr N/s^2)/2 because prod(1 + n_i) >= 1 + sum n_i. Finally,
l_min tr N <= HSIC <= l_max tr N and l_min ||W||^2 <= tr N <= l_max ||W||^2.

Verdict: The statement is proved if no model violates a bound (relative slack >= -1e-10), sample
HSIC equals the formula on the empirical covariance (1e-10), and an ODE solver reproduces the closed
form of the flow (1e-6). Otherwise it is false. It qualifies the claim: the claim is true for HSIC,
while the gradient flow of CKA, which is integrated too, keeps ||W|| (theory/scale_invariance.py).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from theory.result import PROVED, QUALIFIES, Result, at_least, at_most, decisive, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray


def hsic_of(W: Array, S: Array) -> float:
    """Population HSIC (linear kernels) of X and WX, for W (q, p) and the covariance S (p, p)."""
    return float(np.sum((W @ S) ** 2))


def flow_of(W0: Array, S: Array, t: float) -> Array:
    """The weights (q, p) at time t of the gradient flow of HSIC from W0, for the covariance S."""
    values, vectors = np.linalg.eigh(S)
    return W0 @ (vectors * np.exp(-2 * values**2 * t)) @ vectors.T


def bounds_of(hsic: float, norm2: float, low: float, high: float, s2: float) -> dict[str, tuple]:
    """Lower and upper bounds on ||W||^2 and on the mutual information I in nats.

    Args:
        hsic: population HSIC of the layer.
        norm2: ||W||_F^2.
        low, high: smallest and largest eigenvalue of the covariance of X.
        s2: variance of the noise.

    Returns:
        Pairs (lower, upper): ``"norm"`` bounds ||W||^2, the other two bound I.
    """
    return {
        "norm": (hsic / high**2, hsic / low**2),
        "I by HSIC": (0.5 * np.log1p(hsic / (s2 * high)), hsic / (2 * s2 * low)),
        "I by norm": (0.5 * np.log1p(low * norm2 / s2), high * norm2 / (2 * s2)),
    }


def _cka_gradient(W: Array, S: Array) -> Array:
    """Gradient of the population CKA(X, WX) in W."""
    N = W @ S @ W.T
    top, norms = hsic_of(W, S), np.linalg.norm(S) * np.linalg.norm(N)
    return 2 * W @ S @ S / norms - 2 * top / norms * (N @ W @ S) / np.linalg.norm(N) ** 2


def _information(W: Array, S: Array, s2: float) -> float:
    """I(X; WX + noise) in nats, from singular values, which avoids cancellation at small I."""
    return 0.5 * np.log1p(np.linalg.svd(W @ np.linalg.cholesky(S))[1] ** 2 / s2).sum()


def _sandwich(rng: np.random.Generator, S: Array, bounds: Callable[..., dict]) -> dict[str, Array]:
    """HSIC, I and its two bounds for 300 random layers on one input, noise variance 1."""
    rows = []
    low, high = S.diagonal().min(), S.diagonal().max()
    for scale in np.geomspace(0.03, 30, 300):
        W = scale * rng.normal(size=(5, len(S))) * rng.uniform(size=len(S)) ** 4
        lower, upper = bounds(hsic_of(W, S), 1.0, low, high, 1.0)["I by HSIC"]
        rows.append((hsic_of(W, S), _information(W, S, 1.0), lower, upper))
    return dict(zip(("hsic", "information", "lower", "upper"), np.array(rows).T, strict=True))


def _slacks(rng: np.random.Generator, models: int, bounds: Callable[..., dict]) -> Array:
    """Smallest relative slack of each bound, for random layers of random sizes and scales."""
    slacks = []
    for _ in range(models):
        p, q = rng.integers(1, 9, size=2)
        root = rng.normal(size=(p, p + 1)) * 10 ** rng.uniform(-1, 1)
        S, W = root @ root.T / p, rng.normal(size=(q, p)) * 10 ** rng.uniform(-2, 2)
        s2, (low, *_, high) = 10 ** rng.uniform(-2, 2), np.linalg.eigvalsh(S)[[0, -1]]
        norm2 = float(np.sum(W**2))
        information = _information(W, S, s2)
        for name, (lower, upper) in bounds(hsic_of(W, S), norm2, low, high, s2).items():
            value = norm2 if name == "norm" else information
            slacks.append(min(1 - lower / value, 1 - value / upper))
    return np.array(slacks)


def _sample_error(rng: np.random.Generator, formula: Callable[[Array, Array], float]) -> float:
    """Relative difference of ckasr's biased HSIC and the formula on the sample covariance."""
    import torch

    from ckasr.cka import gram_linear, hsic

    x, W = torch.from_numpy(rng.normal(size=(50, 6))), rng.normal(size=(4, 6))
    measured = hsic(gram_linear(x), gram_linear(x @ torch.from_numpy(W).T), "biased").item()
    return abs(measured / formula(W, np.cov(x.numpy().T)) - 1)


def check(
    fast: bool = False,
    seed: int = 0,
    hsic: Callable[[Array, Array], float] = hsic_of,
    flow: Callable[[Array, Array, float], Array] = flow_of,
    bounds: Callable[..., dict[str, tuple]] = bounds_of,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        hsic: formula of the population HSIC, like `hsic_of`.
        flow: closed form of the gradient flow of HSIC, like `flow_of`.
        bounds: formulas of the bounds, like `bounds_of`.
    """
    from scipy.integrate import solve_ivp

    rng = np.random.default_rng(seed)
    slacks = _slacks(rng, 500 if fast else 10_000, bounds)
    S, W0 = np.diag(np.geomspace(0.3, 1.0, 6)), rng.normal(size=(5, 6)) / np.sqrt(6)
    times = np.linspace(0, 12, 61)
    paths = {}
    for name, gradient in (
        ("HSIC", lambda W: 2 * W @ S @ S),
        ("CKA", lambda W: _cka_gradient(W, S)),
    ):
        path = solve_ivp(
            lambda _, w, g=gradient: -g(w.reshape(W0.shape)).ravel(),
            (0, times[-1]), W0.ravel(), "LSODA", times, rtol=1e-10, atol=1e-12,
        )  # fmt: skip
        paths[name] = path.y.T.reshape(-1, *W0.shape)
    closed = np.stack([flow(W0, S, t) for t in times])
    norms = {name: np.linalg.norm(path, axis=(1, 2)) for name, path in paths.items()}
    conditions = [
        at_least(f"smallest relative slack of {len(slacks)} bounds", slacks.min(), -1e-10),
        at_most("relative difference of sample HSIC and ||WS||^2", _sample_error(rng, hsic), 1e-10),
        at_most(
            "largest difference of LSODA and W0 exp(-2 S^2 t)",
            np.abs(paths["HSIC"] - closed).max(),
            1e-6,
        ),
        at_most(
            "||W|| at the end of the HSIC flow, relative to its initial value",
            norms["HSIC"][-1] / norms["HSIC"][0],
            0.2,
        ),
    ]
    data: dict[str, Any] = {"times": times, "norms": norms, "sandwich": _sandwich(rng, S, bounds)}
    data["bound"] = [norms["HSIC"][0] * np.exp(-2 * f**2 * times) for f in (S.max(), S[0, 0])]
    return judge(
        __name__,
        __doc__,
        decisive(conditions),
        verdict=PROVED,
        consequence=QUALIFIES,
        reason="||W|| -> 0 along the flow of HSIC, which is CKA without its denominator; the flow "
        "of CKA keeps ||W||",
        figure=data,
    )


def figure(result: Result) -> "Figure":
    """||W|| along both flows, and I against HSIC, each with its bounds."""
    from theory.plots import panels, style

    data = result.figure
    fig, (left, right) = panels(2)
    left.fill_between(data["times"], *data["bound"], color="0.85", label="bounds of the HSIC flow")
    for i, (name, values) in enumerate(data["norms"].items()):
        left.plot(data["times"], values, **style(i), label=f"gradient flow of {name}")
    left.set(xlabel="time of the flow (1 / learning rate)", ylabel=r"$\|W(t)\|_F$", yscale="log")
    left.set_ylim(1e-2, 4)
    left.legend(loc="lower left")
    cloud = data["sandwich"]
    right.loglog(cloud["hsic"], cloud["information"], "k.", markersize=3, label="random layers")
    right.loglog(np.sort(cloud["hsic"]), np.sort(cloud["upper"]), **style(2), label="upper bound")
    right.loglog(np.sort(cloud["hsic"]), np.sort(cloud["lower"]), **style(1), label="lower bound")
    right.set(xlabel=r"population HSIC$(X, WX)$, noise variance 1", ylabel="$I$ (nats, analytic)")
    right.legend()
    return fig
