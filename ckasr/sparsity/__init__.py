"""Sparsity: layer densities, masks, and what a mask leaves of a network."""

from .densities import DISTRIBUTIONS, allocate, layer_densities
from .masks import Masks, dense_masks, global_topk_masks, prunable, random_masks, topk_masks
from .report import report
from .shrink import shrink

__all__ = [
    "DISTRIBUTIONS",
    "Masks",
    "allocate",
    "dense_masks",
    "global_topk_masks",
    "layer_densities",
    "prunable",
    "random_masks",
    "report",
    "shrink",
    "topk_masks",
]
