"""Random layers on the same input have high CKA; subtracting the part of the input corrects it.

Claim: High CKA between layers shows redundancy that training can remove (summary of the main text;
figure of the layer-by-layer CKA).

Statement: Let W1, W2 be independent Gaussian matrices with p rows, and S the covariance of the
input X. The ratio of the expectations in CKA(W1 X, W2 X) is 1 / (1 + (1 + r) / p) with the
participation ratio r = (tr S)^2 / ||S||^2. It is close to 1 for wide layers, or for inputs whose
variance lies in few directions. If each Gram matrix K is replaced by K - <K, K0> / ||K0||^2 K0,
which subtracts its projection on the input's Gram matrix K0, the expected inner product of the two
layers is exactly 0.

Assumptions: The layers are linear with independent Gaussian rows of covariance I. That the mean of
the ratio is near the ratio of the means is observed. Cui et al. (2022, arXiv 2202.00095) show the
effect and propose the correction for trained networks.

Proof: E ||W1 S W2'||^2 = p^2 ||S||^2 and E ||W S W'||^2 = p (p + 1) ||S||^2 + p (tr S)^2 (fourth
moments of Gaussians). E K = p K0, so E <K, K0> / ||K0||^2 = p and the corrected Gram matrix has
expectation 0. The inner product of two such independent matrices has expectation 0.

Verdict: The statement is proved if the corrected Gram matrices average to 0 over a set of rows with
second moment proportional to I (1e-10), the mean CKA over random layers is within 0.03 of the
formula for three widths and three spectra, CKA of wide random layers on inputs with few directions
exceeds 0.9, and the mean corrected CKA is below 0.1. It is false if the first condition fails, and
inconclusive if another one does.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from theory.gaussian import generator, norm, normal, trace
from theory.plots import panels, style
from theory.result import PROVED, QUALIFIES, Result, at_least, at_most, decisive, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = (64, 256, 1024)
SIZE = 24


def expected_cka(width: int, ratio: float) -> float:
    """Approximate mean CKA of independent random linear layers.

    Args:
        width: number of units of the layers.
        ratio: participation ratio of the covariance of the input.
    """
    return 1 / (1 + (1 + ratio) / width)


def without_input(gram: Tensor, inputs: Tensor) -> Tensor:
    """Gram matrices minus their projections on the Gram matrix of the input.

    Args:
        gram: Gram matrices of layers, shape (..., n, n).
        inputs: Gram matrix of the input, shape (n, n).
    """
    share = (gram * inputs).sum((-2, -1)) / inputs.square().sum()
    return gram - share[..., None, None] * inputs


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of matrices (..., n, n) with the Frobenius inner product, shape (...)."""
    return (a * b).sum((-2, -1)) / (norm(a) * norm(b))


def layers(count: int, width: int, rng: torch.Generator) -> list[Tensor]:
    """Two independent sets of random layers (count, width, SIZE)."""
    return [normal(count, width, SIZE, rng=rng) for _ in range(2)]


def check(
    fast: bool = False,
    seed: int = 0,
    formula: Callable[[int, float], float] = expected_cka,
    correct: Callable[[Tensor, Tensor], Tensor] = without_input,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        formula: formula of the mean CKA, like `expected_cka`.
        correct: correction of the Gram matrices, like `without_input`.
    """
    rng = generator(seed)
    x = normal(40, SIZE, rng=rng)
    x = x - x.mean(0)
    # Each row 2 sqrt(d) e_k occurs once, so the second moment is exactly 4 I.
    single = 4 * SIZE * x.T[:, :, None] * x.T[:, None, :]
    mean_gram = correct(single, x @ x.T).mean(0)
    exact = mean_gram.abs().max() / (x @ x.T).abs().max()

    pairs = 60 if fast else 400
    found: dict[str, list[float]] = {}
    predicted: dict[str, list[float]] = {}
    corrected: list[float] = []
    for decay in (0.0, 1.0, 2.0):
        s = torch.diag(torch.arange(1, SIZE + 1).double() ** -decay)
        ratio = float(trace(s) ** 2 / s.square().sum())
        label = f"participation ratio {ratio:.1f}"
        for width in WIDTHS:
            # S^1/2 W'W S^1/2 has the inner products of the Gram matrix of many samples.
            grams = [(w := g @ s.sqrt()).mT @ w for g in layers(pairs, width, rng)]
            found.setdefault(label, []).append(float(cosine(*grams).mean()))
            predicted.setdefault(label, []).append(formula(width, ratio))
        grams = [correct((w := g @ s.sqrt()).mT @ w, s) for g in layers(400, WIDTHS[0], rng)]
        corrected.append(float(cosine(*grams).mean()))
    gaps = [abs(a - b) for k in found for a, b in zip(found[k], predicted[k], strict=True)]
    highest = max(values[-1] for values in found.values())
    conditions = [
        *decisive([at_most("relative size of the mean corrected Gram matrix", exact, 1e-10)]),
        at_most("|mean CKA - formula|", gaps, 0.03),
        at_least("CKA of wide random layers, few input directions", highest, 0.9),
        at_most("|mean corrected CKA of independent layers|", [abs(c) for c in corrected], 0.1),
    ]
    return judge(
        __name__,
        __doc__,
        conditions,
        verdict=PROVED,
        consequence=QUALIFIES,
        reason=f"independent random layers of width {WIDTHS[-1]} have CKA {highest:.2f} because "
        "they share their input; after the correction the mean is at most "
        f"{max(map(abs, corrected)):.2f}",
        figure={"widths": WIDTHS, "found": found, "predicted": predicted},
    )


def figure(result: Result) -> "Figure":
    """CKA of independent random layers against their width, for three input spectra."""
    data = result.figure
    drawing, (axis,) = panels(1, width=5.5)
    for index, (label, values) in enumerate(data["found"].items()):
        axis.semilogx(data["widths"], data["predicted"][label], label=label, **style(index))
        axis.semilogx(data["widths"], values, **style(index, marker=True) | {"linestyle": ""})
    axis.set_xticks(data["widths"], [str(w) for w in data["widths"]])
    axis.set(
        xlabel="width of the layers (lines: formula, markers: mean)",
        ylabel="CKA of independent random layers",
        ylim=(0, 1),
    )
    axis.legend()
    return drawing
