"""Gram matrices of features, their centring and their norms."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .inputs import Estimator, check_layers, check_samples, check_tensor, float_dtype, widest_float

ROUNDING_ERRORS = 16
"""A centred Gram matrix counts as zero if its norm is at most this number of rounding errors."""


def flatten(features: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Flatten features ``(n, ...)`` to ``(n, d)``, and subtract their mean.

    Images in channels_last keep the order of their memory, which avoids a copy. Gram matrices do
    not depend on the order of the columns.

    The mean is a constant for autograd. The estimators are invariant to translations, so the
    subtraction changes no CKA and no gradient, but it avoids cancellation in float32 for features
    with large offsets. The mean is computed relative to the first sample, so that a constant
    feature becomes exactly 0.

    Args:
        features: tensor ``(n, ...)``.
        dtype: type of the result; None for the type of ``float_dtype``.
    """
    if features.dim() == 4 and features.stride(1) == 1:
        features = features.permute(0, 2, 3, 1)
    x = features.flatten(1) if features.dim() > 1 else features[:, None]
    dtype = dtype or float_dtype(features)
    if x.dtype != dtype:
        x = x.to(dtype) if x.is_floating_point() else _differences(x, dtype)
    with torch.no_grad():
        first = x[:1]
        shift = first + (x - first).mean(0, keepdim=True)
    return x - shift


def _differences(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return integers minus those of the first sample.

    The result is exact if ``dtype`` can represent the difference. The upper and the lower 32 bits
    are subtracted separately, because a difference can overflow int64.
    """
    x = x.long()
    upper, lower = x >> 32, x & 0xFFFFFFFF
    return (upper - upper[:1]).to(dtype) * 2.0**32 + (lower - lower[:1]).to(dtype)


def rescale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Divide features by their largest magnitude. Returns the result and the magnitude, a scalar.

    The squares of the result do not overflow, and only negligible squares underflow. The magnitude
    is a constant for autograd, because CKA does not depend on scale.
    """
    largest = x.detach().abs().amax()
    return x / largest.clamp_min(torch.finfo(x.dtype).tiny), largest


class _Gram(torch.autograd.Function):
    """``X X'`` of ``(n, d)``. The backward is one matrix product instead of autograd's two."""

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
    """``_Gram`` with forward-mode derivatives, which torch.compile does not support."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        half = tangent @ x.mT
        return half + half.mT


def gram_of(x: Tensor) -> Tensor:
    """Return ``X X'``, of shape ``(n, n)``, for a matrix ``X`` of shape ``(n, d)``."""
    return (_Gram if torch.compiler.is_compiling() else _GramForward).apply(x)


def gram_linear(features: Tensor) -> Tensor:
    """Return the Gram matrix ``X X'`` of column-centred features ``(n, ...)``, of shape ``(n, n)``.

    Raises TypeError or ValueError unless the features are a real, dense tensor that is not empty.
    """
    return gram_of(flatten(check_tensor(features, "the input")))


def gram_rbf(features: Tensor, bandwidth: float = 1.0) -> Tensor:
    """Return the Gram matrix ``exp(-|x_i - x_j|^2 / (2 s^2))``, of shape ``(n, n)``.

    ``s`` is ``bandwidth`` times the median distance between two samples (Kornblith et al. 2019,
    arXiv 1905.00414, section 3). If most pairs of samples are equal, the median is taken over the
    pairs that differ. It is a constant for autograd.

    Args:
        features: tensor ``(n, ...)``.
        bandwidth: factor of the median distance.

    Raises:
        ValueError: unless ``bandwidth`` is positive and finite, and for a tensor without features.
        TypeError: unless the features are a real, dense tensor.
    """
    check_bandwidth(bandwidth)
    exponents, _ = rbf_exponents(check_tensor(features, "the input"), bandwidth)
    return torch.exp(-exponents).to(float_dtype(features))


def check_bandwidth(bandwidth: float) -> None:
    """Raise ValueError unless the bandwidth is positive and finite."""
    if not 0 < bandwidth < math.inf:
        raise ValueError(f"bandwidth must be positive and finite, got {bandwidth}")


def rbf_exponents(features: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """Return the exponents of :func:`gram_rbf`, and their magnitudes before cancellation.

    The exponents are ``|x_i - x_j|^2 / (2 s^2)``, the magnitudes ``(|x_i|^2 + |x_j|^2) / (2 s^2)``.
    Both are ``(n, n)``. They are float64, because a distance can be a small difference of large
    numbers. The second matrix determines the rounding error of the first one.
    """
    x, _ = rescale(flatten(features, widest_float(features.device)))
    products = gram_of(x)
    squares = products.diagonal()
    sums = squares[:, None] + squares[None, :]
    distances = (sums - 2 * products).clamp_min(0)
    # detach, because no_grad() does not stop forward-mode derivatives.
    sums, pairs = sums.detach(), distances.detach()
    zero = pairs <= ROUNDING_ERRORS * torch.finfo(x.dtype).eps * sums
    pairs = pairs.masked_fill(zero, 0).masked_fill(eye(pairs), math.nan)
    median = pairs.nanmedian()
    median_of_different = pairs.masked_fill(zero, math.nan).nanmedian()
    median = torch.where(median > 0, median, median_of_different)
    scale = torch.where(median > 0, 2 * bandwidth**2 * median, 1)
    return distances / scale, sums / scale


def eye(gram: Tensor) -> Tensor:
    """Return a bool matrix ``(n, n)``, True on the diagonal, for Gram matrices ``(..., n, n)``."""
    return torch.eye(gram.shape[-1], dtype=torch.bool, device=gram.device)


def center(gram: Tensor, estimator: Estimator) -> Tensor:
    """Centre Gram matrices ``(..., n, n)``: ``H K H`` (biased) or U-centred (unbiased).

    U-centring makes the diagonal and every row sum zero (Szekely & Rizzo 2014, eq. 2.9).

    Raises:
        ValueError: for an unknown estimator, or too few samples for the estimator.
    """
    n = gram.shape[-1]
    check_samples(n, estimator)
    if estimator == "biased":
        rows = gram.mean(-1, keepdim=True)
        return gram - rows - rows.mT + rows.mean(-2, keepdim=True)
    diagonal = eye(gram)
    hollow = gram.masked_fill(diagonal, 0)
    rows = hollow.sum(-1, keepdim=True) / (n - 2)
    total = rows.sum(-2, keepdim=True) / (n - 1)
    return (hollow - rows - rows.mT + total).masked_fill(diagonal, 0)


def hsic(gram_x: Tensor, gram_y: Tensor, estimator: Estimator = "unbiased") -> Tensor:
    """Return the Hilbert-Schmidt independence criterion of two Gram matrices ``(n, n)``, a scalar.

    The estimator ``unbiased`` is HSIC_1 (Song et al. 2012, eq. 5), computed as an inner product of
    U-centred Gram matrices. The estimator ``biased`` is ``tr(K H L H) / (n - 1)^2`` (Gretton et al.
    2005, eq. 9).

    Raises:
        ValueError: as :func:`center`.
    """
    n = gram_x.shape[-1]
    inner = (center(gram_x, estimator) * center(gram_y, estimator)).sum()
    return inner / hsic_scale(n, estimator)


def hsic_scale(n: int, estimator: Estimator) -> int:
    """Return the number by which an inner product of centred Gram matrices is divided for HSIC."""
    return n * (n - 3) if estimator == "unbiased" else (n - 1) ** 2


def round_off(squared_errors: Tensor, estimator: str, eps: float) -> Tensor:
    """Return the largest squared norm at which a centred Gram matrix counts as zero.

    Args:
        squared_errors: shape ``(..., n, n)``, squared magnitudes of the entries of the Gram
            matrices before any cancellation. A magnitude times ``eps`` is a rounding error.
        estimator: ``"unbiased"`` or ``"biased"``.
        eps: machine epsilon of the features.
    """
    if estimator == "unbiased":  # the diagonal is not used
        return 2 * (ROUNDING_ERRORS * eps) ** 2 * squared_errors.triu(1).sum((-2, -1))
    return (ROUNDING_ERRORS * eps) ** 2 * squared_errors.sum((-2, -1))


def inverse_norms(squares: Tensor, floor: Tensor) -> Tensor:
    """Return inverse norms from squared norms: 0 for squares up to ``floor``, and NaN for NaN."""
    return squares.masked_fill(squares <= floor, math.inf).rsqrt()


def unit_grams(features: Sequence[Tensor], estimator: Estimator = "unbiased") -> Tensor:
    """Return centred linear Gram matrices of Frobenius norm 1, of shape ``(layers, n * n)``.

    The row of a dead layer is 0. CKA of two layers is the inner product of their rows. The sum of
    CKA over all pairs of layers is the squared norm of the sum of the rows, whose cost is O(layers)
    instead of O(layers squared). The function does not synchronise with the device, so that a CUDA
    graph can capture it.

    Args:
        features: tensor ``(n, ...)`` for each layer.
        estimator: ``"unbiased"`` or ``"biased"``.

    Raises:
        ValueError, TypeError: as :func:`cka_matrix`.
    """
    layers = check_layers(features, estimator)
    with torch.autocast(layers[0].device.type, enabled=False):
        grams = torch.stack([gram_of(flatten(f)) for f in layers])
        tiny, eps = torch.finfo(grams.dtype).tiny, torch.finfo(grams.dtype).eps
        with torch.no_grad():
            largest = grams.diagonal(dim1=1, dim2=2).amax(1)[:, None, None].clamp_min(tiny)
        grams = grams / largest  # so that no square overflows or underflows
        with torch.no_grad():
            squares = grams.diagonal(dim1=1, dim2=2)
            floor = round_off(squares[:, :, None] * squares[:, None, :], estimator, eps)
        centred = center(grams, estimator).flatten(1)
        return centred * inverse_norms(centred.square().sum(1), floor)[:, None]
