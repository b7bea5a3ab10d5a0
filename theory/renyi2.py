"""Matrix-based Renyi information of order 2 is a kernel similarity, not mutual information.

Claim: The paper equates minimising CKA with minimising mutual information, which it computes from
Gaussian determinants. Matrix-based Renyi entropy often replaces mutual information for layers. If
it were close to both mutual information and CKA, the claim would hold for this quantity.

Statement: Matrix-based Renyi information of order 2 gives the same order of layers as mutual
information I. Its closed form: with A = K / n and B = L / n for Gram matrices K, L with unit
diagonal, S_2(A) is log2 of the effective rank of K, and
I_2 = log2(n^2 sum a^2 b^2 / (sum a^2 sum b^2)), an uncentred cross-moment of squared kernels.

Assumptions: The kernels are linear and normalised to cosines, and there are n samples. X and
Y = WX + noise are Gaussian, so I is known analytically. A rank correlation depends on the family of
random layers; three families are shown, and none of them is preferred.

Proof: S_2 = -log2 tr A^2, and because tr A = 1, 1 / ||A||^2 is the participation ratio of the
eigenvalues. The joint entropy is that of A o B / tr(A o B) = n (a b)_ij, so
S_2(A) + S_2(B) - S_2(A, B) = I_2 is -log2 sum a^2 - log2 sum b^2 + log2(n^2 sum a^2 b^2).
Counterexample: for a scalar Y every b^2 is 1 / n^2, so I_2 = 0, while I takes any value.

Verdict: The statement is false (counterexample) if both closed forms equal the entropies computed
from eigenvalues (1e-10), I_2 of a scalar layer is 0 (1e-10) while I rises by more than 3 nats, I_2
falls by more than .1 bit on a path along which I rises by more than .1 nat, and the rank
correlation of I_2 and I differs by more than .2 between families. Otherwise it is inconclusive.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theory.gaussian import covariance, generator, layer_cka, layer_information, normal, root
from theory.plots import panels, style
from theory.result import FALSE, REFUTES, Result, at_least, at_most, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Layer = tuple[Tensor, Tensor, Tensor]
FAMILIES = {
    "5 units": (5, 5, 1.0),
    "5 units, little noise": (5, 5, 3.0),
    "2 to 8 units": (2, 8, 1.0),
}
"""Families of random layers: smallest size, largest size and log10 of the signal-to-noise ratio."""


def entropy_of_eigenvalues(a: Tensor) -> Tensor:
    """Renyi entropy of order 2 by its definition, -log2 sum lambda^2, in bits.

    Args:
        a: symmetric positive semidefinite matrix of trace 1, shape (n, n); see Sanchez Giraldo et
            al. (2015).
    """
    return -torch.linalg.eigvalsh(a).square().sum().log2()


def closed_entropy(a: Tensor) -> Tensor:
    """Renyi entropy of order 2 by its closed form, log2(tr(A)^2 / ||A||^2), in bits.

    Args:
        a: symmetric positive semidefinite matrix, shape (n, n).
    """
    return (a.trace().square() / a.square().sum()).log2()


def closed_information(a: Tensor, b: Tensor) -> Tensor:
    """Renyi information I_2 of order 2 by its closed form, in bits.

    Args:
        a, b: Gram matrices with unit diagonal, divided by n; shape (n, n).
    """
    product = (a * b).square().sum()
    return (len(a) ** 2 * product / (a.square().sum() * b.square().sum())).log2()


def unit_diagonal(x: Tensor) -> Tensor:
    """Matrix of cosines of the rows of ``x`` (n, d), divided by n; shape (n, n), trace 1."""
    x = x / x.norm(dim=1, keepdim=True)
    return x @ x.T / len(x)


def sampled(layer: Layer, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The matrices `unit_diagonal` of ``n`` samples of X and of Y.

    Args:
        layer: (W, S, R) of X ~ N(0, S) and Y = WX + e with e ~ N(0, R).
        n: number of samples.
        rng: random number generator.
    """
    w, s, r = layer
    x = normal(n, len(s), rng=rng) @ root(s)
    return unit_diagonal(x), unit_diagonal(x @ w.T + normal(n, len(r), rng=rng) @ root(r))


def random_layer(least: int, largest: int, level: float, rng: torch.Generator) -> Layer:
    """A random layer (W, S, R); the condition number of S is at most 100.

    Args:
        least, largest: smallest and largest number of units.
        level: log10 of the signal-to-noise ratio.
        rng: random number generator.
    """
    size = int(torch.randint(least, largest + 1, (), generator=rng))
    condition = 100 ** torch.rand((), generator=rng, dtype=torch.float64)
    s = covariance(size=size, rng=rng, condition=condition)
    return normal(size, size, rng=rng), s, torch.eye(size, dtype=torch.float64) / 10**level


def rising_path(points: int) -> list[Layer]:
    """Layers Y = (x2, x3) + noise along a path.

    The noise decreases, while the variance of x1, on which Y does not depend, grows from 1 to 100.
    """
    pick = torch.eye(3, dtype=torch.float64)[1:]
    return [
        (
            pick,
            torch.diag(torch.tensor([100**t, 1, 1]).double()),
            torch.eye(2).double() / (4 + 4 * t),
        )
        for t in torch.linspace(0, 1, points).tolist()
    ]


def scalar_layers(points: int) -> list[Layer]:
    """Layers Y = x1 + noise with one unit, for decreasing noise."""
    one = torch.eye(1, dtype=torch.float64)
    levels = torch.logspace(-2, 4, points, dtype=torch.float64)
    return [(one, one, one / level) for level in levels]


def check(
    fast: bool = False,
    seed: int = 0,
    entropy: Callable[[Tensor], Tensor] = closed_entropy,
    information: Callable[[Tensor, Tensor], Tensor] = closed_information,
    truth: Callable[[Tensor, Tensor, Tensor], Tensor] = layer_information,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        entropy: closed form of S_2, like `closed_entropy`.
        information: closed form of I_2, like `closed_information`.
        truth: function that returns the mutual information in nats for (W, S, R).
    """
    from scipy.stats import spearmanr

    rng = generator(seed)
    errors_s, errors_i = [], []
    families: dict[str, dict[str, list[float]]] = {}
    rank: dict[str, float] = {}
    for name, choice in FAMILIES.items():
        models = [random_layer(*choice, rng) for _ in range(80 if fast else 400)]
        found = []
        for model in models:
            a, b = sampled(model, 100, rng)
            found.append(float(information(a, b)))
            parts = [entropy_of_eigenvalues(m) for m in (a, b, len(a) * a * b)]
            errors_s.append(abs(float(entropy(a) - parts[0])))
            errors_i.append(abs(found[-1] - float(parts[0] + parts[1] - parts[2])))
        exact = [float(truth(*model)) for model in models]
        cka = [float(layer_cka(*model)) for model in models]
        families[name] = {"information": exact, "renyi": found}
        rank[name] = float(spearmanr(exact, found).statistic)
        rank[f"{name}, with CKA"] = float(spearmanr(cka, found).statistic)
    curves = {}
    for name, layers in (("path", rising_path(9)), ("scalar", scalar_layers(9))):
        curves[name] = {
            "information": [float(truth(*layer)) for layer in layers],
            "renyi": [float(information(*sampled(layer, 1000, rng))) for layer in layers],
        }
    rise = {name: c["information"][-1] - c["information"][0] for name, c in curves.items()}
    fall = curves["path"]["renyi"][0] - curves["path"]["renyi"][-1]
    with_truth = [rank[name] for name in FAMILIES]
    return judge(
        __name__,
        __doc__,
        [
            at_most("|S_2 from eigenvalues - log2 of the effective rank|", errors_s, 1e-10),
            at_most("|I_2 from eigenvalues - its closed form|", errors_i, 1e-10),
            at_most("|I_2| of scalar layers", [abs(v) for v in curves["scalar"]["renyi"]], 1e-10),
            at_least("rise of I of the same scalar layers, nats", rise["scalar"], 3),
            at_least("fall of I_2 along the path, bits", fall, 0.1),
            at_least("rise of I along the path, nats", rise["path"], 0.1),
            at_least("range of the rank correlation with I over families",
                     max(with_truth) - min(with_truth), 0.2),
        ],
        verdict=FALSE,
        consequence=REFUTES,
        reason="I_2 is a moment of squared kernels: it is 0 for every scalar layer and can fall "
        "while I rises; its rank correlation with I depends on the family and is between "
        f"{min(with_truth):.2f} and {max(with_truth):.2f}",
        figure={"families": families, "rank": rank, "curves": curves},
    )  # fmt: skip


def figure(result: Result) -> "Figure":
    """Left: I_2 against I along two paths. Right: I_2 against I for random layers."""
    data = result.figure
    drawing, (left, right) = panels(2)
    curves = zip(("path", "scalar"), (r"variance of $x_1$ grows", "scalar layer"), strict=True)
    for i, (name, label) in enumerate(curves):
        curve = data["curves"][name]
        left.plot(curve["information"], curve["renyi"], label=label, **style(i + 1, marker=True))
    left.set(xlabel="mutual information (nats, analytic)")
    left.set_ylabel("Renyi $I_2$ (bits, n = 1000, cosine kernel)")
    for i, (name, models) in enumerate(data["families"].items()):
        look = style(i, marker=True) | {"linestyle": "none", "markersize": 3}
        label = f"{name}: Spearman {data['rank'][name]:.2f}"
        right.plot(models["information"], models["renyi"], label=label, **look)
    right.set(xlabel="mutual information (nats, analytic)", ylim=(-0.05, 1.45))
    right.set_ylabel("Renyi $I_2$ (bits, n = 100, cosine kernel)")
    left.legend()
    right.legend(loc="upper left")
    return drawing
