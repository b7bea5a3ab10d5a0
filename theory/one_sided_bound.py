"""CKA gives a lower bound on mutual information, but no upper bound.

Claim: Minimising CKA(X, Y) minimises I(X; Y) (appendix, Lemma 2).

Statement: For jointly Gaussian X, Y with largest canonical correlation r, CKA <= r^2 <= 1 - e^-2I,
that is, I >= -1/2 ln(1 - CKA), with equality in one dimension. For any distribution of centred X, Y
with ||X|| <= a and ||Y|| <= b, I >= HSIC / (2 a^2 b^2), where HSIC = ||E X Y'||^2. Low information
therefore implies low CKA. The paper needs the converse, which theory/order_equivalence.py tests.

Assumptions: The first bound requires joint Gaussianity (a binary X = Y has CKA = 1 and I = ln 2,
and violates it). The second bound requires bounded X and Y only.

Proof: Sxy = Sx^1/2 C Sy^1/2 with ||C||_op = r, hence ||Sxy||^2 = <Sx, C Sy C'> <= r^2 ||Sx|| ||Sy||
by the Cauchy-Schwarz inequality, and I = -1/2 sum ln(1 - r_i^2) >= -1/2 ln(1 - r^2). For the second
bound let P be the joint distribution and Q the product of the marginals. Then ||E_P XY' - E_Q XY'||
<= a b |P - Q|_1, and |P - Q|_1^2 <= 2 I by Pinsker's inequality.

Verdict: The statement is proved if no random model violates a bound by more than 1e-10 of I and if
the first bound is an equality in one dimension. Otherwise it is false.
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


def gaussian_bound(cka: Tensor) -> Tensor:
    """Lower bound in nats on the mutual information of Gaussian pairs with this CKA."""
    return -0.5 * torch.log1p(-cka)


def bounded_bound(hsic: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Lower bound in nats on the mutual information of centred variables, elementwise.

    Args:
        hsic: population HSIC ||E X Y'||^2.
        a, b: upper bounds on ||X|| and ||Y||.
    """
    return hsic / (2 * a**2 * b**2)


def gaussian_models(count: int, rng: torch.Generator) -> list[tuple[int, int, Tensor, Tensor]]:
    """Random jointly Gaussian pairs (X, Y) of five dimensions (p, q).

    Returns:
        One tuple per (p, q): p, q, the CKA (count // 5,), and the canonical correlations
        (count // 5, min(p, q)).
    """
    models = []
    for p, q in ((1, 1), (1, 4), (2, 2), (3, 5), (6, 6)):
        joint = g.covariance(count // 5, size=p + q, rng=rng, condition=100.0)
        parts = joint[:, :p, p:], joint[:, :p, :p], joint[:, p:, p:]
        models.append((p, q, g.cka(*parts), g.canonical(*parts)))
    return models


def discrete_models(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random joint distributions of X on 4 points of R^2 and Y on 5 points of R^3.

    Returns:
        The mutual information in nats, the HSIC, and the largest norms of X and of Y, each of
        shape (count,).
    """
    weights = g.normal(count, 20, rng=rng) * torch.linspace(0.1, 5, count).double()[:, None]
    law = torch.softmax(weights, -1).reshape(count, 4, 5)
    p, q = law.sum(2), law.sum(1)
    information = torch.xlogy(law, law / (p[:, :, None] * q[:, None, :])).sum((1, 2))
    x, y = g.normal(count, 4, 2, rng=rng), g.normal(count, 5, 3, rng=rng)
    x = x - (p[:, None, :] @ x)
    y = y - (q[:, None, :] @ y)
    hsic = g.norm(x.mT @ law @ y).square()
    return information, hsic, x.norm(dim=2).amax(1), y.norm(dim=2).amax(1)


def check(
    fast: bool = False,
    seed: int = 0,
    bound: Callable[[Tensor], Tensor] = gaussian_bound,
    bounded: Callable[[Tensor, Tensor, Tensor], Tensor] = bounded_bound,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        bound: function that returns a lower bound on I for the CKA of a Gaussian pair.
        bounded: function that returns a lower bound on I, like `bounded_bound`.
    """
    rng = g.generator(seed)
    models = gaussian_models(2_000 if fast else 10_000, rng)
    cka = torch.cat([c for _, _, c, _ in models])
    largest = torch.cat([r[:, 0] for *_, r in models])
    nats = torch.cat([-0.5 * torch.log1p(-r.square()).sum(-1) for *_, r in models])
    scalar = slice(0, len(models[0][2]))
    information, hsic, a, b = discrete_models(600 if fast else 3_000, rng)
    floor = bounded(hsic, a, b)
    conditions = [
        at_least("smallest r^2 - CKA", largest.square() - cka, -1e-10),
        at_least(
            "smallest relative difference of I and the bound by CKA",
            (nats - bound(cka)) / nats,
            -1e-10,
        ),
        at_most(
            "largest relative difference of I and the bound in one dimension",
            ((nats - bound(cka)) / nats)[scalar].abs(),
            1e-10,
        ),
        at_least(
            "smallest relative difference of I and the bound by HSIC",
            (information - floor) / information,
            -1e-10,
        ),
    ]
    few = slice(None, None, 4 if fast else 20)
    return judge(
        __name__,
        __doc__,
        decisive(conditions),
        verdict=PROVED,
        consequence=QUALIFIES,
        reason="low information implies low CKA; the paper needs the converse",
        figure={
            "cka": cka[few],
            "nats": nats[few],
            "bound": bound(torch.linspace(0, 0.99, 100).double()),
            "floor": floor[few],
            "information": information[few],
        },
    )


def figure(result: Result) -> "Figure":
    """Left: I against CKA for Gaussian pairs. Right: I against the bound by HSIC."""
    data = result.figure
    drawing, (left, right) = panels(2)
    left.plot(data["cka"], data["nats"], "o", markersize=2, color="0.45", label="Gaussian pairs")
    grid = np.linspace(0, 0.99, 100)
    left.plot(grid, data["bound"], label="$-\\frac{1}{2}\\ln(1-CKA)$", **style(0))
    left.fill_between(grid, 0, data["bound"], color="0.92")
    left.plot(1, np.log(2), label="binary X = Y", **style(2, marker=True) | {"linestyle": ""})
    left.set_ylim(0, 6)
    left.set_xlabel("population CKA")
    left.set_ylabel("I(X; Y) in nats, analytic")
    left.legend(loc="upper left")
    right.loglog(
        data["floor"], data["information"], "o", markersize=2, color="0.45", label="discrete laws"
    )
    ends = [min(data["floor"]), max(data["floor"])]
    right.loglog(ends, ends, label="bound", **style(0))
    right.set_xlabel("HSIC / (2 a$^2$ b$^2$)")
    right.set_ylabel("I(X; Y) in nats, exact")
    right.legend()
    return drawing
