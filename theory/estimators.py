"""The estimators of CKA: which one the official code computes, and how to sum it over all pairs.

Claim: The appendix prints the biased CKA (eq. 3). The official code computes the unbiased HSIC_1
of Song et al. (2012), without saying so, for every ordered pair of layers, in O(layers^2).

Statement: HSIC_1 is an inner product of U-centred Gram matrices, <A, B> / (n (n - 3)). Therefore
|CKA_1| <= 1, and a shift of the features does not change CKA_1. With g_i = A_i / ||A_i||, the sum
of CKA_1 over the pairs i < j of L layers is (||sum g_i||^2 - L) / 2, in value and in gradient, and
this sum is at least -L / 2.

Assumptions: There are n >= 4 samples, and no layer is constant.

Proof: U-centring is the orthogonal projection P of the symmetric matrices with zero diagonal onto
those whose rows sum to zero. Expanding <P K, P L> = <P K, L> gives the three terms of Song et al.
An inner product satisfies the Cauchy-Schwarz inequality, therefore |CKA_1| <= 1. A shift of the
features adds a_i + a_j to K_ij, and the projection removes this term. Finally, ||sum g_i||^2 =
sum_i ||g_i||^2 + 2 sum_{i<j} <g_i, g_j> = L + 2 sum CKA_1 >= 0.

Verdict: The statement is proved if every identity holds to 1e-10 (float64; gradients to 1e-8)
against the three-term formula, and against the packages dcor and ckatorch where they are installed,
and if float32 after centring is within 1e-3 of float64. Otherwise it is false.
"""

import itertools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ckasr.cka import cka_sr_loss, gram_linear, hsic
from theory.gaussian import generator, normal
from theory.plots import panels, style
from theory.result import PROVED, QUALIFIES, Result, at_least, at_most, decisive, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def song(K: Tensor, L: Tensor) -> Tensor:
    """HSIC_1 in the form of Song et al. (2012, eq. 5).

    Args:
        K, L: uncentred Gram matrices, shape (n, n), n >= 4.

    Returns:
        HSIC_1, a scalar.
    """
    n = len(K)
    K, L = (g - torch.diag(g.diagonal()) for g in (K, L))
    middle = K.sum() * L.sum() / ((n - 1) * (n - 2))
    return ((K * L).sum() + middle - 2 * (K.sum(0) @ L.sum(0)) / (n - 2)) / (n * (n - 3))


def song_cka(x: Tensor, y: Tensor) -> Tensor:
    """CKA_1 of uncentred features ``x`` (n, d1) and ``y`` (n, d2) by the three-term formula."""
    K, L = x @ x.T, y @ y.T
    return song(K, L) / (song(K, K) * song(L, L)).sqrt()


def sum_over_pairs(layers: Sequence[Tensor]) -> Tensor:
    """Sum of CKA_1 over the pairs i < j of the layers, each of shape (n, features).

    It is computed from ``cka_sr_loss``, which sums over ordered pairs and includes the diagonal.
    """
    return (cka_sr_loss([layers], "official") - len(layers)) / 2


def independent(fast: bool) -> dict[str, Callable[[Tensor, Tensor], float]]:
    """Functions that compute CKA_1 with other packages, by the names of the installed packages.

    dcor is left out of fast runs because it compiles for several seconds.
    """
    found: dict[str, Callable[[Tensor, Tensor], float]] = {}
    if find_spec("ckatorch"):
        from ckatorch.core import cka_base

        found["ckatorch"] = lambda x, y: float(cka_base(x, y, unbiased=True, method="fro_norm"))
    if find_spec("dcor") and not fast:
        threads = torch.get_num_threads()
        import dcor

        torch.set_num_threads(threads)  # The import starts the threads of numba, which changes it.

        def by_dcor(x: Tensor, y: Tensor) -> float:
            a, b = (dcor.u_centered((z @ z.T).fill_diagonal_(0).numpy()) for z in (x, y))
            return dcor.u_product(a, b) / (dcor.u_product(a, a) * dcor.u_product(b, b)) ** 0.5

        found["dcor"] = by_dcor
    return found


def check(
    fast: bool = False,
    seed: int = 0,
    estimator: Callable[[Tensor, Tensor], Tensor] = lambda K, L: hsic(K, L, "unbiased"),
    pair_sum: Callable[[Sequence[Tensor]], Tensor] = sum_over_pairs,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        estimator: function that returns HSIC_1 of two Gram matrices of shape (n, n).
        pair_sum: function that returns the sum of CKA_1 over all pairs i < j of a list of layers.
    """
    rng = generator(seed)

    def of(x: Tensor, y: Tensor) -> Tensor:
        K, L = gram_linear(x), gram_linear(y)
        return estimator(K, L) / (estimator(K, K) * estimator(L, L)).sqrt()

    formula, values, shifts = [], [], []
    references = independent(fast)
    packages: dict[str, list[float]] = {name: [] for name in references}
    for n, _ in itertools.product((4, 5, 8, 16, 64), range(20 if fast else 200)):
        x = normal(n, 6, rng=rng) / torch.rand(n, 1, generator=rng, dtype=torch.float64)
        y = normal(n, 9, rng=rng) + x[:, :1]
        found, K, L = of(x, y), x @ x.T, y @ y.T
        formula.append((estimator(K, L) - song(K, L)).abs() / (song(K, K) * song(L, L)).sqrt())
        values.append(found.abs())
        shifts.append((of(x + 10, y - 10) - found).abs())
        for name, reference in references.items():
            packages[name].append(abs(reference(x, y) - float(found)))

    sums, lows, sizes = [], [], [2, 3, 5, 9, 17]
    for size in sizes:
        layers = [normal(8, 5, rng=rng).requires_grad_() for _ in range(size)]
        direct = sum(song_cka(a, b) for a, b in itertools.combinations(layers, 2))
        sums.append((pair_sum(layers) - direct).detach().abs() / size)
        draws = [normal(size, 4, 3, rng=rng) for _ in range(100 if fast else 2000)]
        lows.append(min(float(pair_sum(list(draw))) for draw in draws))
    gradients = [torch.autograd.grad(value, layers) for value in (pair_sum(layers), direct)]
    gradient = [(a - b).abs().max() for a, b in zip(*gradients, strict=True)]

    wide, other = normal(8, 4096, rng=rng), normal(8, 4096, rng=rng)
    offsets = [0.0, 0.1, 1.0, 10.0, 100.0]
    exact = float(song_cka(wide, other))
    pairs = [((wide + c).float(), (other + c).float()) for c in offsets]
    naive = [float(song_cka(x, y)) - exact for x, y in pairs]
    centred = [float(of(x, y)) - exact for x, y in pairs]
    lowest = [2 * low / size for low, size in zip(lows, sizes, strict=True)]
    conditions = [
        at_most("HSIC_1 minus the three-term formula, largest relative difference", formula, 1e-10),
        at_most("largest |CKA_1|", values, 1 + 1e-10),
        at_most("largest change of CKA_1 by a shift of 10", shifts, 1e-10),
        at_most("sum over pairs, largest difference per layer", sums, 1e-10),
        at_most("gradient of the sum over pairs, largest difference", gradient, 1e-8),
        at_least("smallest sum over pairs, in units of L / 2", lowest, -1 - 1e-10),
        at_most("largest error of float32 after centring", np.abs(centred), 1e-3),
        *(at_most(f"largest difference to {name}", d, 1e-10) for name, d in packages.items()),
    ]
    return judge(
        __name__,
        __doc__,
        decisive(conditions),
        verdict=PROVED,
        consequence=QUALIFIES,
        reason="the official code does not compute the printed estimator; the sum of its estimator "
        "over all pairs is given by one squared norm (compared with "
        f"{', '.join(['the three-term formula', *packages])})",
        figure={
            "offsets": offsets,
            "naive": naive,
            "centred": centred,
            "sizes": sizes,
            "lows": lows,
        },
    )


def figure(result: Result) -> "Figure":
    """Left: float32 error against an offset of the features. Right: lowest sum over pairs."""
    data = result.figure
    drawing, (left, right) = panels(2)
    ticks = range(len(data["offsets"]))
    for i, (key, label) in enumerate(
        [("naive", "three-term formula, without centring"), ("centred", "features centred first")]
    ):
        errors = [float("nan") if e is None else max(abs(e), 1e-9) for e in data[key]]
        left.semilogy(ticks, errors, label=label, **style(i, marker=True))
    left.set_xticks(ticks, [f"{c:g}" for c in data["offsets"]])
    left.set_xlabel("offset added to both features (unit variance, n = 8, d = 4096)")
    left.set_ylabel("|error| of CKA$_1$ in float32")
    left.legend()
    right.plot(
        data["sizes"], data["lows"], label="smallest over random layers, n = 4", **style(1, True)
    )
    right.plot(data["sizes"], [-s / 2 for s in data["sizes"]], label="bound $-L/2$", **style(0))
    right.set_xticks(data["sizes"])
    right.set_xlabel("number of layers L")
    right.set_ylabel("sum of CKA$_1$ over pairs $i < j$")
    right.legend()
    return drawing
