"""CKA of pairs of layers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ckasr.choices import check_choice

from .grams import (
    ROUNDING_ERRORS,
    center,
    check_bandwidth,
    eye,
    flatten,
    gram_of,
    inverse_norms,
    rbf_exponents,
    rescale,
    round_off,
)
from .inputs import Estimator, Kernel, check_layers, check_samples, float_dtype, widest_float

_MANY_SAMPLES = 2048
"""From this number of samples on, memory for Gram matrices (n, n) matters more than arithmetic."""


def products_of(
    layers: list[Tensor], estimator: Estimator, kernel: Kernel = "linear", bandwidth: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Inner products of the centred Gram matrices of features that are divided by a scale.

    Returns, in float64, the products ``(layers, layers)``, the floor ``(layers,)`` at which a
    squared norm counts as zero, and the scales ``(layers,)``.
    """
    check_choice("kernel", kernel, Kernel)
    with torch.autocast(layers[0].device.type, enabled=False):
        if kernel == "linear" and _is_narrow(layers):
            return _products_of_features(layers, estimator)
        centred, floors, scales = [], [], []
        for f in layers:
            if kernel == "linear":
                x, scale = rescale(flatten(f))
                gram = gram_of(x)
                squares = gram.detach().diagonal()
                errors = squares[:, None] * squares[None, :]
            else:
                gram, errors = _gram_rbf_rescaled(f, estimator, bandwidth)
                scale = gram.new_ones(())
            centred.append(center(gram, estimator).flatten().to(widest_float(gram.device)))
            floors.append(round_off(errors, estimator, torch.finfo(float_dtype(f)).eps))
            scales.append(scale)
        stacked = torch.stack(centred)
        dtype = stacked.dtype
        floor = torch.stack([f.to(dtype) for f in floors])
        return stacked @ stacked.T, floor, torch.stack([s.to(dtype) for s in scales])


def _gram_rbf_rescaled(
    features: Tensor, estimator: Estimator, bandwidth: float
) -> tuple[Tensor, Tensor]:
    """A matrix with the CKA of :func:`gram_rbf` that is precise at any bandwidth.

    A narrow kernel has tiny values off the diagonal, and the unbiased estimator uses these alone,
    so they are multiplied by a common factor. A wide kernel is 1 minus tiny values; centring
    removes any constant, so 1 is subtracted exactly. The second result is for :func:`round_off`.
    """
    exponents, magnitudes = rbf_exponents(features, bandwidth)
    if estimator == "unbiased":
        nearest = exponents.detach().masked_fill(eye(exponents), math.inf).amin()
        exponents = exponents - nearest
    gram = (torch.expm1 if bandwidth > 1 else torch.exp)(-exponents)
    errors = gram.detach().abs() + torch.exp(-exponents.detach()) * magnitudes.clamp(max=1)
    return gram, errors.square()


def _is_narrow(layers: list[Tensor]) -> bool:
    """Whether matrices ``(d, d)`` of features cost less than Gram matrices ``(n, n)``."""
    n = len(layers[0])
    widths = [math.prod(f.shape[1:]) for f in layers]
    return 2 * max(widths) <= n if n > _MANY_SAMPLES else sum(widths) <= n


def _products_of_features(
    layers: list[Tensor], estimator: Estimator
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`products_of` for the linear kernel, without any ``(n, n)`` matrix.

    Biased: ``|X'Y|^2`` of centred features. Unbiased: ``n (n - 3)`` times Song et al. 2012, eq. 5.
    Let ``a`` hold the squared lengths of the rows of ``X``, and ``r = X X'1 - a`` the row sums of
    its Gram matrix without the diagonal; ``b`` and ``q`` are those of ``Y``. The product is
    ``|X'Y|^2 - a'b + sum(r) sum(q) / ((n - 1) (n - 2)) - 2 r'q / (n - 2)``.
    """
    n = len(layers[0])
    rescaled = [rescale(flatten(f, widest_float(f.device))) for f in layers]
    xs = [x for x, _ in rescaled]
    if estimator == "biased":
        xs = [x - x.mean(0, keepdim=True) for x in xs]  # so that the gradient is centred too
    upper = [[(x.T @ y).square().sum() for y in xs[i:]] for i, x in enumerate(xs)]
    products = torch.stack(
        [
            torch.stack([upper[min(i, j)][abs(i - j)] for j in range(len(xs))])
            for i in range(len(xs))
        ]
    )
    scales = torch.stack([scale for _, scale in rescaled])
    squares = torch.stack([x.square().sum(1) for x in xs])
    lengths, norms = squares.detach(), products.detach().diagonal()
    errors = lengths.sum(1).square()
    eps = torch.tensor([torch.finfo(float_dtype(f)).eps for f in layers]).to(squares)
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
    # The differences above add rounding errors of sums of n numbers in float64.
    own = (ROUNDING_ERRORS + n) * torch.finfo(products.dtype).eps * norms
    return products, torch.maximum((ROUNDING_ERRORS * eps) ** 2 * errors, own), scales


def normalise(products: Tensor, floor: Tensor) -> Tensor:
    """CKA of all pairs from the inner products of their centred Gram matrices."""
    inverse = inverse_norms(products.diagonal(), floor)
    return products * (inverse[:, None] * inverse[None, :]) + 0.0  # no -0.0


def _cka(
    features: Sequence[Tensor],
    estimator: Estimator,
    kernel: Kernel = "linear",
    bandwidth: float = 1.0,
) -> Tensor:
    check_bandwidth(bandwidth)
    layers = check_layers(features, estimator)
    products, floor, _ = products_of(layers, estimator, kernel, bandwidth)
    dtypes = {float_dtype(f) for f in layers}
    return normalise(products, floor).to(dtypes.pop() if len(dtypes) == 1 else torch.float64)


def cka_matrix(
    features: Sequence[Tensor],
    *,
    estimator: Estimator = "unbiased",
    kernel: Kernel = "linear",
    bandwidth: float = 1.0,
) -> Tensor:
    """CKA of every pair of layers on the same ``n`` samples.

    Layers much narrower than ``n`` need memory for matrices ``(d, d)``, other layers for one matrix
    ``(n, n)`` each.

    Args:
        features: one tensor ``(n, ...)`` per layer.
        estimator: ``"unbiased"`` (``n >= 4``) or ``"biased"`` (``n >= 2``).
        kernel: ``"linear"`` or ``"rbf"``.
        bandwidth: for ``"rbf"``, multiple of each layer's median distance (see :func:`gram_rbf`).

    Returns:
        A symmetric tensor ``(layers, layers)`` with diagonal 1 (0 for a dead layer).

    Raises:
        ValueError: if ``n`` differs between layers or is too small, or for an unknown option.
        TypeError: if ``features`` is not a list of real, dense tensors.
    """
    return _cka(features, estimator, kernel, bandwidth)


def linear_cka(x: Tensor, y: Tensor, estimator: Estimator = "unbiased") -> Tensor:
    """Linear CKA of two feature tensors ``(n, ...)``; a scalar.

    ``biased`` is Kornblith et al. 2019, eq. 4; ``unbiased`` uses HSIC_1 (Song et al. 2012). Raises
    the errors of :func:`cka_matrix`.
    """
    return _cka([x, y], estimator)[0, 1]


def rbf_cka(
    x: Tensor, y: Tensor, *, estimator: Estimator = "unbiased", bandwidth: float = 1.0
) -> Tensor:
    """CKA of two feature tensors ``(n, ...)`` with Gaussian kernels; a scalar.

    The kernels are those of :func:`gram_rbf`, computed in float64; ``bandwidth`` is a multiple of
    each layer's median distance. Raises the errors of :func:`cka_matrix`.
    """
    return _cka([x, y], estimator, "rbf", bandwidth)[0, 1]


def null_zscore(cka: float | Tensor, n: int) -> float | Tensor:
    """Unbiased CKA of ``n`` samples in units of its standard deviation under independence.

    If the rows of two layers are paired at random, unbiased CKA has mean 0 and variance exactly
    ``2 / (n (n - 3))``, for any data and any dimension (proof: theory/fewshot_law.py). Raises
    ValueError if ``n`` is below 4.
    """
    check_samples(n, "unbiased")
    return cka / math.sqrt(2 / (n * (n - 3)))
