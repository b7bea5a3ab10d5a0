"""More than one layer (Theorem 3): lowering the sum of CKA can raise the sum of mutual information.

Claim: Minimising the sum of CKA over pairs of layers is equivalent to minimising the sum of their
mutual information (appendix, Theorem 3, from Lemma 2 pair by pair).

Statement: In a network of two noisy linear layers X -> Z1 -> Z2, gradient descent on the sum of
CKA(X,Z1), CKA(Z1,Z2) and CKA(X,Z2) never raises the sum of the three I. Descent on CKA(Z1,Z2), a
pair of hidden layers and the only kind of pair in the official code, never raises I(X;Z1) either.

Assumptions: Z1 = W1 X + e1, Z2 = W2 Z1 + e2, X ~ N(0, S), the noise is isotropic and fixed, and
time is continuous. For a single layer, the claim is true in this setting (noisy_gradient_flow).

Proof: The statement is refuted by counterexamples. They are found by gradient descent over (W1, W2)
on the cosine of the two gradients, and confirmed by integrating the flow from there. The mechanism
is that CKA(Z1,Z2) falls if W1 adds variance to Z1 in directions on which W2 does not depend. As a
control, the same search must not find a counterexample for CKA(X,Z1) and I(X;Z1), where the
statement is a theorem.

Verdict: The statement is false if for the sum and for the hidden pair a network with cosine below
-0.1 is found, the flow from it lowers CKA and raises I by more than 0.1 nats, and the cosine of the
control stays above -1e-8. Otherwise it is inconclusive. The fraction of random networks that
violate the statement is reported with a 99 % interval.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from theory import gaussian as g
from theory.plots import panels, style
from theory.result import FALSE, REFUTES, Result, at_least, at_most, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Net = tuple[Tensor, Tensor, Tensor, Tensor]
Values = dict[str, Tensor]
PAIRS = ("X,Z1", "Z1,Z2", "X,Z2", "sum")
SEARCHES = {"sum": ("sum", "sum"), "hidden": ("Z1,Z2", "X,Z1"), "control": ("X,Z1", "X,Z1")}


def pair_values(w1: Tensor, w2: Tensor, s: Tensor, noise: Tensor) -> tuple[Values, Values]:
    """CKA and mutual information (in nats) of the three pairs, and their sums.

    Args:
        w1, w2: weights, shapes (..., h, p) and (..., q, h).
        s: covariance of X, shape (..., p, p).
        noise: variance of the noise, a scalar or a tensor of shape (..., 1, 1).

    Returns:
        Two dicts with the keys `PAIRS` and values of shape (...).
    """
    e1, e2 = (noise * torch.eye(w.shape[-2], dtype=w.dtype) for w in (w1, w2))
    s1 = w1 @ s @ w1.mT + e1
    s2 = w2 @ s1 @ w2.mT + e2
    log = torch.logdet
    both = (
        [g.cka(s @ w1.mT, s, s1), g.cka(s1 @ w2.mT, s1, s2), g.cka(s @ w1.mT @ w2.mT, s, s2)],
        [log(s1) - log(e1), log(s2) - log(e2), log(s2) - log(w2 @ e1 @ w2.mT + e2)],
    )
    cka, nats = both[0], [value / 2 for value in both[1]]
    return tuple(dict(zip(PAIRS, [*v, sum(v)], strict=True)) for v in (cka, nats))


def random_nets(count: int, size: int, seed: int) -> Net:
    """Random networks (W1, W2, S, noise).

    The weights are Gaussian, the condition number of S is at most 30, and the variance of the noise
    lies between 10^-2.5 and 10^0.5. The matrices have shape (count, size, size).
    """
    rng = g.generator(seed)
    w1, w2 = (g.normal(count, size, size, rng=rng) / size**0.5 for _ in range(2))
    s = g.covariance(count, size=size, rng=rng, condition=30.0)
    power = torch.rand(count, 1, 1, generator=rng, dtype=torch.float64)
    return w1, w2, s, 10 ** (3 * power - 2.5)


def cosine(net: Net, values: Callable, cka: str, nats: str, graph: bool = False) -> Tensor:
    """Cosine of the gradients in (W1, W2) of one CKA and one I; negative if descent raises I.

    Args:
        net: networks, see `random_nets`.
        values: function that returns CKA and mutual information, like `pair_values`.
        cka, nats: the pairs, one of `PAIRS` each.
        graph: whether the cosine itself must be differentiable.

    Returns:
        A tensor of shape (count,).
    """
    w = [net[0].requires_grad_(), net[1].requires_grad_()]
    similarities, informations = values(*net)
    flat = []
    for value in (similarities[cka], informations[nats]):
        grads = torch.autograd.grad(
            value.sum(), w, retain_graph=True, create_graph=graph, materialize_grads=True
        )
        flat.append(torch.cat([x.flatten(1) for x in grads], 1))
    return torch.cosine_similarity(*flat, dim=1)


def search(values: Callable, cka: str, nats: str, nets: int, steps: int, seed: int) -> tuple:
    """Minimise the cosine by gradient descent from ``nets`` random networks.

    Returns:
        The network with the lowest cosine, and that cosine.
    """
    net = random_nets(nets, 3, seed)
    for _ in range(steps):
        value = cosine(net, values, cka, nats, graph=True).sum()
        for w, slope in zip(
            net, torch.autograd.grad(value, net[:2], materialize_grads=True), strict=False
        ):
            w.data -= 0.1 * slope / (g.norm(slope)[:, None, None] + 1e-12)
    found = cosine(net, values, cka, nats).nan_to_num(1.0)
    worst = int(found.argmin())
    return tuple(part[worst : worst + 1].detach() for part in net), float(found[worst])


def descend(
    net: Net, values: Callable, cka: str, nats: str, times: np.ndarray
) -> list[list[float]]:
    """Values of CKA and I at ``times`` along the gradient flow of CKA from ``net``, by LSODA."""
    from scipy.integrate import solve_ivp

    shape, rest = net[0].shape, net[2:]

    def weights(flat: np.ndarray) -> list[Tensor]:
        return [torch.tensor(half).reshape(shape).requires_grad_() for half in np.split(flat, 2)]

    def right_hand_side(_: float, flat: np.ndarray) -> np.ndarray:
        w = weights(flat)
        grads = torch.autograd.grad(values(*w, *rest)[0][cka].sum(), w, materialize_grads=True)
        return -torch.cat([x.flatten() for x in grads]).numpy()

    start = torch.cat([w.flatten() for w in net[:2]]).numpy()
    solution = solve_ivp(
        right_hand_side, (0, times[-1]), start, "LSODA", t_eval=times, rtol=1e-6, atol=1e-9
    )
    both = [values(*weights(y), *rest) for y in solution.y.T]
    return [[c[cka].item() for c, _ in both], [i[nats].item() for _, i in both]]


def check(fast: bool = False, seed: int = 0, values: Callable = pair_values) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        values: function that returns CKA and mutual information, like `pair_values`.
    """
    from scipy.stats import binomtest

    count = 500 if fast else 2000
    nets = random_nets(count, 4, seed)
    shares, highs = [], []
    for cka in PAIRS:
        found = [cosine(nets, values, cka, nats) for nats in PAIRS]
        failures = [int((c < -1e-8).sum()) for c in found]
        shares.append([k / count for k in failures])
        limits = [binomtest(k, count).proportion_ci(0.99).high for k in failures]
        highs.append([float(high) for high in limits])

    conditions, curves, worst = [], {}, {}
    times = np.concatenate([[0.0], np.logspace(-2, 2, 80)])
    for name, (cka, nats) in SEARCHES.items():
        size = (40, 80) if fast else (300, 300)
        net, worst[name] = search(values, cka, nats, *size, seed)
        pair = f"CKA({cka}) against I({nats})"
        if name == "control":
            conditions.append(
                at_least(f"control, {pair}, cosine of the gradients", worst[name], -1e-8)
            )
            continue
        curves[name] = descend(net, values, cka, nats, times)
        fall, rise = (
            np.ptp(curve[: 1 + int(np.argmax(curves[name][1]))]) for curve in curves[name]
        )
        conditions += [
            at_most(f"{pair}, cosine of the gradients", worst[name], -0.1),
            at_least(f"{pair}, fall of CKA while I rises", fall, 1e-3),
            at_least(f"{pair}, rise of I along the flow, nats", rise, 0.1),
        ]
    return judge(
        __name__,
        __doc__,
        conditions,
        verdict=FALSE,
        consequence=REFUTES,
        reason="there are networks where descent on CKA raises I (cosine of the gradients "
        f"{worst['sum']:.2f} for the sums, {worst['hidden']:.2f} for hidden pairs); among random "
        f"networks this holds for {shares[3][3]:.1%} and {shares[1][0]:.1%}",
        figure={"shares": shares, "highs": highs, "count": count, "times": times, "curves": curves},
    )


def figure(result: Result) -> "Figure":
    """Left: how often descent on CKA raises I. Middle and right: the two counterexamples."""
    data = result.figure
    drawing, (left, middle, right) = panels(3, width=4.0)
    left.grid(False)
    left.imshow(data["shares"], cmap="Greys", vmin=0, vmax=1)
    for row, (shares, highs) in enumerate(zip(data["shares"], data["highs"], strict=True)):
        for column, (share, high) in enumerate(zip(shares, highs, strict=True)):
            text, colour = f"{share:.3f}\n< {high:.3f}", "white" if share > 0.5 else "black"
            left.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    left.set_xticks(range(4), [f"I({p})" for p in PAIRS], fontsize=8)
    left.set_yticks(range(4), [f"CKA({p})" for p in PAIRS], fontsize=8)
    left.set_title(
        f"fraction of {data['count']} random networks where\n"
        "descent on CKA raises I; below: 99 % upper limit",
        fontsize=9,
    )
    titles = {"sum": "sums over all pairs", "hidden": "CKA(Z1,Z2) and I(X;Z1)"}
    for axis, (name, title) in zip((middle, right), titles.items(), strict=True):
        cka, nats = data["curves"][name]
        axis.plot(cka, nats, **style(0))
        axis.plot(cka[0], nats[0], "o", color="black", markerfacecolor="white", label="start")
        axis.plot(cka[-1], nats[-1], "s", color="black", label="end")
        axis.set_xlabel("population CKA (decreases with time)")
        axis.set_ylabel("I in nats, analytic")
        axis.set_title(f"counterexample: {title}", fontsize=9)
        axis.legend()
    return drawing
