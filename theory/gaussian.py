"""Jointly Gaussian models with closed forms: the ground truth of the theory checks.

X ~ N(0, S) and Y = W X + e with e ~ N(0, R) independent of X. All matrices are float64 and may
carry leading batch dimensions. Mutual information is in nats.
"""

import torch
from torch import Tensor


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, rng: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def covariance(
    *batch: int, size: int, rng: torch.Generator, condition: float | Tensor = 10.0
) -> Tensor:
    """Random covariances (*batch, size, size): eigenvalues log-uniform in [1/condition, 1]."""
    basis, _ = torch.linalg.qr(normal(*batch, size, size, rng=rng))
    power = torch.rand(*batch, size, generator=rng, dtype=torch.float64)
    values = torch.as_tensor(condition, dtype=torch.float64) ** -power
    return (basis * values[..., None, :]) @ basis.mT


def root(matrix: Tensor, power: float = 0.5) -> Tensor:
    """A power of symmetric positive definite matrices (..., n, n)."""
    values, basis = torch.linalg.eigh(matrix)
    return (basis * values.pow(power)[..., None, :]) @ basis.mT


def trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def norm(matrix: Tensor) -> Tensor:
    """Frobenius norm."""
    return torch.linalg.matrix_norm(matrix)


def cka(cross: Tensor, s_x: Tensor, s_y: Tensor) -> Tensor:
    """Population linear CKA: ||Sxy||^2 / (||Sx|| ||Sy||), of any law with these covariances."""
    return norm(cross).square() / (norm(s_x) * norm(s_y))


def canonical(cross: Tensor, s_x: Tensor, s_y: Tensor) -> Tensor:
    """Canonical correlations, largest first."""
    return torch.linalg.svdvals(root(s_x, -0.5) @ cross @ root(s_y, -0.5))


def information(cross: Tensor, s_x: Tensor, s_y: Tensor) -> Tensor:
    """I(X;Y) = -1/2 sum ln(1 - rho_i^2) of jointly Gaussian X and Y, exact also for tiny rho."""
    return -0.5 * torch.log1p(-canonical(cross, s_x, s_y).square()).sum(-1)


def moments(w: Tensor, s: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(Sxy, Sx, Sy) of Y = W X + e."""
    return s @ w.mT, s.expand(*w.shape[:-2], *s.shape[-2:]), w @ s @ w.mT + r


def layer_cka(w: Tensor, s: Tensor, r: Tensor) -> Tensor:
    """CKA(X, Y) of the noisy linear layer; r = 0 for the deterministic one."""
    return cka(*moments(w, s, r))


def layer_information(w: Tensor, s: Tensor, r: Tensor) -> Tensor:
    """I(X;Y) = 1/2 [ln det(W S W' + R) - ln det R], differentiable in W."""
    _, _, s_y = moments(w, s, r)
    return 0.5 * (torch.logdet(s_y) - torch.logdet(r))
