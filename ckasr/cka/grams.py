"""Gram matrices of features, their centring and their norms."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .inputs import Estimator, check_layers, check_samples, check_tensor, float_dtype, widest_float

ROUNDING_ERRORS = 16
"""A centred Gram matrix is zero if its norm is at most this many rounding errors of its entries."""


def flatten(features: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Features ``(n, ...)`` as ``(n, d)``, minus their mean, in ``dtype`` or their float type.

    Images in channels_last keep that order of columns, which avoids a copy: no Gram matrix depends
    on the order.

    The mean is a constant for autograd. Every estimator is invariant to translations, so this
    changes no value and no gradient, but it avoids cancellation in float32 where offsets are large.
    The mean is computed relative to the first sample, so that a constant feature becomes exactly 0.
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
    """Integers minus those of the first sample, exact where ``dtype`` can represent the difference.

    The upper and the lower 32 bits are subtracted separately, as a difference can overflow int64.
    """
    x = x.long()
    upper, lower = x >> 32, x & 0xFFFFFFFF
    return (upper - upper[:1]).to(dtype) * 2.0**32 + (lower - lower[:1]).to(dtype)


def rescale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Features divided by their largest magnitude, and this magnitude (0 if they are all zero).

    No square can then overflow, and no relevant square can underflow. CKA does not depend on scale,
    so the magnitude is a constant for autograd.
    """
    largest = x.detach().abs().amax()
    return x / largest.clamp_min(torch.finfo(x.dtype).tiny), largest


class _Gram(torch.autograd.Function):
    """``X X'`` of ``(n, d)``. Its backward is one matrix product, autograd would need two."""

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
    """The same with forward-mode derivatives, which torch.compile does not accept in a Function."""

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
    return (_Gram if torch.compiler.is_compiling() else _GramForward).apply(x)


def gram_linear(features: Tensor) -> Tensor:
    """Gram matrix ``X X'`` of column-centred features ``(n, ...)``; shape ``(n, n)``."""
    return gram_of(flatten(check_tensor(features, "the input")))


def gram_rbf(features: Tensor, bandwidth: float = 1.0) -> Tensor:
    """Gram matrix ``exp(-|x_i - x_j|^2 / (2 s^2))`` of features ``(n, ...)``; shape ``(n, n)``.

    ``s`` is ``bandwidth`` times the median distance between two samples (Kornblith et al. 2019,
    section 3), or over the pairs that differ if most pairs are equal. The median is a constant for
    autograd. Raises ValueError unless ``bandwidth`` is positive and finite.
    """
    check_bandwidth(bandwidth)
    exponents, _ = rbf_exponents(check_tensor(features, "the input"), bandwidth)
    return torch.exp(-exponents).to(float_dtype(features))


def check_bandwidth(bandwidth: float) -> None:
    if not 0 < bandwidth < math.inf:
        raise ValueError(f"bandwidth must be positive and finite, got {bandwidth}")


def rbf_exponents(features: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """``|x_i - x_j|^2 / (2 s^2)`` of :func:`gram_rbf`, and their magnitude before cancellation.

    Both are ``(n, n)`` and of type float64, as a distance is a small difference of large squares.
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
    return torch.eye(gram.shape[-1], dtype=torch.bool, device=gram.device)


def center(gram: Tensor, estimator: Estimator) -> Tensor:
    """Centre Gram matrices ``(..., n, n)``: ``H K H`` (biased) or U-centred (unbiased).

    U-centring makes the diagonal and every row sum zero (Szekely & Rizzo 2014, eq. 2.9).
    Raises ValueError for an unknown estimator or too few samples.
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
    """Hilbert-Schmidt independence criterion of two Gram matrices ``(n, n)``; a scalar.

    ``unbiased`` is HSIC_1 (Song et al. 2012, eq. 5), computed as an inner product of U-centred Gram
    matrices; ``biased`` is ``tr(K H L H) / (n - 1)^2`` (Gretton et al. 2005, eq. 9). Raises
    ValueError as :func:`center` does.
    """
    n = gram_x.shape[-1]
    inner = (center(gram_x, estimator) * center(gram_y, estimator)).sum()
    return inner / hsic_scale(n, estimator)


def hsic_scale(n: int, estimator: Estimator) -> int:
    """HSIC is the inner product of two centred Gram matrices divided by this number."""
    return n * (n - 3) if estimator == "unbiased" else (n - 1) ** 2


def round_off(squared_errors: Tensor, estimator: str, eps: float) -> Tensor:
    """Largest squared norm at which centred Gram matrices count as zero.

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
    """Inverse norms from squared norms: 0 for a square of at most ``floor``, NaN for NaN."""
    return squares.masked_fill(squares <= floor, math.inf).rsqrt()


def unit_grams(features: Sequence[Tensor], estimator: Estimator = "unbiased") -> Tensor:
    """Centred linear Gram matrices of Frobenius norm 1, ``(layers, n * n)``; 0 for a dead layer.

    CKA of two layers is the inner product of their rows. The sum over all pairs of layers is the
    squared norm of the sum of the rows, which costs O(layers) instead of O(layers squared). There
    is no synchronisation with the device, so a CUDA graph can capture this function.
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
