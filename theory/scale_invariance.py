"""The gradient of CKA does not change the norm of the weights; its noise, with weight decay, does.

Claim: Minimising CKA-SR shrinks ||W||_F^2, whereby weights concentrate at 0 and sparsity rises
(summary of the main text; the appendix's step from "the distance of X'f(X) and 0" drops the
denominator of CKA).

Statement: Where the features are proportional to the scale of a layer's weights,
<W, grad_W sum CKA> = 0. Therefore the gradient flow keeps ||W||_F, gradient descent has
||W_T||^2 = ||W_0||^2 + sum eta^2 ||g_t||^2, and SGD with weight decay lambda reaches an equilibrium
at ||W||^4 = eta beta^2 <||W||^2 ||g||^2> / (2 lambda), which grows with beta.

Assumptions: The layers are homogeneous: linear layers (with or without bias, because features are
centred), ReLU networks without biases (with biases, if one scale multiplies the weights and biases
of the layer), or layers followed by batch normalisation (separately for each filter). Layers with
tanh are not homogeneous. The equilibrium is exact to first order in eta lambda.

Proof: Features f(cW) = c f(W) have the same CKA for every c > 0. Differentiating at c = 1 gives
<W, g> = 0. The gradient g is then orthogonal to W, so the squares of the norms of W and eta g add.
With weight decay, ||W||^2 changes by -2 eta lambda ||W||^2 + eta^2 beta^2 ||g||^2 per step, and
||g|| is proportional to 1 / ||W|| by homogeneity.

Verdict: The statement is proved if every inner product is below 1e-10, the growth of ||W||^2 agrees
to 1e-6 for learning rates from 1 to 0.001, and the time average of ||W||^2 is within 5 % of the
formula for each beta. Otherwise it is false.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import relu

from ckasr.cka import center
from theory import gaussian as g
from theory.plots import panels, style
from theory.result import PROVED, REFUTES, Result, at_most, decisive, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Similarity = Callable[[Tensor, Tensor], Tensor]
BETAS = (0.25, 1.0, 4.0)


def cka_1(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased CKA of features ``x`` (..., n, d1) and ``y`` (..., n, d2), shape (...)."""
    a, b = (center(z @ z.mT, "unbiased") for z in (x, y))
    return (a * b).sum((-2, -1)) / (g.norm(a) * g.norm(b))


def added_growth(rate: float, gradients: Tensor) -> Tensor:
    """||W_T||^2 - ||W_0||^2 of gradient descent.

    Args:
        rate: learning rate.
        gradients: squared norms of the gradients of all steps.
    """
    return rate**2 * gradients.sum()


def equilibrium(rate: float, beta: float, decay: float, squares: float) -> float:
    """||W||^2 of SGD with weight decay at the equilibrium.

    Args:
        rate: learning rate.
        beta: strength of the term.
        decay: weight decay.
        squares: mean of ||W||^2 ||g||^2, where g is the gradient for beta = 1.
    """
    return float(np.sqrt(rate * beta**2 * squares / (2 * decay)))


def forward(kind: str, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list:
    """The input (n, 6) and the features of every layer.

    Args:
        kind: ``"linear + bias"``, ``"ReLU"``, ``"batch norm"``, ``"ReLU + bias"`` or ``"tanh"``.
        x: input.
        weights: one matrix per layer.
        biases: one vector per layer; used by the kinds with bias only.
    """
    features = [x]
    for w, b in zip(weights, biases, strict=True):
        z = features[-1] @ w.T
        if kind == "batch norm":
            z = relu((z - z.mean(0)) / z.std(0, correction=0))
        elif kind == "linear + bias":
            z = z + b
        elif kind == "tanh":
            z = torch.tanh(z)
        else:
            z = relu(z + b if kind == "ReLU + bias" else z)
        features.append(z)
    return features


def radial(kind: str, similarity: Similarity, seed: int) -> float:
    """Largest |<W, grad>| over the layers of a small random network.

    With batch normalisation the inner products are those of single rows. With ReLU and biases there
    is one layer, and its weights and biases are one vector.
    """
    rng = g.generator(seed)
    x = g.normal(16, 6, rng=rng)
    weights = [g.normal(6, 6, rng=rng).requires_grad_() for _ in range(3)]
    biases = [0.3 * g.normal(6, rng=rng).requires_grad_() for _ in range(3)]
    depth = 1 if kind == "ReLU + bias" else 3
    features = forward(kind, x, weights[:depth], biases[:depth])
    total = sum(similarity(a, b) for a, b in itertools.combinations(features, 2))
    parameters = [*weights[:depth], *biases[:depth]]
    grads = torch.autograd.grad(total, parameters, materialize_grads=True)
    products = [(p * d).detach() for p, d in zip(parameters, grads, strict=True)]
    if kind == "ReLU + bias":
        return float(abs(products[0].sum() + products[1].sum()))
    if kind == "batch norm":
        return float(max(p.sum(1).abs().max() for p in products[:depth]))
    return float(max(abs(p.sum()) for p in products[:depth]))


def descend(similarity: Similarity, rate: float, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Growth of ||W||^2 in full-batch gradient descent, and the squared norms of the gradients.

    Returns:
        A scalar and a tensor of shape (steps,).
    """
    rng = g.generator(seed)
    x, w = g.normal(64, 8, rng=rng) @ g.root(g.covariance(size=8, rng=rng)), g.normal(8, 8, rng=rng)
    start, squares = w.square().sum(), []
    for _ in range(steps):
        w = w.detach().requires_grad_()
        (slope,) = torch.autograd.grad(similarity(x, relu(x @ w.T)), w)
        squares.append(slope.square().sum())
        w = w - rate * slope
    return (w.square().sum() - start).detach(), torch.stack(squares)


def settle(
    similarity: Similarity, rate: float, decay: float, steps: int, seed: int
) -> tuple[Tensor, Tensor]:
    """||W||^2 and ||W||^2 ||g||^2 in every step of SGD with weight decay.

    Each step uses a new batch of 8 samples. The values are means over 8 replicas, and both tensors
    have shape (steps, betas), where the first beta is 0 and the others are `BETAS`.
    """
    rng = g.generator(seed)
    betas = torch.tensor([0.0, *BETAS], dtype=torch.float64)[:, None, None, None]
    mix = g.root(g.covariance(size=8, rng=rng))
    w = g.normal(8, 8, 8, rng=rng).expand(len(betas), -1, -1, -1)
    norms, squares = [], []
    for _ in range(steps):
        x = g.normal(8, 8, 8, rng=rng) @ mix
        w = w.detach().requires_grad_()
        (slope,) = torch.autograd.grad(similarity(x, x @ w.mT).sum(), w)
        with torch.no_grad():
            norms.append(w.square().sum((-2, -1)).mean(1))
            square = w.square().sum((-2, -1)) * slope.square().sum((-2, -1))
            squares.append(square.mean(1))
            w = (1 - rate * decay) * w - rate * betas * slope
    return torch.stack(norms), torch.stack(squares)


def check(
    fast: bool = False,
    seed: int = 0,
    similarity: Similarity = cka_1,
    growth: Callable[[float, Tensor], Tensor] = added_growth,
    settled: Callable[[float, float, float, float], float] = equilibrium,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        similarity: function that returns the CKA of features (..., n, d1) and (..., n, d2).
        growth: formula of the growth of ||W||^2, like `added_growth`.
        settled: formula of ||W||^2 at the equilibrium, like `equilibrium`.
    """
    kinds = ("linear + bias", "ReLU", "batch norm", "ReLU + bias")
    forces = {kind: radial(kind, similarity, seed) for kind in (*kinds, "tanh")}
    steps, errors = 50 if fast else 1000, []
    for rate in (1.0, 0.1, 0.01, 0.001):
        grown, gradients = descend(similarity, rate, steps, seed)
        errors.append(abs(grown / growth(rate, gradients) - 1))

    rate, decay, steps = 1.0, 2e-3, 2000 if fast else 8000
    norms, squares = settle(similarity, rate, decay, steps, seed)
    tail = slice(steps // 3, None)
    means, energies = norms[tail].mean(0)[1:].tolist(), squares[tail].mean(0)[1:].tolist()
    formula = [settled(rate, b, decay, e) for b, e in zip(BETAS, energies, strict=True)]
    shown = slice(None, 2000, 5)
    conditions = [
        *(at_most(f"<W, grad CKA>, {kind}", forces[kind], 1e-10) for kind in kinds),
        at_most("largest relative error of the growth of ||W||^2 by descent", errors, 1e-6),
        at_most(
            "largest relative error of ||W||^2 with weight decay",
            [abs(m / f - 1) for m, f in zip(means, formula, strict=True)],
            0.05,
        ),
    ]
    return judge(
        __name__,
        __doc__,
        decisive(conditions),
        verdict=PROVED,
        consequence=REFUTES,
        reason="the gradient is orthogonal to W; finite steps increase ||W||, and with weight "
        f"decay ||W||^2 converges to {', '.join(f'{m:.1f}' for m in means)} for beta "
        f"{', '.join(f'{b:g}' for b in BETAS)}",
        figure={
            "forces": forces,
            "steps": list(range(steps))[shown],
            "norms": norms[shown].T,
            "formula": formula,
            "means": means,
        },
    )


def figure(result: Result) -> "Figure":
    """Left: the inner products of W and its gradient. Right: ||W||^2 with weight decay."""
    data = result.figure
    drawing, (left, right) = panels(2)
    names, values = list(data["forces"]), [max(v, 1e-18) for v in data["forces"].values()]
    left.barh(names, values, color=["0.55"] * 4 + ["0.2"], log=True)
    left.axvline(1e-10, **style(2))
    left.set_xlabel("|<W, ∇ sum CKA$_1$>|, float64; dashed: tolerance")
    labels = ["weight decay alone", *(f"+ {b:g} CKA$_1$" for b in BETAS)]
    for i, (curve, label) in enumerate(zip(data["norms"], labels, strict=True)):
        right.semilogy(data["steps"], curve, label=label, **style(i))
    for level in data["formula"]:
        right.axhline(level, color="0.6", linewidth=0.8)
    right.set_ylim(1e-2)
    right.set_xlabel("step of SGD, 8 samples each; grey: formula")
    right.set_ylabel("||W||$_F^2$, mean of 8 replicas")
    right.legend(fontsize=8)
    return drawing
