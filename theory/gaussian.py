"""Closed forms for jointly Gaussian models, which the checks of the theory use as ground truth.

The model is X ~ N(0, S) and Y = W X + e, where e ~ N(0, R) is independent of X. All matrices are
float64 and may have leading batch dimensions, written ``...`` below. Mutual information is in nats.
In the arguments, ``cross`` is the cross-covariance Sxy (..., p, q), ``s_x`` (..., p, p) and ``s_y``
(..., q, q) are the covariances of X and Y, ``w`` has shape (..., q, p), ``s`` (..., p, p) and ``r``
(..., q, q).
"""

import torch
from torch import Tensor


def generator(seed: int) -> torch.Generator:
    """A random number generator on the CPU with this seed."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, rng: torch.Generator) -> Tensor:
    """Standard normal numbers in float64, of the given shape."""
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def covariance(
    *batch: int, size: int, rng: torch.Generator, condition: float | Tensor = 10.0
) -> Tensor:
    """Random covariances of shape (*batch, size, size).

    The eigenvectors are uniformly distributed. The logarithms of the eigenvalues are uniformly
    distributed, and the eigenvalues lie in [1/condition, 1].
    """
    basis, _ = torch.linalg.qr(normal(*batch, size, size, rng=rng))
    power = torch.rand(*batch, size, generator=rng, dtype=torch.float64)
    values = torch.as_tensor(condition, dtype=torch.float64) ** -power
    return (basis * values[..., None, :]) @ basis.mT


def root(matrix: Tensor, power: float = 0.5) -> Tensor:
    """The given power of symmetric positive definite matrices (..., n, n)."""
    values, basis = torch.linalg.eigh(matrix)
    return (basis * values.pow(power)[..., None, :]) @ basis.mT


def trace(matrix: Tensor) -> Tensor:
    """Trace of matrices (..., n, n), shape (...)."""
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def norm(matrix: Tensor) -> Tensor:
    """Frobenius norm of matrices (..., m, n), shape (...)."""
    return torch.linalg.matrix_norm(matrix)


def cka(cross: Tensor, s_x: Tensor, s_y: Tensor) -> Tensor:
    """Population linear CKA, ||Sxy||^2 / (||Sx|| ||Sy||), shape (...).

    The formula holds for every distribution with these covariances, Gaussian or not. Its sample
    version is the biased CKA of Kornblith et al. (2019, arXiv 1905.00414).
    """
    return norm(cross).square() / (norm(s_x) * norm(s_y))


def canonical(cross: Tensor, s_x: Tensor, s_y: Tensor) -> Tensor:
    """Canonical correlations of X and Y, largest first, shape (..., min(p, q))."""
    return torch.linalg.svdvals(root(s_x, -0.5) @ cross @ root(s_y, -0.5))


def information(cross: Tensor, s_x: Tensor, s_y: Tensor) -> Tensor:
    """I(X; Y) = -1/2 sum ln(1 - rho_i^2) of jointly Gaussian X and Y, in nats, shape (...).

    The values are also accurate for very small canonical correlations rho_i.
    """
    return -0.5 * torch.log1p(-canonical(cross, s_x, s_y).square()).sum(-1)


def moments(w: Tensor, s: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The covariances (Sxy, Sx, Sy) of X and Y = W X + e."""
    return s @ w.mT, s.expand(*w.shape[:-2], *s.shape[-2:]), w @ s @ w.mT + r


def layer_cka(w: Tensor, s: Tensor, r: Tensor) -> Tensor:
    """CKA(X, W X + e) of a linear layer with noise, shape (...); ``r`` = 0 means no noise."""
    return cka(*moments(w, s, r))


def layer_information(w: Tensor, s: Tensor, r: Tensor) -> Tensor:
    """I(X; Y) = 1/2 [ln det(W S W' + R) - ln det R] in nats, shape (...), differentiable in W."""
    _, _, s_y = moments(w, s, r)
    return 0.5 * (torch.logdet(s_y) - torch.logdet(r))
