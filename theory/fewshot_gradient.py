"""What the gradient of a few samples is made of: a force without meaning, signal, noise.

Claim: Eight samples on every fifth batch give the same effect as all samples on every batch
(appendix, table 2); beta is not rescaled for the batches that are skipped.

Statement: Over all pairings of the samples of two layers the gradient of the unbiased CKA averages
to 0, that of the biased CKA to the gradient of sqrt(PRx PRy) / (n - 1): a force that lowers the
effective rank of each layer, whether they depend on each other or not. The term on one step in k
moves the weights, to first order in the learning rate, like beta / k on each. The gradient of n
samples agrees with that of all the better the larger n; at n = 8 its noise exceeds its signal.

Assumptions: n >= 4 for the two averages, which are exact for any differentiable layers; plain
gradient descent for beta / k. The signal-to-noise ratio is observed on one residual MLP on digits,
at initialisation.

Proof: The mean over pairings and the gradient commute; the means are theory/fewshot_law.py's
constant 0 and sqrt(PRx PRy) / (n - 1). Over k steps the displacement is the learning rate times the
sum of the gradients, which is linear in beta where the weights have not moved; they move by
O(learning rate), which changes gradients by as much between kinks of the ReLU and, as the share of
units that cross one is O(learning rate), by O(learning rate^(1/2)) in norm across them.

Verdict: proved if both averages agree by autograd over all pairings (1e-10), the distance
between beta every k-th step and beta / k at each falls faster than first order (>= 1.4 in the
learning rate), the cosine with the full gradient rises with n (Jonckheere's trend test, as
Kendall's tau of cosine and n), and the ratio of signal to noise at n = 8 is below 1; false if an
average or the order disagrees, else inconclusive.
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
    return cosines(a, b, "unbiased")


def biased(a: Tensor, b: Tensor) -> Tensor:
    return cosines(a, b, "biased")


def rank_force(a: Tensor, b: Tensor) -> Tensor:
    """Mean over all pairings of the biased CKA of two Gram matrices."""
    a, b = center(a, "biased"), center(b, "biased")
    return biased_mean(*(g.trace().square() / g.square().sum() for g in (a, b)), len(a))


def pairing_gradient(value: Callable[[Tensor, Tensor], Tensor], n: int, seed: int) -> Tensor:
    """Gradient, in the weights of two layers, of `value` of their Grams, mean over the pairings."""
    rng = generator(seed)
    x, w1, w2 = normal(n, 4, rng=rng), normal(4, 6, rng=rng), normal(6, 3, rng=rng)
    p = torch.tensor(list(itertools.permutations(range(n))))
    first = (x @ w1.requires_grad_()).tanh()
    a, b = gram_linear(first), gram_linear(first @ w2.requires_grad_())
    mean = value(a, b[p[:, :, None], p[:, None, :]]).mean()
    return torch.cat([g.ravel() for g in torch.autograd.grad(mean, [w1, w2])])


def residual_mlp(weights: Tensor, x: Tensor) -> Features:
    """Outputs of the blocks h + relu(h W_i'); weights (blocks, width, width)."""
    features = []
    for w in weights:
        x = x + (x @ w.T).relu()
        features.append(x)
    return features


def term(weights: Tensor, x: Tensor) -> Tensor:
    """The official CKA-SR term of the residual MLP."""
    return cka_sr_loss([residual_mlp(weights, x)])


def digits(count: int) -> tuple[Tensor, Tensor]:
    """The first `count` digits, 64 pixels scaled to mean 0 and variance 1 overall; their labels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = torch.from_numpy((x - x.mean()) / x.std())
    return x[:count], torch.from_numpy(y[:count]).long()


def skipping_error(
    share: Callable[[int], float], rates: list[float], weights: Tensor, x: Tensor, y: Tensor
) -> list[float]:
    """Distance after EVERY steps, per rate: the term on the first step, or its share on each."""
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
    """few: the CKA (of Grams, batched) whose force vanishes; force: mean of biased CKA; share: of
    beta at each step that equals beta on one step in `every`."""
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
        at_most("mean gradient of unbiased CKA over all pairings", empty, 1e-10),
        at_most("that of biased CKA less grad sqrt(PRx PRy) / (n - 1)", rank, 1e-10),
        at_least("order in the learning rate of beta on 1 step in 5 less beta / 5", order, 1.4),
    ]
    observed = [
        rejects("cosine with the full gradient rises with n", trend),
        at_most("signal / noise (variance) of the gradient at n = 8", ratio[1], 1),
    ]
    return judge(
        __name__,
        __doc__,
        [*decisive(exact), *observed],
        verdict=PROVED,
        consequence=QUALIFIES,
        reason=f"8 samples: cosine {sum(cosine[1]) / resamples:.2f} with the full gradient, "
        f"signal / noise {ratio[1]:.2f}; every 5th batch is beta / 5",
        figure={"shots": shots, "cosine": cosine, "ratio": ratio, "rates": rates,
                "distances": distances},
    )  # fmt: skip


def figure(result: Result) -> "Figure":
    data = result.figure
    drawing, (left, middle, right) = panels(3)
    shots = data["shots"]
    left.boxplot(data["cosine"], positions=range(len(shots)), showfliers=False, widths=0.6,
                 medianprops={"color": "k"})  # fmt: skip
    left.set_xticks(range(len(shots)), [str(n) for n in shots])
    left.axhline(0, color="k", linewidth=0.8)
    left.set(xlabel="samples n", ylabel="cosine with the gradient of all samples")
    middle.loglog(shots, [max(r, 1e-4) for r in data["ratio"]], **style(1, marker=True))
    middle.axhline(1, **style(0), label="signal = noise")
    middle.set_xticks(shots, [str(n) for n in shots])
    middle.minorticks_off()
    middle.set(xlabel="samples n", ylabel=r"$|E\,g|^2$ / var g, unbiased CKA-SR term")
    right.loglog(
        data["rates"],
        data["distances"],
        label=r"$\beta$ on the 1st step or $\beta/5$ on each",
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
