"""Centered Kernel Alignment (CKA) and the CKA-SR loss; needs torch alone.

The Gram matrix of a layer's features is centred, and CKA of two layers is the cosine between their
centred Gram matrices: their inner product divided by their Frobenius norms. Two centrings give the
two estimators:

* ``biased``: ``H K H`` with ``H = I - 11'/n`` (Kornblith et al. 2019, arXiv 1905.00414, eq. 3).
  With few samples and many features it is near 1 whatever the layers are.
* ``unbiased``: the U-centred Gram with zero diagonal, whose inner product is HSIC_1 of Song et al.
  2012 times ``n (n - 3)``. Needs ``n >= 4``; lies in [-1, 1]; about 0 for independent layers.

Features are tensors ``(n, ...)``, flattened to ``(n, d)``. The result has their dtype, but float32
for half precision and float64 for integers, whose differences are taken exactly. Complex features
are refused. These rules hold for every function of this module:

* NaN or infinity in a layer gives NaN for every pair that contains this layer.
* A constant layer has CKA 0 with every layer and itself, and gradient 0. So has a layer whose
  centred Gram matrix is zero up to the rounding errors of its features, as it has no direction. For
  the unbiased estimator that is so if all samples are equally far apart, or all equal but one.
* Scale does not matter: ``c * x`` has the CKA of ``x``, unless the sum of ``n`` features overflows,
  which gives NaN. Only :func:`cka_sr_loss`, which runs in every training step, is limited further:
  float32 features below about 1e-18 count as constant, and those above about 1e18 give NaN.
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
# A centred Gram matrix is zero if its norm is at most this many rounding errors of its entries.
_ROUNDING_ERRORS = 16
# From this many samples on, memory for Gram matrices (n, n) matters more than arithmetic.
_MANY_SAMPLES = 2048
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


def _check_tensor(features: Any, what: str) -> Tensor:
    """Refuse what is no real tensor ``(n, ...)`` with at least one feature a sample."""
    if not isinstance(features, Tensor):
        raise TypeError(
            f"{what} must be a tensor (n, ...), got {type(features).__name__}; "
            "convert it with torch.as_tensor"
        )
    if features.is_complex():
        raise TypeError(
            f"{what} is complex ({features.dtype}), CKA is defined here for real features; "
            "pass torch.view_as_real(x), or x.abs()"
        )
    if features.layout != torch.strided:
        raise TypeError(f"{what} is a sparse tensor ({features.layout}); pass x.to_dense()")
    if features.dtype == torch.uint64:
        raise TypeError(f"{what} is uint64, which torch cannot subtract; convert it to int64")
    if features.dim() < 1:
        raise ValueError(f"{what} must have a sample dimension: shape (n, ...), got a scalar")
    if 0 in features.shape[1:]:
        raise ValueError(f"{what} has no feature: shape {tuple(features.shape)}")
    return features


def _check_layers(features: Sequence[Tensor], estimator: str) -> list[Tensor]:
    """The layers as a list, after the checks that every function of several layers makes."""
    if isinstance(features, Tensor):
        raise TypeError(
            f"expected a list of tensors, one for each layer, got one tensor of shape "
            f"{tuple(features.shape)}; for one layer pass [x], for a stack x.unbind()"
        )
    layers = [_check_tensor(f, f"layer {i}") for i, f in enumerate(features)]
    if not layers:
        raise ValueError("CKA needs at least one layer, got none")
    sizes = {len(f) for f in layers}
    if len(sizes) > 1:
        raise ValueError(f"all layers must hold the same samples, got n = {sorted(sizes)}")
    _check_samples(len(layers[0]), estimator)
    return layers


def _double(device: torch.device) -> torch.dtype:
    """The widest floating-point type of a device: float64, except on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


def _float_dtype(features: Tensor) -> torch.dtype:
    """The type in which features are centred, and of the CKA of them."""
    if not features.is_floating_point():
        return _double(features.device)
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _flatten(features: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Features ``(n, ...)`` as ``(n, d)``, minus their mean, in ``dtype`` or their float type.

    Images in channels_last keep that order of columns, on which no Gram matrix depends, so that
    they need not be copied.

    The mean is a constant to autograd: every estimator is exactly translation invariant, so this
    changes no value and no gradient, but spares float32 the cancellation of large offsets. It is
    taken relative to the first sample, so that a constant feature becomes exactly zero.
    """
    if features.dim() == 4 and features.stride(1) == 1:
        features = features.permute(0, 2, 3, 1)
    x = features.flatten(1) if features.dim() > 1 else features[:, None]
    dtype = dtype or _float_dtype(features)
    if x.dtype != dtype:
        x = x.to(dtype) if x.is_floating_point() else _differences(x, dtype)
    with torch.no_grad():
        first = x[:1]
        shift = first + (x - first).mean(0, keepdim=True)
    return x - shift


def _differences(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers minus those of the first sample, exact where ``dtype`` can hold the difference.

    The upper and the lower 32 bits are subtracted apart, as a difference can overflow int64.
    """
    x = x.long()
    upper, lower = x >> 32, x & 0xFFFFFFFF
    return (upper - upper[:1]).to(dtype) * 2.0**32 + (lower - lower[:1]).to(dtype)


def _rescale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Features divided by their largest magnitude, and this magnitude (0 if they are all zero).

    No square of them can then overflow, and none that counts can underflow. CKA is free of scale,
    so the magnitude is a constant to autograd.
    """
    largest = x.detach().abs().amax()
    return x / largest.clamp_min(torch.finfo(x.dtype).tiny), largest


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


class _GramForward(_Gram):
    """The same with forward-mode derivatives, which torch.compile refuses in a Function."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        half = tangent @ x.mT
        return half + half.mT


def _gram(x: Tensor) -> Tensor:
    return (_Gram if torch.compiler.is_compiling() else _GramForward).apply(x)


def gram_linear(features: Tensor) -> Tensor:
    """Gram matrix ``X X'`` of column-centred features ``(n, ...)``; shape ``(n, n)``."""
    return _gram(_flatten(_check_tensor(features, "the input")))


def gram_rbf(features: Tensor, bandwidth: float = 1.0) -> Tensor:
    """Gram matrix ``exp(-|x_i - x_j|^2 / (2 s^2))`` of features ``(n, ...)``; shape ``(n, n)``.

    ``s`` is ``bandwidth`` times the median distance between two samples (Kornblith et al. 2019,
    section 3); if most pairs of samples are equal, the median of the pairs that differ. The median
    counts as a constant to autograd.
    """
    _check_bandwidth(bandwidth)
    exponents, _ = _rbf_exponents(_check_tensor(features, "the input"), bandwidth)
    return torch.exp(-exponents).to(_float_dtype(features))


def _check_bandwidth(bandwidth: float) -> None:
    if not 0 < bandwidth < math.inf:
        raise ValueError(f"bandwidth must be positive and finite, got {bandwidth}")


def _rbf_exponents(features: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """``|x_i - x_j|^2 / (2 s^2)`` as in :func:`gram_rbf`, and their magnitude before cancellation.

    Both ``(n, n)`` and in float64, as a distance is the small difference of large squares.
    """
    x, _ = _rescale(_flatten(features, _double(features.device)))
    products = _gram(x)
    squares = products.diagonal()
    sums = squares[:, None] + squares[None, :]
    distances = (sums - 2 * products).clamp_min(0)
    # Detached, as no_grad() does not stop forward-mode derivatives.
    sums, pairs = sums.detach(), distances.detach()
    zero = pairs <= _ROUNDING_ERRORS * torch.finfo(x.dtype).eps * sums
    pairs = pairs.masked_fill(zero, 0).masked_fill(_eye(pairs), math.nan)
    median = pairs.nanmedian()
    median_of_different = pairs.masked_fill(zero, math.nan).nanmedian()
    median = torch.where(median > 0, median, median_of_different)
    scale = torch.where(median > 0, 2 * bandwidth**2 * median, 1)
    return distances / scale, sums / scale


def _eye(gram: Tensor) -> Tensor:
    return torch.eye(gram.shape[-1], dtype=torch.bool, device=gram.device)


def center(gram: Tensor, estimator: Estimator) -> Tensor:
    """Centre Gram matrices ``(..., n, n)``: ``H K H`` (biased) or U-centred (unbiased).

    U-centring sets the diagonal to zero and every row sum to zero (Szekely & Rizzo 2014, eq. 2.9).
    """
    n = gram.shape[-1]
    _check_samples(n, estimator)
    if estimator == "biased":
        rows = gram.mean(-1, keepdim=True)
        return gram - rows - rows.mT + rows.mean(-2, keepdim=True)
    diagonal = _eye(gram)
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


def _round_off(squared_errors: Tensor, estimator: str, eps: float) -> Tensor:
    """Largest squared norm at which centred Gram matrices count as zero.

    squared_errors: ``(..., n, n)``, squares of the magnitudes that the entries of the Gram matrices
    had before any cancellation, so that ``eps`` times them are the rounding errors.
    """
    if estimator == "unbiased":  # which does not read the diagonal
        return 2 * (_ROUNDING_ERRORS * eps) ** 2 * squared_errors.triu(1).sum((-2, -1))
    return (_ROUNDING_ERRORS * eps) ** 2 * squared_errors.sum((-2, -1))


def _inverse_norms(squares: Tensor, floor: Tensor) -> Tensor:
    """1 over the root of squared norms, 0 for those that are at most ``floor``, NaN for NaN."""
    return squares.masked_fill(squares <= floor, math.inf).rsqrt()


def unit_grams(features: Sequence[Tensor], estimator: Estimator = "unbiased") -> Tensor:
    """Centred linear Gram matrices of Frobenius norm 1, ``(layers, n * n)``; 0 for a dead layer.

    CKA of two layers is the inner product of their rows, and the sum over all pairs of layers is
    the squared norm of the sum of the rows: O(layers), not O(layers squared). Nothing here waits
    for the device, so a CUDA graph can capture it.
    """
    layers = _check_layers(features, estimator)
    with torch.autocast(layers[0].device.type, enabled=False):
        grams = torch.stack([_gram(_flatten(f)) for f in layers])
        tiny, eps = torch.finfo(grams.dtype).tiny, torch.finfo(grams.dtype).eps
        with torch.no_grad():
            largest = grams.diagonal(dim1=1, dim2=2).amax(1)[:, None, None].clamp_min(tiny)
        grams = grams / largest  # so that no square of them overflows, or underflows
        with torch.no_grad():
            squares = grams.diagonal(dim1=1, dim2=2)
            floor = _round_off(squares[:, :, None] * squares[:, None, :], estimator, eps)
        centred = center(grams, estimator).flatten(1)
        return centred * _inverse_norms(centred.square().sum(1), floor)[:, None]


def _products(
    layers: list[Tensor], estimator: Estimator, kernel: Kernel = "linear", bandwidth: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Inner products of the centred Gram matrices, ``(layers, layers)``, all in float64.

    Each layer's features are divided by a scale. Returns the products, the floor ``(layers,)``
    at which a squared norm counts as zero, and the scales ``(layers,)``.
    """
    _check_choice("kernel", kernel, ("linear", "rbf"))
    with torch.autocast(layers[0].device.type, enabled=False):
        if kernel == "linear" and _is_narrow(layers):
            return _products_of_features(layers, estimator)
        centred, floors, scales = [], [], []
        for f in layers:
            if kernel == "linear":
                x, scale = _rescale(_flatten(f))
                gram = _gram(x)
                squares = gram.detach().diagonal()
                errors = squares[:, None] * squares[None, :]
            else:
                gram, errors = _gram_rbf_rescaled(f, estimator, bandwidth)
                scale = gram.new_ones(())
            centred.append(center(gram, estimator).flatten().to(_double(gram.device)))
            floors.append(_round_off(errors, estimator, torch.finfo(_float_dtype(f)).eps))
            scales.append(scale)
        stacked = torch.stack(centred)
        dtype = stacked.dtype
        floor = torch.stack([f.to(dtype) for f in floors])
        return stacked @ stacked.T, floor, torch.stack([s.to(dtype) for s in scales])


def _gram_rbf_rescaled(
    features: Tensor, estimator: Estimator, bandwidth: float
) -> tuple[Tensor, Tensor]:
    """A matrix with the CKA of :func:`gram_rbf` that keeps its digits at any bandwidth.

    A narrow kernel has tiny values off the diagonal, and the unbiased estimator sees nothing else,
    so they are multiplied by a common factor. A wide kernel is 1 minus tiny values; centring takes
    any constant away, so 1 is subtracted exactly. The second result is for :func:`_round_off`.
    """
    exponents, magnitudes = _rbf_exponents(features, bandwidth)
    if estimator == "unbiased":
        nearest = exponents.detach().masked_fill(_eye(exponents), math.inf).amin()
        exponents = exponents - nearest
    gram = (torch.expm1 if bandwidth > 1 else torch.exp)(-exponents)
    errors = gram.detach().abs() + torch.exp(-exponents.detach()) * magnitudes.clamp(max=1)
    return gram, errors.square()


def _is_narrow(layers: list[Tensor]) -> bool:
    """Whether products of features ``(d, d)`` cost less than Gram matrices ``(n, n)``."""
    n = len(layers[0])
    widths = [math.prod(f.shape[1:]) for f in layers]
    return 2 * max(widths) <= n if n > _MANY_SAMPLES else sum(widths) <= n


def _products_of_features(
    layers: list[Tensor], estimator: Estimator
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`_products` of the linear kernel without any ``(n, n)`` matrix.

    Biased: ``|X'Y|^2`` of centred features. Unbiased: ``n (n - 3)`` times Song et al. 2012, eq. 5.
    Let ``a`` hold the squared lengths of the rows of ``X``, and ``r = X X'1 - a`` the row sums of
    its Gram matrix without the diagonal; ``b`` and ``q`` are those of ``Y``. The product is
    ``|X'Y|^2 - a'b + sum(r) sum(q) / ((n - 1) (n - 2)) - 2 r'q / (n - 2)``.
    """
    n = len(layers[0])
    xs, scales = zip(*[_rescale(_flatten(f, _double(f.device))) for f in layers], strict=True)
    if estimator == "biased":
        xs = [x - x.mean(0, keepdim=True) for x in xs]  # the gradient too must be of centred ones
    upper = [[(x.T @ y).square().sum() for y in xs[i:]] for i, x in enumerate(xs)]
    products = torch.stack(
        [
            torch.stack([upper[min(i, j)][abs(i - j)] for j in range(len(xs))])
            for i in range(len(xs))
        ]
    )
    squares = torch.stack([x.square().sum(1) for x in xs])
    lengths, norms = squares.detach(), products.detach().diagonal()
    errors = lengths.sum(1).square()
    eps = torch.tensor([torch.finfo(_float_dtype(f)).eps for f in layers]).to(squares)
    if estimator == "unbiased":
        errors = (errors - lengths.square().sum(1)).clamp_min(0)
        rows = torch.stack([x @ x.sum(0) for x in xs]) - squares
        totals = rows.sum(1)
        products = (
            products
            - squares @ squares.T
            - 2 / (n - 2) * rows @ rows.T
            + totals[:, None] * totals[None, :] / ((n - 1) * (n - 2))
        )
    # The differences above have rounding errors too: those of sums of n numbers in float64.
    own = (_ROUNDING_ERRORS + n) * torch.finfo(products.dtype).eps * norms
    return products, torch.maximum((_ROUNDING_ERRORS * eps) ** 2 * errors, own), torch.stack(scales)


def _normalise(products: Tensor, floor: Tensor) -> Tensor:
    """CKA of all pairs from the inner products of their centred Gram matrices."""
    inverse = _inverse_norms(products.diagonal(), floor)
    return products * (inverse[:, None] * inverse[None, :]) + 0.0  # no -0.0


def _cka(
    features: Sequence[Tensor],
    estimator: Estimator,
    kernel: Kernel = "linear",
    bandwidth: float = 1.0,
) -> Tensor:
    _check_bandwidth(bandwidth)
    layers = _check_layers(features, estimator)
    products, floor, _ = _products(layers, estimator, kernel, bandwidth)
    dtypes = {_float_dtype(f) for f in layers}
    return _normalise(products, floor).to(dtypes.pop() if len(dtypes) == 1 else torch.float64)


def cka_matrix(
    features: Sequence[Tensor],
    *,
    estimator: Estimator = "unbiased",
    kernel: Kernel = "linear",
    bandwidth: float = 1.0,
) -> Tensor:
    """CKA of every pair of layers on the same ``n`` samples, in one call.

    features: one tensor ``(n, ...)`` for each layer. Returns ``(layers, layers)``, symmetric,
    diagonal 1 (0 for a dead layer). Layers much narrower than ``n`` need memory for ``(d, d)``
    matrices, others for one ``(n, n)`` matrix each. Raises ValueError for unequal ``n`` or too few
    samples, TypeError for what is not a list of real tensors.
    """
    return _cka(features, estimator, kernel, bandwidth)


def linear_cka(x: Tensor, y: Tensor, estimator: Estimator = "unbiased") -> Tensor:
    """Linear CKA of two feature tensors ``(n, ...)``; a scalar.

    ``biased`` is Kornblith et al. 2019, eq. 4; ``unbiased`` has HSIC_1 (Song et al. 2012) in it.
    Raises as :func:`cka_matrix` does.
    """
    return _cka([x, y], estimator)[0, 1]


def rbf_cka(
    x: Tensor, y: Tensor, *, estimator: Estimator = "unbiased", bandwidth: float = 1.0
) -> Tensor:
    """CKA with Gaussian kernels; ``bandwidth`` is a multiple of each layer's median distance.

    The kernels are those of :func:`gram_rbf`, computed in float64. Raises as :func:`cka_matrix`
    does.
    """
    return _cka([x, y], estimator, "rbf", bandwidth)[0, 1]


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
        self._floor: Tensor | None = None
        self._scale: Tensor | None = None

    @torch.no_grad()
    def update(self, features: Sequence[Tensor]) -> None:
        """Add one minibatch: one tensor ``(n, ...)`` a layer, in the same order at every call."""
        layers = _check_layers(features, self.estimator)
        products, floor, scale = _products(layers, self.estimator)
        if self._hsic is None:
            self._hsic, self._floor = torch.zeros_like(products), torch.zeros_like(floor)
            self._scale = torch.zeros_like(scale)
        if len(self._hsic) != len(products):
            raise ValueError(f"{len(products)} layers given, {len(self._hsic)} before")
        # HSIC of all batches in the units of the first batch in which a layer is not constant.
        self._scale = torch.where(self._scale > 0, self._scale, scale)
        units = torch.where(scale == self._scale, 1, scale / self._scale).square()
        n = len(layers[0])
        divisor = _hsic_scale(n, self.estimator)
        self._hsic = self._hsic + products * (units[:, None] * units[None, :]) / divisor
        self._floor = self._floor + floor * units.square() / divisor
        self.samples += n
        self.batches += 1

    def compute(self) -> Tensor:
        """The pooled CKA matrix ``(layers, layers)`` in float64; 0 where a layer is dead."""
        if self._hsic is None:
            raise ValueError("no minibatch was added; call update(features) first")
        return _normalise(self._hsic, self._floor)


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
    if pairs is None:
        pairs = "all" if variant == "aug" else "within"
    _check_choice("pairs", pairs, _PAIRS)
    if isinstance(stages, Tensor) or any(isinstance(stage, Tensor) for stage in stages):
        raise TypeError(
            "stages must be a list of lists of tensors, one list for each stage; "
            "for a single stage pass [[x, y]]"
        )
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
