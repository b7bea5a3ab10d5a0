"""Magnitude pruning at initialisation: the weights with the largest initial magnitude are kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ckasr.sparsity import global_topk_masks

from . import scores
from .method import Context, Method


@dataclass
class Magnitude(Method):
    """Keeps the weights of the largest initial magnitude, over all layers together."""

    name: ClassVar[str] = "magnitude"
    summary: ClassVar[str] = "prunes the smallest weights of all layers before training"

    def prepare(self, context: Context) -> Mapping[str, Tensor]:
        return global_topk_masks(scores.magnitude(context.model), context.kept)
