"""The gradient of the term on a few samples: its mean, its noise, and the batches that are skipped.

Claim: Eight samples on every fifth batch give the same effect as all samples on every batch
(appendix, table 2); beta is not rescaled for the batches that are skipped.

Statement: Averaged over all pairings of the samples of two layers, the gradient of the unbiased CKA
is 0, and the gradient of the biased CKA is that of sqrt(PRx PRy) / (n - 1). Minimising the biased
CKA therefore lowers the effective rank of each layer, whether the layers depend on each other or
not. The term on one step in k changes the weights, to first order in the learning rate, like
beta / k on every step. The gradient of n samples agrees better with that of all samples the larger
n is; at n = 8 its noise is larger than its signal.

Assumptions: The two averages require n >= 4 and are exact for any differentiable layers. The result
on beta / k is for plain gradient descent. The signal-to-noise ratio is observed on one residual MLP
on digits, at initialisation.

Proof: The mean over pairings and the gradient commute. By theory/fewshot_law.py the means are 0 and
sqrt(PRx PRy) / (n - 1). Over k steps the displacement is the learning rate times the sum of the
gradients, which would be linear in beta if the weights did not change. The weights change by
O(learning rate). Between the kinks of the ReLU, this changes the gradients by O(learning rate). The
fraction of units that cross a kink is O(learning rate), which changes the gradients by
O(learning rate^(1/2)) in norm.

Verdict: The statement is proved if autograd confirms both averages over all pairings (1e-10), the
distance between beta on every k-th step and beta / k on every step falls faster than to first order
(>= 1.4 in the learning rate), the cosine with the full gradient rises with n (Jonckheere's trend
test, as Kendall's tau of cosine and n), and the ratio of signal to noise at n = 8 is below 1. It is
false if an average or the order disagrees; otherwise it is inconclusive.
"""

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ckasr.cka import center, cka_sr_loss, gram_linear
from theory.fewshot_law import biased_mean, cosines
from theory.gaussian import generator, normal
from theory.plots import panels, style
from theory.result import PROVED, QUALIFIES, Result, at_least, at_most, decisive, judge, rejects

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Features = list[Tensor]
EVERY = 5


def unbiased(a: Tensor, b: Tensor) -> Tensor:
    """Unbiased CKA of Gram matrices (..., n, n), shape (...)."""
    return cosines(a, b, "unbiased")


def biased(a: Tensor, b: Tensor) -> Tensor:
    """Biased CKA of Gram matrices (..., n, n), shape (...)."""
    return cosines(a, b, "biased")


def rank_force(a: Tensor, b: Tensor) -> Tensor:
    """Mean of the biased CKA of two Gram matrices (n, n) over all pairings, in closed form."""
    a, b = center(a, "biased"), center(b, "biased")
    return biased_mean(*(g.trace().square() / g.square().sum() for g in (a, b)), len(a))


def pairing_gradient(value: Callable[[Tensor, Tensor], Tensor], n: int, seed: int) -> Tensor:
    """Gradient, in the weights of two layers, of the mean of ``value`` over all pairings.

    Args:
        value: function of Gram matrices (n, n) and (n!, n, n).
        n: number of samples.
        seed: seed of the samples and weights.
    """
    rng = generator(seed)
    x, w1, w2 = normal(n, 4, rng=rng), normal(4, 6, rng=rng), normal(6, 3, rng=rng)
    p = torch.tensor(list(itertools.permutations(range(n))))
    first = (x @ w1.requires_grad_()).tanh()
    a, b = gram_linear(first), gram_linear(first @ w2.requires_grad_())
    mean = value(a, b[p[:, :, None], p[:, None, :]]).mean()
    return torch.cat([g.ravel() for g in torch.autograd.grad(mean, [w1, w2])])


def residual_mlp(weights: Tensor, x: Tensor) -> Features:
    """Outputs (n, width) of the blocks h + relu(h W_i').

    Args:
        weights: weights, shape (blocks, width, width).
        x: input, shape (n, width).
    """
    features = []
    for w in weights:
        x = x + (x @ w.T).relu()
        features.append(x)
    return features


def term(weights: Tensor, x: Tensor) -> Tensor:
    """The official CKA-SR term of the blocks of `residual_mlp`, a scalar."""
    return cka_sr_loss([residual_mlp(weights, x)])


def digits(count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` digits of scikit-learn: images (count, 64) and labels (count,).

    All pixels of all images together have mean 0 and variance 1.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = torch.from_numpy((x - x.mean()) / x.std())
    return x[:count], torch.from_numpy(y[:count]).long()


def skipping_error(
    share: Callable[[int], float], rates: list[float], weights: Tensor, x: Tensor, y: Tensor
) -> list[float]:
    """Distance between two ways to skip the term, after `EVERY` steps of gradient descent.

    The first way uses beta = 1 on the first step only, the second uses beta = ``share(EVERY)`` on
    every step.

    Args:
        share: function of the number of steps that returns beta.
        rates: learning rates.
        weights: initial weights, shape (blocks, width, width).
        x, y: images (n, width) and labels (n,).

    Returns:
        The Frobenius distance of the weights for each learning rate.
    """
    head = normal(10, weights.shape[-1], rng=generator(1)) / 8

    def loss(w: Tensor, beta: float) -> Tensor:
        logits = residual_mlp(w, x)[-1] @ head.T
        return torch.nn.functional.cross_entropy(logits, y) + beta * term(w, x)

    gradient = torch.func.grad(loss)
    distances = []
    for rate in rates:
        one, each = weights, weights
        for step in range(EVERY):
            one = one - rate * gradient(one, 1.0 if step == 0 else 0.0)
            each = each - rate * gradient(each, share(EVERY))
        distances.append(float((one - each).norm()))
    return distances


def check(
    fast: bool = False,
    seed: int = 0,
    few: Callable[[Tensor, Tensor], Tensor] = unbiased,
    force: Callable[[Tensor, Tensor], Tensor] = rank_force,
    share: Callable[[int], float] = lambda every: 1 / every,
) -> Result:
    """Run the check.

    Args:
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        few: estimator of CKA whose mean gradient over all pairings should be 0.
        force: closed form of the mean of the biased CKA, like `rank_force`.
        share: function of k that returns the beta on every step which has the same effect as
            beta = 1 on one step in k.
    """
    from scipy.stats import kendalltau

    sizes = (4, 5) if fast else (4, 5, 6)
    empty = [pairing_gradient(few, n, seed).abs().max() for n in sizes]
    rank = [
        (pairing_gradient(biased, n, seed) - pairing_gradient(lambda a, b: force(a, b[0]), n, seed))
        .abs()
        .max()
        for n in sizes
    ]
    rng = generator(seed)
    x, y = digits(512 if fast else 1500)
    weights = normal(3, 64, 64, rng=rng) / 8
    rates = [1e-2, 1e-3, 1e-4]
    distances = skipping_error(share, rates, weights, x[:128], y[:128])
    order = math.log10(distances[1] / distances[2])

    full = torch.func.grad(term)(weights, x).ravel()
    single = torch.func.vmap(torch.func.grad(term), in_dims=(None, 0))
    shots, resamples = [4, 8, 16, 32, 64, 128], 100 if fast else 300
    cosine, ratio = [], []
    for n in shots:
        rows = torch.rand(resamples, len(x), generator=rng).argsort(1)[:, :n]
        found = torch.cat([single(weights, x[part]).flatten(1) for part in rows.split(50)])
        noise = found.var(0).sum()
        signal = found.mean(0).square().sum() - noise / resamples
        cosine.append(torch.cosine_similarity(found, full, dim=1).tolist())
        ratio.append(float(signal / noise))
    grouped = [(n, value) for n, values in zip(shots, cosine, strict=True) for value in values]
    trend = kendalltau(*zip(*grouped, strict=True), alternative="greater").pvalue
    exact = [
        at_most("|mean gradient of unbiased CKA over all pairings|", empty, 1e-10),
        at_most("|mean gradient of biased CKA - grad sqrt(PRx PRy) / (n - 1)|", rank, 1e-10),
        at_least(
            "order in the learning rate of the distance of beta on 1 step in 5 and beta / 5",
            order,
            1.4,
        ),
    ]
    observed = [
        rejects("cosine with the full gradient does not rise with n", trend),
        at_most("ratio of signal to noise (variance) of the gradient at n = 8", ratio[1], 1),
    ]
    return judge(
        __name__,
        __doc__,
        [*decisive(exact), *observed],
        verdict=PROVED,
        consequence=QUALIFIES,
        reason=f"with 8 samples the cosine with the full gradient is "
        f"{sum(cosine[1]) / resamples:.2f} and the ratio of signal to noise {ratio[1]:.2f}; the "
        "term on every 5th batch has the effect of beta / 5 on every batch",
        figure={"shots": shots, "cosine": cosine, "ratio": ratio, "rates": rates,
                "distances": distances},
    )  # fmt: skip


def figure(result: Result) -> "Figure":
    """Left: cosine with the full gradient. Middle: signal to noise. Right: skipped steps."""
    data = result.figure
    drawing, (left, middle, right) = panels(3)
    shots = data["shots"]
    left.boxplot(data["cosine"], positions=range(len(shots)), showfliers=False, widths=0.6,
                 medianprops={"color": "k"})  # fmt: skip
    left.set_xticks(range(len(shots)), [str(n) for n in shots])
    left.axhline(0, color="k", linewidth=0.8)
    left.set(xlabel="number of samples n", ylabel="cosine with the gradient of all samples")
    middle.loglog(shots, [max(r, 1e-4) for r in data["ratio"]], **style(1, marker=True))
    middle.axhline(1, **style(0), label="signal = noise")
    middle.set_xticks(shots, [str(n) for n in shots])
    middle.minorticks_off()
    middle.set(xlabel="number of samples n", ylabel=r"signal / noise: $|E\,g|^2$ / var g")
    right.loglog(
        data["rates"],
        data["distances"],
        label=r"$\beta$ on the 1st step vs. $\beta/5$ on every step",
        **style(1, marker=True),
    )
    first = data["distances"][0]
    for i, power in ((0, 1), (2, 2)):
        line = [first * (r / data["rates"][0]) ** power for r in data["rates"]]
        right.loglog(data["rates"], line, label=f"slope {power}", **style(i))
    right.set(xlabel="learning rate", ylabel=r"$\|W - W'\|_F$ after 5 steps")
    middle.legend()
    right.legend(fontsize="small")
    return drawing
