"""Epsilon-sparsity and the continuity of the loss: what Theorems 1 and 2 of the appendix prove.

Claim: The number of weights below a small epsilon stands for sparsity (appendix, theorem 1), and
the CKA loss is continuous in the weights (appendix, theorem 2).

Statement: The CKA loss is continuous in the weights, including W = 0 (theorem 2, as printed). The
check also tests what remains of theorem 1: setting every weight below epsilon to zero changes the
output of a ReLU network by no more than a Lipschitz bound that is linear in epsilon, but the
fraction of weights below a fixed epsilon is not a property of the function that a network computes.

Assumptions: The networks are ReLU networks without biases in float64. For theorem 2, CKA is the
population CKA of X and WX.

Proof: CKA(X, tWX) does not depend on t, so its limit at t = 0 depends on the direction of W. No
value at W = 0 makes it continuous there, and its gradient grows as 1/t. Where every HSIC(K, K) > 0,
CKA is a ratio of continuous functions and therefore continuous. For theorem 1, let D_l be the part
of W_l that is set to zero. Then ||D_l||_F <= eps sqrt(k_l) for k_l weights. Replacing one layer
after the other gives ||f(x; W) - f(x; W - D)|| <=
sum_l eps sqrt(k_l) prod_{j != l} ||W_j|| ||x||, with the norms of W_j - D_j for the layers before
l. Because relu(c h) = c relu(h) for c > 0, (c W_1, W_2 / c) is the same function as (W_1, W_2).

Verdict: The statement is false (counterexample) if CKA(X, tWX) is constant in t from 1 to 1e-8
(1e-10) with limits that differ by more than .05 between two directions, t times its gradient is
constant (1e-8 relative), the Lipschitz bound is never violated (slack >= -1e-10), and rescaling
keeps the output (1e-10) while the fraction of weights below 1e-2 changes by more than .5. Otherwise
it is inconclusive.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theory.gaussian import covariance, generator, layer_cka, norm, normal
from theory.plots import panels, style
from theory.result import FALSE, REFUTES, Result, at_least, at_most, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPSILON = 1e-2


def population_cka(w: Tensor, s: Tensor) -> Tensor:
    """Population CKA of X and WX, for W (q, p) and the covariance of X (p, p)."""
    return layer_cka(w, s, torch.zeros((), dtype=s.dtype))


def output(weights: list[Tensor], x: Tensor) -> Tensor:
    """Output (n, d_out) of a ReLU network without biases for the input ``x`` (n, d_in)."""
    for w in weights[:-1]:
        x = (x @ w.T).relu()
    return x @ weights[-1].T


def zeroed(w: Tensor, epsilon: float) -> Tensor:
    """The weights, with those of absolute value below ``epsilon`` set to zero."""
    return w * (w.abs() >= epsilon)


def lipschitz_bound(weights: list[Tensor], epsilon: float) -> float:
    """Upper bound on ||f(x; W) - f(x; W - D)|| / ||x||, where D has the weights below epsilon."""
    thin = [zeroed(w, epsilon) for w in weights]
    total = 0.0
    for i, w in enumerate(weights):
        count = int((w.abs() < epsilon).sum())
        others = [torch.linalg.matrix_norm(v, 2) for v in [*thin[:i], *weights[i + 1 :]]]
        total += epsilon * count**0.5 * float(torch.stack(others).prod())
    return total


def rescaled(weights: list[Tensor], c: float) -> list[Tensor]:
    """Weights of the same function, with the first layer multiplied by ``c``."""
    return [c * weights[0], weights[1] / c, *weights[2:]]


def below(weights: list[Tensor]) -> float:
    """Fraction of all weights whose absolute value is below `EPSILON`."""
    flat = torch.cat([w.ravel() for w in weights])
    return float((flat.abs() < EPSILON).double().mean())


def check(
    fast: bool = False,
    seed: int = 0,
    loss: Callable[[Tensor, Tensor], Tensor] = population_cka,
    bound: Callable[[list[Tensor], float], float] = lipschitz_bound,
    rescale: Callable[[list[Tensor], float], list[Tensor]] = rescaled,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        loss: function of the weights of a layer and the covariance of its input.
        bound: bound on the change of the output, like `lipschitz_bound`.
        rescale: function that rescales the weights of a network, like `rescaled`.
    """
    rng = generator(seed)
    s = covariance(size=6, rng=rng)
    directions = normal(2, 4, 6, rng=rng)
    directions[1] = directions[1, :, :1] * torch.linalg.eigh(s)[1][:, 0]
    shrink = torch.logspace(0, -8, 33, dtype=torch.float64)
    paths = torch.stack([torch.stack([loss(t * w, s) for t in shrink]) for w in directions])
    jump = (paths[0, -1] - paths[1, -1]).abs()
    gradient = torch.func.grad(loss)
    slopes = torch.stack([t * norm(gradient(t * directions[0], s)) for t in shrink])

    epsilons, slacks, change, allowed = torch.logspace(-3, 0, 9).tolist(), [], [], []
    for _ in range(20 if fast else 300):
        weights = [normal(24, 24, rng=rng) / 5 for _ in range(3)]
        x = normal(50, 24, rng=rng)
        for epsilon in epsilons:
            moved = output(weights, x) - output([zeroed(w, epsilon) for w in weights], x)
            change.append(float((moved.norm(dim=1) / x.norm(dim=1)).max()))
            allowed.append(bound(weights, epsilon))
            slacks.append(allowed[-1] - change[-1])
    scales = torch.logspace(0, -3, 13).tolist()
    twins = [rescale(weights, c) for c in scales]
    same = [float((output(w, x) - output(weights, x)).abs().max()) for w in twins]
    shares = [below(w[:1]) for w in twins]
    conditions = [
        at_most("range of CKA(X, tWX) over t", paths.max(1).values - paths.min(1).values, 1e-10),
        at_least("difference of the limits of CKA at W = 0 along two directions", jump, 0.05),
        at_most("relative range of t ||grad|| over t", slopes.max() / slopes.min() - 1, 1e-8),
        at_least("smallest Lipschitz bound minus change of the output", slacks, -1e-10),
        at_most("change of the output by rescaling", same, 1e-10),
        at_least(
            "change of the fraction below 1e-2 by rescaling", abs(shares[-1] - shares[0]), 0.5
        ),
    ]
    return judge(
        __name__,
        __doc__,
        conditions,
        verdict=FALSE,
        consequence=REFUTES,
        reason="CKA(X, tWX) is constant in t, so its limit at W = 0 depends on the direction of W; "
        "the number of |w| < epsilon depends on the scale of the layers, not on zeros",
        figure={"shrink": shrink, "paths": paths, "slopes": slopes, "epsilons": epsilons,
                "change": change[-9:], "allowed": allowed[-9:], "scales": scales,
                "shares": shares},
    )  # fmt: skip


def figure(result: Result) -> "Figure":
    """Left: CKA near W = 0. Middle: the Lipschitz bound. Right: weights below epsilon."""
    data = result.figure
    drawing, (left, middle, right) = panels(3)
    for i, (path, label) in enumerate(
        zip(data["paths"], ("random direction", "least-variance direction"), strict=True)
    ):
        left.semilogx(data["shrink"], path, label=f"CKA$(X, tWX)$, {label}", **style(i))
    left.invert_xaxis()
    left.set(xlabel=r"scale t of the weights ($\rightarrow$ 0)", ylabel="CKA, population")
    left.set_ylim(0, 1)
    middle.loglog(data["epsilons"], data["allowed"], label="Lipschitz bound", **style(0))
    middle.loglog(data["epsilons"], data["change"], label="measured", **style(1, marker=True))
    middle.set(xlabel=r"$\epsilon$, weights of sd 0.2", ylabel=r"change of the output / $\|x\|$")
    right.semilogx(data["scales"], data["shares"], **style(2, marker=True), label="first layer")
    right.invert_xaxis()
    right.set(xlabel="c: first layer times c, second / c (same function)", ylim=(0, 1.05))
    right.set_ylabel("fraction of weights with |w| < 0.01")
    for axis in (left, middle, right):
        axis.legend()
    return drawing
