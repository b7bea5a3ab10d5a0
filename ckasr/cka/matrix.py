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
"""Number of samples from which the memory of Gram matrices (n, n) matters more than arithmetic."""


def products_of(
    layers: list[Tensor], estimator: Estimator, kernel: Kernel = "linear", bandwidth: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return inner products of centred Gram matrices of features that are divided by a scale.

    Args:
        layers: tensor ``(n, ...)`` for each layer.
        estimator: ``"unbiased"`` or ``"biased"``.
        kernel: ``"linear"`` or ``"rbf"``.
        bandwidth: argument of :func:`gram_rbf`.

    Returns:
        In float64: the products ``(layers, layers)``, the largest squared norm ``(layers,)`` that
        counts as zero, and the scales ``(layers,)``.
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
    """Return a matrix with the CKA of :func:`gram_rbf`, which is accurate at any bandwidth.

    A narrow kernel has very small values off the diagonal. The unbiased estimator uses only these
    values, which are therefore multiplied by a common factor. The values of a wide kernel are 1
    minus very small values. Centring removes a constant, so 1 is subtracted exactly. The second
    result contains the squared errors for :func:`round_off`.
    """
    exponents, magnitudes = rbf_exponents(features, bandwidth)
    if estimator == "unbiased":
        nearest = exponents.detach().masked_fill(eye(exponents), math.inf).amin()
        exponents = exponents - nearest
    gram = (torch.expm1 if bandwidth > 1 else torch.exp)(-exponents)
    errors = gram.detach().abs() + torch.exp(-exponents.detach()) * magnitudes.clamp(max=1)
    return gram, errors.square()


def _is_narrow(layers: list[Tensor]) -> bool:
    """Return whether matrices ``(d, d)`` of features cost less than Gram matrices ``(n, n)``."""
    n = len(layers[0])
    widths = [math.prod(f.shape[1:]) for f in layers]
    return 2 * max(widths) <= n if n > _MANY_SAMPLES else sum(widths) <= n


def _products_of_features(
    layers: list[Tensor], estimator: Estimator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return :func:`products_of` for the linear kernel, without any ``(n, n)`` matrix.

    The biased product is ``|X'Y|^2`` of centred features. The unbiased product is ``n (n - 3)``
    times eq. 5 of Song et al. 2012. Let ``a`` be the squared lengths of the rows of ``X``, and let
    ``r = X X'1 - a`` be the row sums of its Gram matrix without the diagonal; ``b`` and ``q`` are
    the same for ``Y``. The unbiased product is
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
    # The differences above have the rounding errors of sums of n numbers in float64.
    own = (ROUNDING_ERRORS + n) * torch.finfo(products.dtype).eps * norms
    return products, torch.maximum((ROUNDING_ERRORS * eps) ** 2 * errors, own), scales


def normalise(products: Tensor, floor: Tensor) -> Tensor:
    """Return CKA of all pairs of layers from the inner products of their centred Gram matrices."""
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
    """Return CKA of every pair of layers on the same ``n`` samples.

    The function needs memory for one matrix ``(n, n)`` per layer, or for matrices ``(d, d)`` if the
    numbers of features ``d`` are much smaller than ``n``.

    Args:
        features: tensor ``(n, ...)`` for each layer.
        estimator: ``"unbiased"`` (``n >= 4``) or ``"biased"`` (``n >= 2``).
        kernel: ``"linear"`` or ``"rbf"``.
        bandwidth: factor of each layer's median distance for ``"rbf"`` (see :func:`gram_rbf`).

    Returns:
        A symmetric tensor ``(layers, layers)``. The diagonal is 1, or 0 for a dead layer.

    Raises:
        ValueError: if ``n`` differs between layers or is too small, and for an unknown option.
        TypeError: if ``features`` is not a list of real, dense tensors.
    """
    return _cka(features, estimator, kernel, bandwidth)


def linear_cka(x: Tensor, y: Tensor, estimator: Estimator = "unbiased") -> Tensor:
    """Return linear CKA of two feature tensors ``(n, ...)``, a scalar.

    The estimator ``biased`` is Kornblith et al. 2019 (arXiv 1905.00414), eq. 4. The estimator
    ``unbiased`` uses HSIC_1 (Song et al. 2012). Raises the errors of :func:`cka_matrix`.
    """
    return _cka([x, y], estimator)[0, 1]


def rbf_cka(
    x: Tensor, y: Tensor, *, estimator: Estimator = "unbiased", bandwidth: float = 1.0
) -> Tensor:
    """Return CKA of two feature tensors ``(n, ...)`` with Gaussian kernels, a scalar.

    The kernels are those of :func:`gram_rbf`, computed in float64; ``bandwidth`` is the factor of
    each layer's median distance. Raises the errors of :func:`cka_matrix`.
    """
    return _cka([x, y], estimator, "rbf", bandwidth)[0, 1]


def null_zscore(cka: float | Tensor, n: int) -> float | Tensor:
    """Return unbiased CKA of ``n`` samples divided by its standard deviation under independence.

    If the samples of two layers are paired at random, unbiased CKA has mean 0 and variance exactly
    ``2 / (n (n - 3))``, for any data and any dimension (proof: theory/fewshot_law.py).

    Args:
        cka: unbiased CKA, a number or a tensor of any shape.
        n: number of samples.

    Raises:
        ValueError: if ``n`` is below 4.
    """
    check_samples(n, "unbiased")
    return cka / math.sqrt(2 / (n * (n - 3)))
