"""One outlying sample determines biased CKA, whatever the other samples of the moved layer are.

Claim: Minimising CKA-SR removes what layers have in common, because CKA measures how similar they
are (summary of the main text).

Statement: Let K, L be the centred Gram matrices of X and Y with n samples, and move sample i of Y
by t v. As t grows, biased CKA(X, Y) converges to K_ii / (||K|| (1 - 1/n)) for all Y and v. If
sample i of X is moved too, it converges to 1; if sample j of X is moved instead, to 1/(n - 1)^2.
Two equal layers Y = X can therefore reach a low CKA by moving one sample, while all other samples
stay equal. Unbiased CKA does not change at all if v is orthogonal to every difference of two
features. Otherwise it converges to the cosine of two U-centred matrices: the Gram matrix of X, and
the matrix whose row and column i equal Yv and whose other entries are zero.

Assumptions: X is not constant and K_ii > 0 for the limits of biased CKA; n >= 4 for unbiased CKA.
Davari et al. (2022, arXiv 2210.16156) show such shifts of subsets in trained networks.

Proof: With h = e_i - 1/n the centred features of Y are HY + t h v'. Their Gram matrix divided by
t^2 converges to |v|^2 h h', and cos(K, h h') = h'Kh / (||K|| |h|^2) with h'Kh = K_ii and
|h|^2 = 1 - 1/n. With h_j for X: cos = (h_i'h_j)^2 / (|h_i|^2 |h_j|^2), which is 1 for i = j and
1/(n - 1)^2 otherwise. For unbiased CKA, the entries of the Gram matrix off the diagonal change by
t (e_i (Yv)' + Yv e_i'), up to additive row and column effects, which U-centring removes.

Verdict: The statement is proved if every limit of biased CKA is reached to 1e-5 at t = 1e8, and
that of unbiased CKA to 1e-3 at t = 1e5, unbiased CKA changes by at most 1e-8 for an orthogonal v of
length 100, and the CKA of two equal layers falls below one half while the CKA of their other
samples stays 1 (1e-10). Otherwise it is false.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ckasr.cka import center, gram_linear, linear_cka
from theory.gaussian import generator, norm, normal
from theory.plots import panels, style
from theory.result import PROVED, QUALIFIES, Result, at_most, decisive, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAR = 1e8
UNBIASED_FAR = 1e5  # At larger distances, the unbiased estimator is not accurate in float64.


def moved(x: Tensor, sample: int, by: Tensor) -> Tensor:
    """A copy of the features ``x`` (n, d), with the row ``sample`` moved by ``by`` (d,)."""
    x = x.clone()
    x[sample] += by
    return x


def limit_of(gram: Tensor, sample: int) -> Tensor:
    """Limit of biased CKA of two layers as one sample of the second layer moves away.

    Args:
        gram: centred Gram matrix of the first layer, shape (n, n).
        sample: index of the sample.
    """
    return gram[sample, sample] / (norm(gram) * (1 - 1 / len(gram)))


def unbiased_limit(x: Tensor, y: Tensor, sample: int, direction: Tensor) -> Tensor:
    """Limit of unbiased CKA of two layers as one sample of the second layer moves away.

    Args:
        x, y: features, shapes (n, d1) and (n, d2).
        sample: index of the sample.
        direction: direction in which it moves, shape (d2,); ``y`` must vary in this direction.
    """
    row = torch.zeros(len(y), len(y), dtype=y.dtype)
    row[sample] = (y - y.mean(0)) @ direction
    a, b = (center(m, "unbiased") for m in (gram_linear(x), row + row.T))
    return (a * b).sum() / (norm(a) * norm(b))


def check(
    fast: bool = False,
    seed: int = 0,
    limit: Callable[[Tensor, int], Tensor] = limit_of,
    move: Callable[[Tensor, int, Tensor], Tensor] = moved,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        limit: formula of the limit of biased CKA, like `limit_of`.
        move: function that moves one sample, like `moved`.
    """
    rng = generator(seed)
    one, both, two, fresh, along = [], [], [], [], []
    for _ in range(20 if fast else 200):
        n = int(torch.randint(6, 40, (), generator=rng))
        x, y = normal(n, 5, rng=rng), normal(n, 7, rng=rng)
        i, j = torch.randperm(n, generator=rng)[:2].tolist()
        u, v = normal(5, rng=rng), normal(7, rng=rng)
        far = move(y, i, FAR * v)
        one.append(linear_cka(x, far, "biased") - limit(gram_linear(x), i))
        both.append(linear_cka(move(x, i, FAR * u), far, "biased") - 1)
        two.append(linear_cka(move(x, j, FAR * u), far, "biased") - 1 / (n - 1) ** 2)
        wide = torch.cat([y, torch.zeros(n, 1, dtype=y.dtype)], 1)
        apart = torch.zeros(8, dtype=y.dtype)
        apart[-1] = 100
        fresh.append(linear_cka(x, move(wide, i, apart)) - linear_cka(x, y))
        far = move(y, i, UNBIASED_FAR * v)
        along.append(linear_cka(x, far) - unbiased_limit(x, y, i, v))

    x, v = normal(32, 8, rng=rng), normal(8, rng=rng)
    shifts = torch.logspace(-1, 4, 60).tolist()
    curves = {
        name: [float(linear_cka(x, move(x, 0, t * v), name)) for t in shifts]
        for name in ("biased", "unbiased")
    }
    rest = linear_cka(x[1:], move(x, 0, FAR * v)[1:], "biased")
    conditions = [
        at_most("|biased CKA - its limit|, one layer moved", torch.stack(one).abs(), 1e-5),
        at_most("|biased CKA - 1|, both layers moved in one sample", torch.stack(both).abs(), 1e-5),
        at_most(
            "|biased CKA - 1/(n - 1)^2|, layers moved in different samples",
            torch.stack(two).abs(),
            1e-5,
        ),
        at_most(
            "|change of unbiased CKA| by an orthogonal outlier", torch.stack(fresh).abs(), 1e-8
        ),
        at_most("|unbiased CKA - its limit|", torch.stack(along).abs(), 1e-3),
        at_most("biased CKA of equal layers, one sample moved", curves["biased"][-1], 0.5),
        at_most("1 - biased CKA of the other samples of these layers", (1 - rest).abs(), 1e-10),
    ]
    return judge(
        __name__,
        __doc__,
        decisive(conditions),
        verdict=PROVED,
        consequence=QUALIFIES,
        reason="moving one of 32 samples lowers the CKA of equal layers from 1 to "
        f"{curves['biased'][-1]:.2f} (unbiased {curves['unbiased'][-1]:.2f}); all other samples "
        "stay equal",
        figure={"shifts": shifts, "curves": curves, "limit": limit(gram_linear(x), 0)},
    )


def figure(result: Result) -> "Figure":
    """CKA of two equal layers while one sample of one of them moves away."""
    data = result.figure
    drawing, (axis,) = panels(1, width=5.5)
    for index, (name, values) in enumerate(data["curves"].items()):
        axis.semilogx(data["shifts"], values, label=f"{name} CKA", **style(index + 1))
    axis.axhline(data["limit"], label="limit of biased CKA (proved)", **style(0))
    axis.set(xlabel="distance by which one of 32 samples is moved", ylabel="CKA of equal layers")
    axis.legend()
    return drawing
