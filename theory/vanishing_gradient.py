"""The gradient of CKA vanishes as sqrt(1 - CKA) where two layers are similar.

Claim: CKA-SR lowers the similarity of layers, which is high in networks without it (summary of the
main text; figure of the layer-by-layer CKA).

Statement: With centred features Y, centred Gram matrices K of X and L of Y, and c = CKA(X, Y), the
gradient is 2 (K/||K|| - c L/||L||) Y / ||L||, and its norm is at most 2 ||Y||_op sqrt(1 - c^2) /
||L||. It is zero where c = 1, and near such a point it is proportional to sqrt(1 - c). The term is
therefore weakest where layers are most similar. The same holds for unbiased CKA with U-centred Gram
matrices.

Assumptions: Neither layer is constant. The bound is for the gradient in the features of one layer;
the gradient in the weights is this gradient times the Jacobian of the layer. That the exponent is
exactly one half is observed along random directions. Smerkous et al. (2024) report small gradients
of CKA near 1.

Proof: With unit vectors a = K/||K||, b = L/||L||, a change of Y changes b orthogonally to b, so dc
= <a, db> = <a - c b, db>, and |a - c b| = sqrt(1 - c^2). Centring is an orthogonal projection, so
|db| <= |d(YY')| / ||L|| <= 2 ||Y||_op |dY| / ||L||.

Verdict: The statement is proved if autograd agrees with the formula (1e-10), no random pair exceeds
the bound (1e-10), the gradient is zero at Y = X (1e-12), and the exponent is within 0.02 of one
half in every direction. It is false if the formula or the bound fails, and inconclusive if only the
exponent does.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ckasr.cka import Estimator, center, gram_linear, linear_cka
from theory.gaussian import generator, norm, normal
from theory.plots import panels, style
from theory.result import PROVED, QUALIFIES, Result, at_most, decisive, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ESTIMATORS: tuple[Estimator, ...] = ("biased", "unbiased")


def gradient_of(k: Tensor, l: Tensor, y: Tensor) -> Tensor:  # noqa: E741 - Gram matrices K and L
    """Gradient of CKA in the features of the second layer, shape (n, d).

    Args:
        k, l: centred Gram matrices of the first and the second layer, shape (n, n).
        y: centred features of the second layer, shape (n, d).
    """
    c = (k * l).sum() / (norm(k) * norm(l))
    return 2 * (k / norm(k) - c * l / norm(l)) @ y / norm(l)


def bound_of(c: Tensor, y: Tensor, gram_norm: Tensor) -> Tensor:
    """Upper bound on the norm of the gradient of CKA.

    Args:
        c: value of CKA, a scalar.
        y: centred features of the second layer, shape (n, d).
        gram_norm: Frobenius norm of their centred Gram matrix.
    """
    largest = torch.linalg.matrix_norm(y, 2)
    return 2 * largest * (1 - c.square()).clamp_min(0).sqrt() / gram_norm


def slope_near_one(
    x: Tensor, direction: Tensor, estimator: Estimator
) -> tuple[float, list[float], list[float]]:
    """Power law of the norm of the gradient for Y = X + s E, with s from 0.001 to 0.1.

    Args:
        x: features, shape (n, d).
        direction: direction E, shape (n, d).
        estimator: estimator of CKA.

    Returns:
        The exponent of the norm against 1 - CKA, the values of 1 - CKA, and the norms.
    """
    distances, sizes = [], []
    for s in np.logspace(-3, -1, 9):
        y = (x + s * direction).requires_grad_()
        c = linear_cka(x, y, estimator)
        (gradient,) = torch.autograd.grad(c, y)
        distances.append(1 - float(c.detach()))
        sizes.append(float(gradient.norm()))
    return float(np.polyfit(np.log(distances), np.log(sizes), 1)[0]), distances, sizes


def check(
    fast: bool = False,
    seed: int = 0,
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor] = gradient_of,
    bound: Callable[[Tensor, Tensor, Tensor], Tensor] = bound_of,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        gradient: formula of the gradient, like `gradient_of`.
        bound: bound on its norm, like `bound_of`.
    """
    rng = generator(seed)
    errors, excess, cloud, at_one = [], [], [], []
    for index in range(60 if fast else 300):
        estimator = ESTIMATORS[index % 2]
        n = int(torch.randint(6, 30, (), generator=rng))
        x = normal(n, 6, rng=rng)
        # For closer layers, 1 - CKA and the bound would consist of rounding errors.
        share = 10 ** (1 - 4 * torch.rand((), generator=rng, dtype=torch.float64))
        y = (x + share * normal(n, 6, rng=rng)).requires_grad_()
        c = linear_cka(x, y, estimator)
        (found,) = torch.autograd.grad(c, y)
        centred = (y - y.mean(0)).detach()
        k, l = (center(gram_linear(z.detach()), estimator) for z in (x, y))  # noqa: E741
        c = c.detach()
        scale = 2 * torch.linalg.matrix_norm(centred, 2) / norm(l)
        errors.append((found - gradient(k, l, centred)).norm() / scale)
        excess.append(found.norm() / bound(c, centred, norm(l)) - 1)
        cloud.append((float(1 - c), float(found.norm() / scale)))
        alike = x.clone().requires_grad_()
        at_one.append(torch.autograd.grad(linear_cka(x, alike, estimator), alike)[0].norm())
    slopes = {}
    for estimator in ESTIMATORS:
        x = normal(20, 6, rng=rng)
        runs = [slope_near_one(x, normal(20, 6, rng=rng), estimator) for _ in range(8)]
        slopes[estimator] = [run[0] for run in runs]
    off = [abs(s - 0.5) for values in slopes.values() for s in values]
    return judge(
        __name__,
        __doc__,
        [
            *decisive(
                [
                    at_most(
                        "error of the formula of the gradient, relative to 2 ||Y||_op / ||L||",
                        errors,
                        1e-10,
                    ),
                    at_most("largest norm of the gradient / bound - 1", excess, 1e-10),
                    at_most("norm of the gradient at Y = X", at_one, 1e-12),
                ]
            ),
            at_most("|exponent of |gradient| against 1 - CKA - 1/2|", off, 0.02),
        ],
        verdict=PROVED,
        consequence=QUALIFIES,
        reason="the norm of the gradient is proportional to (1 - CKA)^"
        f"{np.mean(slopes['unbiased']):.2f} near 1: the term is weakest where layers are most "
        "similar",
        figure={"cloud": cloud[:200], "run": runs[0][1:]},
    )


def figure(result: Result) -> "Figure":
    """Left: the gradients of random pairs and the bound. Right: the gradient as Y approaches X."""
    data = result.figure
    drawing, (left, right) = panels(2)
    distance, size = zip(*data["cloud"], strict=True)
    left.loglog(distance, size, "o", markersize=2, color="0.45", label="random pairs")
    grid = np.logspace(np.log10(min(distance)), 0, 50)
    left.loglog(grid, np.sqrt(1 - (1 - grid) ** 2), label="bound (proved)", **style(0))
    left.set(xlabel="1 - CKA", ylabel=r"$|\nabla|\ \|L\|_F / (2 \|Y\|_{op})$")
    distance, size = data["run"]
    right.loglog(distance, size, label="Y = X + s E", **style(1, marker=True))
    half = [size[0] * (d / distance[0]) ** 0.5 for d in distance]
    right.loglog(distance, half, label=r"$\sqrt{1 - CKA}$", **style(0))
    right.set(xlabel="1 - unbiased CKA", ylabel="norm of the gradient in Y")
    for axis in (left, right):
        axis.legend()
    return drawing
