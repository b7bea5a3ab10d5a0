"""The official term as the authors' code computes it: three HSIC_1 per pair of layers.

This is the reference for ``ckasr.cka_sr_loss``. It has the same value, but it does not use the
identity that makes the cost O(layers), and its backward pass fills gradients of the size of the
whole batch with zeros. As in the authors' code, both Gram matrices are computed for every ordered
pair, in float64, from slices of the outputs. float32 is available for comparisons at equal
precision.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ckasr.terms import Term


def pairwise_term(stages: Sequence[Sequence[Tensor]], dtype: torch.dtype = torch.float64) -> Tensor:
    """Sum of the unbiased CKA over all ordered pairs of layers of each stage, with the diagonal.

    ``stages`` are the outputs of the layers of each stage, each of shape (n, ...).
    """
    terms = [_cka(x, y, dtype) for stage in stages for x in stage for y in stage]
    return torch.stack(terms).sum()


def _cka(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    k, l = (_hollow_gram(z, dtype) for z in (x, y))  # noqa: E741 - names of Song et al. 2012
    return _hsic(k, l) / torch.sqrt(_hsic(k, k) * _hsic(l, l))


def _hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    n = len(k)
    ones = torch.ones(n, 1, dtype=k.dtype, device=k.device)
    trace = (k @ l).diagonal().sum()  # The backward pass of torch.trace synchronises the device.
    sums = (ones.T @ k @ ones) * (ones.T @ l @ ones) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (ones.T @ k @ l @ ones)
    return (trace + sums - cross).squeeze() / (n * (n - 3))


def _hollow_gram(features: Tensor, dtype: torch.dtype) -> Tensor:
    flat = features.flatten(1).to(dtype)
    gram = flat @ flat.T
    return gram - torch.diag(torch.diag(gram))


class PairwiseTerm(Term):
    """The term of every step of a training loop. Hooks store the outputs of the layers.

    ``stages`` are the names of the modules of each stage. The term uses the first ``samples``
    samples of a batch, or all of them if it is None.
    """

    term, active = None, True

    def __init__(
        self,
        model: nn.Module,
        beta: float,
        stages: Sequence[Sequence[str]],
        samples: int | None = 8,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.beta, self.stages, self.samples, self.dtype = beta, stages, samples, dtype
        self._outputs: dict[str, Tensor] = {}
        for name in (name for stage in stages for name in stage):
            model.get_submodule(name).register_forward_hook(
                lambda _, args, output, name=name: self._outputs.__setitem__(name, output)
            )

    def __call__(self) -> Tensor:
        stages = [[self._outputs[name][: self.samples] for name in s] for s in self.stages]
        self._outputs = {}
        return self.beta * pairwise_term(stages, self.dtype)

    compute = __call__
