"""Types of the arguments of this package, and checks of features."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ckasr.choices import check_choice

Estimator = Literal["unbiased", "biased"]
Kernel = Literal["linear", "rbf"]
Variant = Literal["official", "paper", "aug"]
Pairs = Literal["within", "all", "adjacent", "input"]

MIN_UNBIASED_SAMPLES = 4


def check_samples(n: int, estimator: str) -> None:
    """Raise ValueError for an unknown estimator, or if ``n`` is too small for the estimator."""
    check_choice("estimator", estimator, Estimator)
    if estimator == "unbiased" and n < MIN_UNBIASED_SAMPLES:
        raise ValueError(
            f"unbiased HSIC needs at least {MIN_UNBIASED_SAMPLES} samples, got n = {n}; "
            "take more samples or estimator='biased'"
        )
    if n < 2:
        raise ValueError(f"CKA needs at least 2 samples, got n = {n}")


def check_tensor(features: Any, what: str) -> Tensor:
    """Check that features are a real, dense tensor ``(n, ...)`` with at least one feature.

    Args:
        features: the features, which are returned.
        what: description of the features, for the error message.

    Raises:
        TypeError: unless the features are a real, dense tensor of a type that torch can subtract.
        ValueError: for a scalar, and for a tensor without features.
    """
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


def check_layers(features: Sequence[Tensor], estimator: str) -> list[Tensor]:
    """Check the features of all layers, and return them as a list.

    Args:
        features: tensor ``(n, ...)`` for each layer.
        estimator: ``"unbiased"`` or ``"biased"``.

    Raises:
        TypeError: for one tensor instead of a list, and as ``check_tensor``.
        ValueError: for no layer, for layers with different ``n``, for an ``n`` that is too small
            for the estimator, and as ``check_tensor``.
    """
    if isinstance(features, Tensor):
        raise TypeError(
            f"expected a list of tensors, one for each layer, got one tensor of shape "
            f"{tuple(features.shape)}; for one layer pass [x], for a stack x.unbind()"
        )
    layers = [check_tensor(f, f"layer {i}") for i, f in enumerate(features)]
    if not layers:
        raise ValueError("CKA needs at least one layer, got none")
    sizes = {len(f) for f in layers}
    if len(sizes) > 1:
        raise ValueError(f"all layers must hold the same samples, got n = {sorted(sizes)}")
    check_samples(len(layers[0]), estimator)
    return layers


def widest_float(device: torch.device) -> torch.dtype:
    """Return the widest floating-point type of a device: float64, or float32 on Apple GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


def float_dtype(features: Tensor) -> torch.dtype:
    """Return the type in which features are centred, which is also the type of their CKA."""
    if not features.is_floating_point():
        return widest_float(features.device)
    return torch.float64 if features.dtype == torch.float64 else torch.float32
