"""Centered Kernel Alignment (CKA) and the CKA-SR loss; stands on torch alone.

Everything rests on one object, the unit Gram matrix of a layer: the Gram matrix of its features,
centred and divided by its Frobenius norm. CKA of two layers is the inner product of their unit
Grams, so a whole layer-by-layer matrix is one matrix product, and the sum over all pairs of a stage
is the squared norm of the sum of its unit Grams: O(layers), never O(layers squared).

Two centrings give the two estimators:

* ``biased``: ``H K H`` with ``H = I - 11'/n`` (Kornblith et al. 2019, arXiv 1905.00414, eq. 3).
  With few samples and many features it is near 1 whatever the layers are.
* ``unbiased``: the U-centred Gram with zero diagonal, whose inner product is HSIC_1 of Song et al.
  2012 times ``n (n - 3)``. Needs ``n >= 4``; lies in [-1, 1]; about 0 for independent layers.

Features are tensors ``(n, ...)``, flattened to ``(n, d)``. Half precision is computed in float32,
float64 stays float64. A constant (dead) feature has a zero Gram: its CKA, and its gradient, are 0.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Estimator = Literal["unbiased", "biased"]
Kernel = Literal["linear", "rbf"]
Variant = Literal["official", "paper", "aug"]
Pairs = Literal["within", "all", "adjacent", "input"]

MIN_UNBIASED_SAMPLES = 4
_ESTIMATOR_OF = {"official": "unbiased", "paper": "biased", "aug": "biased"}
_PAIRS = ("within", "all", "adjacent", "input")


def _check_choice(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {what} {value!r}; choose one of: {', '.join(choices)}")


def _check_samples(n: int, estimator: str) -> None:
    _check_choice("estimator", estimator, ("unbiased", "biased"))
    if estimator == "unbiased" and n < MIN_UNBIASED_SAMPLES:
        raise ValueError(
            f"unbiased HSIC needs at least {MIN_UNBIASED_SAMPLES} samples, got n = {n}; "
            "take more samples or estimator='biased'"
        )
    if n < 2:
        raise ValueError(f"CKA needs at least 2 samples, got n = {n}")


def _flatten(features: Tensor) -> Tensor:
    """Features ``(n, ...)`` as ``(n, d)`` in float32 or float64, less their mean.

    Images whose channels lie next to each other (channels_last) keep that order of columns, which
    no Gram matrix depends on: they are not copied into another.

    The mean is a constant to autograd: every estimator is exactly translation invariant, so this
    changes no value and no gradient, but spares float32 the cancellation of large offsets. It is
    taken relative to the first sample, so that a constant feature becomes exactly zero.
    """
    if features.dim() < 1:
        raise ValueError("features must have a sample dimension: shape (n, ...), got a scalar")
    if features.dim() == 4 and features.stride(1) == 1:
        features = features.permute(0, 2, 3, 1)
    x = features.flatten(1) if features.dim() > 1 else features[:, None]
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    with torch.no_grad():
        first = x[:1]
        shift = first + (x - first).mean(0, keepdim=True)
    return x - shift


class _Gram(torch.autograd.Function):
    """``X X'`` of ``(n, d)``; its gradient is one matrix product, where autograd takes two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x @ x.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (grad + grad.mT) @ x


def gram_linear(features: Tensor) -> Tensor:
    """Gram matrix ``X X'`` of column-centred features ``(n, ...)``; shape ``(n, n)``."""
    return _Gram.apply(_flatten(features))


def gram_rbf(features: Tensor, bandwidth: float = 1.0) -> Tensor:
    """Gram matrix ``exp(-|x_i - x_j|^2 / (2 s^2))`` of features ``(n, ...)``; shape ``(n, n)``.

    ``s`` is ``bandwidth`` times the median distance between two different samples (Kornblith et al.
    2019, section 3); the median counts as a constant to autograd.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    products = gram_linear(features)
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp_min(0)
    with torch.no_grad():
        n = len(distances)
        rows, columns = torch.triu_indices(n, n, 1, device=distances.device)
        median = distances[rows, columns].median()
        scale = torch.where(median > 0, 2 * bandwidth**2 * median, torch.ones_like(median))
    return torch.exp(-distances / scale)


def center(gram: Tensor, estimator: Estimator) -> Tensor:
    """Centre Gram matrices ``(..., n, n)``: ``H K H`` (biased) or U-centred (unbiased).

    U-centring sets the diagonal to zero and every row sum to zero (Szekely & Rizzo 2014, eq. 2.9).
    """
    n = gram.shape[-1]
    _check_samples(n, estimator)
    if estimator == "biased":
        rows = gram.mean(-1, keepdim=True)
        return gram - rows - rows.mT + rows.mean(-2, keepdim=True)
    diagonal = torch.eye(n, dtype=torch.bool, device=gram.device)
    hollow = gram.masked_fill(diagonal, 0)
    rows = hollow.sum(-1, keepdim=True) / (n - 2)
    total = rows.sum(-2, keepdim=True) / (n - 1)
    return (hollow - rows - rows.mT + total).masked_fill(diagonal, 0)


def hsic(gram_x: Tensor, gram_y: Tensor, estimator: Estimator = "unbiased") -> Tensor:
    """Hilbert-Schmidt independence criterion of two Gram matrices ``(n, n)``; a scalar.

    ``unbiased`` is HSIC_1 (Song et al. 2012, eq. 5) as an inner product of U-centred Grams,
    ``biased`` is ``tr(K H L H) / (n - 1)^2`` (Gretton et al. 2005, eq. 9).
    """
    n = gram_x.shape[-1]
    inner = (center(gram_x, estimator) * center(gram_y, estimator)).sum()
    return inner / _hsic_scale(n, estimator)


def _hsic_scale(n: int, estimator: Estimator) -> int:
    """What the inner product of two centred Grams is divided by to be HSIC."""
    return n * (n - 3) if estimator == "unbiased" else (n - 1) ** 2


def _grams(features: Sequence[Tensor], kernel: Kernel, bandwidth: float) -> Tensor:
    """Gram matrices of all layers, stacked: ``(layers, n, n)``, computed outside autocast."""
    _check_choice("kernel", kernel, ("linear", "rbf"))
    if not features:
        raise ValueError("CKA needs at least one layer, got none")
    sizes = {len(f) for f in features}
    if len(sizes) > 1:
        raise ValueError(f"all layers must hold the same samples, got n = {sorted(sizes)}")
    with torch.autocast(features[0].device.type, enabled=False):
        if kernel == "linear":
            return torch.stack([gram_linear(f) for f in features])
        return torch.stack([gram_rbf(f, bandwidth) for f in features])


def unit_grams(
    features: Sequence[Tensor],
    estimator: Estimator = "unbiased",
    kernel: Kernel = "linear",
    bandwidth: float = 1.0,
) -> Tensor:
    """Centred Gram matrices of Frobenius norm 1, ``(layers, n * n)``; zero rows for dead layers."""
    grams = _grams(features, kernel, bandwidth)
    with torch.autocast(grams.device.type, enabled=False):
        centred = center(grams, estimator).flatten(1)
        norms = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
        with torch.no_grad():
            # Below this, the centred Gram is round-off of the raw one: no direction to normalise.
            raw = torch.linalg.vector_norm(grams.flatten(1), dim=1, keepdim=True)
            alive = norms > 8 * grams.shape[-1] * torch.finfo(grams.dtype).eps * raw
        units = centred / torch.where(alive, norms, torch.ones_like(norms))
        return torch.where(alive, units, torch.zeros_like(units))


def cka_matrix(
    features: Sequence[Tensor],
    *,
    estimator: Estimator = "unbiased",
    kernel: Kernel = "linear",
    bandwidth: float = 1.0,
) -> Tensor:
    """CKA of every pair of layers on the same ``n`` samples, in one call.

    features: one tensor ``(n, ...)`` a layer. Returns ``(layers, layers)``, symmetric, diagonal 1
    (0 for a dead layer). Raises ValueError for unequal ``n`` or too few samples.
    """
    units = unit_grams(features, estimator, kernel, bandwidth)
    return units @ units.T


def linear_cka(x: Tensor, y: Tensor, estimator: Estimator = "unbiased") -> Tensor:
    """Linear CKA of two feature tensors ``(n, ...)``; a scalar.

    ``biased`` is Kornblith et al. 2019, eq. 4; ``unbiased`` has HSIC_1 (Song et al. 2012) in it.
    """
    units = unit_grams([x, y], estimator)
    return units[0] @ units[1]


def rbf_cka(
    x: Tensor, y: Tensor, *, estimator: Estimator = "unbiased", bandwidth: float = 1.0
) -> Tensor:
    """CKA with Gaussian kernels; ``bandwidth`` is a multiple of each layer's median distance."""
    units = unit_grams([x, y], estimator, "rbf", bandwidth)
    return units[0] @ units[1]


class MinibatchCKA:
    """Layer-by-layer CKA pooled over minibatches: HSIC is averaged first, then normalised.

    With the unbiased estimator the pooled HSIC is unbiased at any batch size (Nguyen, Raghu and
    Kornblith 2021, arXiv 2010.15327, eq. 2-3), so batches of a few hundred stand for the data set.
    """

    def __init__(self, estimator: Estimator = "unbiased") -> None:
        _check_choice("estimator", estimator, ("unbiased", "biased"))
        self.estimator: Estimator = estimator
        self.samples = 0
        self.batches = 0
        self._hsic: Tensor | None = None

    @torch.no_grad()
    def update(self, features: Sequence[Tensor]) -> None:
        """Add one minibatch: one tensor ``(n, ...)`` a layer, in the same order at every call."""
        grams = _grams(features, "linear", 1.0)
        n = grams.shape[-1]
        centred = center(grams, self.estimator).flatten(1).double()
        products = centred @ centred.T / _hsic_scale(n, self.estimator)
        if self._hsic is not None and len(self._hsic) != len(products):
            raise ValueError(f"{len(products)} layers given, {len(self._hsic)} before")
        self._hsic = products if self._hsic is None else self._hsic + products
        self.samples += n
        self.batches += 1

    def compute(self) -> Tensor:
        """The pooled CKA matrix ``(layers, layers)`` in float64; 0 where a layer is dead."""
        if self._hsic is None:
            raise ValueError("no minibatch was added; call update(features) first")
        scale = self._hsic.diagonal().clamp_min(0).sqrt()
        inverse = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
        return self._hsic * inverse[:, None] * inverse[None, :]


def null_zscore(cka: float | Tensor, n: int) -> float | Tensor:
    """Unbiased CKA of ``n`` samples in units of its standard deviation under independence.

    If rows of the two layers are paired at random, the unbiased CKA has mean 0 and variance exactly
    ``2 / (n (n - 3))``, for any data and any dimension (proof: theory/fewshot_law.py).
    """
    _check_samples(n, "unbiased")
    return cka / math.sqrt(2 / (n * (n - 3)))


def cka_sr_loss(
    stages: Sequence[Sequence[Tensor]],
    variant: Variant = "official",
    *,
    pairs: Pairs | None = None,
) -> Tensor:
    """The CKA-SR term of arXiv 2307.07389, before beta; a scalar.

    stages: for each stage a list of feature tensors ``(n, ...)``.

    variant:
        ``paper``     biased CKA, summed over ordered pairs, diagonal included (appendix, eq. 11);
        ``official``  the same sum of unbiased CKA, as the authors' code computes it; ``n >= 4``;
        ``aug``       AugCKA-SR: the mean of biased CKA over unordered pairs (appendix, eq. 14).
    pairs:
        ``within``    the layers of one stage with each other (default of paper and official);
        ``all``       all layers with each other (default of aug);
        ``adjacent``  each layer with the next, across stages, without diagonal;
        ``input``     the first tensor (the network's input) with every other, without diagonal.

    Cost is O(layers): the sum over a stage is the squared norm of the sum of its unit Grams.
    Raises ValueError for an unknown variant, fewer samples than the estimator needs, or no pair.
    """
    _check_choice("variant", variant, tuple(_ESTIMATOR_OF))
    pairs = pairs or ("all" if variant == "aug" else "within")
    _check_choice("pairs", pairs, _PAIRS)
    features = [f for stage in stages for f in stage]
    units = unit_grams(features, _ESTIMATOR_OF[variant])
    with torch.autocast(units.device.type, enabled=False):
        return _sum_over_pairs(units, [len(stage) for stage in stages], variant, pairs)


def _sum_over_pairs(units: Tensor, sizes: list[int], variant: Variant, pairs: Pairs) -> Tensor:
    layers = len(units)
    if pairs in ("within", "all"):
        groups = units.split(sizes) if pairs == "within" else [units]
        ordered = torch.stack([group.sum(0) for group in groups]).square().sum()
        count = sum(len(g) * (len(g) - 1) // 2 for g in groups)
        if variant != "aug":
            return ordered
        unordered = (ordered - units.square().sum()) / 2
    else:
        partners = units[:-1] if pairs == "adjacent" else units[:1]
        unordered = (partners * units[1:]).sum()
        count = layers - 1
        if variant != "aug" and count:
            return 2 * unordered
    if count == 0:
        raise ValueError(f"no pair of layers to compare: {layers} layer(s), pairs={pairs!r}")
    return unordered / count
