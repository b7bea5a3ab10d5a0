"""A placebo: the CKA-SR term of layers whose samples are paired at random."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ckasr.data import keyed_generator
from ckasr.regularizer import CKASR


class Shuffled(CKASR):
    """CKA-SR after the samples of each layer were permuted, each layer by its own permutation.

    Hooks, cost, layers, samples and scale are those of CKA-SR, but sample i of one layer meets
    another sample of the next layer, so the term says nothing about the similarity of the layers.
    For the variant ``official`` the value of each pair of layers, and so its gradient, has mean 0
    over the permutations, because the unbiased estimator of HSIC has. For ``paper`` and ``aug`` the
    mean keeps the bias of their estimator.

    The permutations are new at every step with the term. They depend on the seed, the epoch and the
    step alone. The global random generator is not used.

    Args:
        seed: seed of the permutations.
        model, beta, options: as in :class:`ckasr.CKASR`.
    """

    name: ClassVar[str] = "shuffled"
    label: ClassVar[str] = "shuffled placebo"
    summary: ClassVar[str] = "placebo: the term cka_sr with the samples of each layer permuted"

    def __init__(self, model: nn.Module, beta: float, *, seed: int = 0, **options: Any) -> None:
        super().__init__(model, beta, **options)
        self.seed = seed
        self._epoch = 0
        # Row l, sorted, is the permutation of layer l. Made at the first step with the term, when
        # the number of samples is known, and changed in place from then on, for a CUDA graph.
        self._keys: Tensor | None = None

    def advance(self) -> None:
        super().advance()
        self._draw()

    def reset(self, epoch: int = 0) -> None:
        super().reset(epoch)
        self._epoch = epoch
        self._draw()

    def _grouped(self, features: dict[str, Tensor]) -> list[list[Tensor]]:
        groups = super()._grouped(features)
        layers = sum(map(len, groups))
        samples = max(len(feature) for group in groups for feature in group)
        if self._keys is None or self._keys.shape[1] < samples:
            self._keys = torch.empty(layers, samples, device=groups[0][0].device)
            self._draw()
        rows = iter(self._keys)
        return [
            [x.index_select(0, next(rows)[: len(x)].argsort()) for x in group] for group in groups
        ]

    def _draw(self) -> None:
        """Draw the keys of the coming step, if it has the term."""
        if self._keys is None or not self.due:
            return
        generator = keyed_generator("pairing", self.seed, self._epoch, self._step)
        layers, samples = self._keys.shape
        # A sample's keys come in one piece: they do not depend on how many samples follow.
        drawn = torch.rand(samples, layers, generator=generator).T.contiguous()
        self._keys.copy_(drawn, non_blocking=True)
