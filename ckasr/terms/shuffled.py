"""A placebo: the CKA-SR term of layers whose samples are paired at random."""

from typing import ClassVar

import torch
from torch import Tensor

from .placebo import Placebo


class Shuffled(Placebo):
    """CKA-SR after the samples of each layer were permuted, each layer by its own permutation.

    Hooks, cost, layers, samples and scale are those of CKA-SR, but sample i of one layer meets
    another sample of the next layer, so the term does not measure the similarity of the layers.
    For the variant ``official`` the value of each pair of layers, and so its gradient, has mean 0
    over the permutations, because the unbiased estimator of HSIC has. For ``paper`` and ``aug`` the
    mean keeps the bias of their estimator.
    """

    name: ClassVar[str] = "shuffled"
    label: ClassVar[str] = "shuffled placebo"
    summary: ClassVar[str] = "placebo: the term cka_sr with the samples of each layer permuted"

    _keys: Tensor | None = None
    """(layers, samples): row l, sorted, gives the permutation of layer l."""

    def _grouped(self, features: dict[str, Tensor]) -> list[list[Tensor]]:
        groups = super()._grouped(features)
        layers = sum(map(len, groups))
        samples = max(len(feature) for group in groups for feature in group)
        if self._keys is None or self._keys.shape[1] < samples:
            self._keys = torch.empty(layers, samples, device=groups[0][0].device)
            self.draw()
        rows = iter(self._keys)
        return [
            [x.index_select(0, next(rows)[: len(x)].argsort()) for x in group] for group in groups
        ]

    def _fill(self, generator: torch.Generator) -> None:
        if self._keys is None:
            return
        layers, samples = self._keys.shape
        # A sample's keys come in one piece: they do not depend on how many samples follow.
        drawn = torch.rand(samples, layers, generator=generator).T.contiguous()
        self._keys.copy_(drawn, non_blocking=True)
