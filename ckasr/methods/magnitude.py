"""Magnitude pruning at initialisation: the weights that were drawn largest stay."""

from dataclasses import dataclass
from typing import ClassVar

from ckasr.sparsity import global_topk_masks

from . import scores
from .method import Context, Method


@dataclass
class Magnitude(Method):
    name: ClassVar[str] = "magnitude"
    summary: ClassVar[str] = "smallest weights of all layers, before training"

    def prepare(self, context: Context) -> None:
        context.masks.update(global_topk_masks(scores.magnitude(context.model), context.kept))
