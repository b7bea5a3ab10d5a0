"""A placebo: a random direction in the weights, as long as the gradient of the CKA-SR term."""

from typing import ClassVar

import torch
from torch import Generator, Tensor

from .placebo import Placebo


class RandomDirection(Placebo):
    """A term whose gradient is random and has the norm of the gradient of CKA-SR.

    The norms are equal for each parameter, over its weights that are not pruned. Pruned ones, which
    are exactly 0, have the gradient 0; entries of vectors (biases, batch norm) all count as kept.
    The value of the term is that of CKA-SR. A step with the term costs one more backward pass.
    """

    name: ClassVar[str] = "random_direction"
    label: ClassVar[str] = "random-direction placebo"
    summary: ClassVar[str] = "placebo: a random gradient of the norm that the one of cka_sr has"

    _noise: list[Tensor] | None = None
    """Standard normal numbers, in the shapes of the parameters that are trained."""

    def compute(self) -> Tensor:
        weighted = super().compute()
        if self.term is None or not weighted.requires_grad:
            return weighted
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if self._noise is None:
            self._noise = [torch.empty_like(p) for p in parameters]
            self.draw()
        gradients = torch.autograd.grad(
            weighted, parameters, retain_graph=True, materialize_grads=True
        )
        value = weighted.detach()
        for parameter, gradient, noise in zip(parameters, gradients, self._noise, strict=True):
            direction = _like(gradient, noise, parameter.detach())
            along = (parameter * direction).sum()
            value = value + (along - along.detach())
        return value

    def _fill(self, generator: Generator) -> None:
        for noise in self._noise or ():
            noise.copy_(torch.randn(noise.shape, generator=generator), non_blocking=True)


def _like(gradient: Tensor, noise: Tensor, parameter: Tensor) -> Tensor:
    """The noise of the kept weights, scaled to the norm of their gradient; 0 if all are pruned."""
    if parameter.dim() > 1:
        kept = parameter != 0
        gradient, noise = gradient * kept, noise * kept
    norm = torch.linalg.vector_norm
    return noise * (norm(gradient) / norm(noise).clamp(min=1e-12))
