"""Sparsity: densities of layers, masks, and the report on a masked network."""

from .densities import DISTRIBUTIONS, allocate, layer_densities
from .layers import prunable, weight_owners
from .masks import Masks, dense_masks, global_topk_masks, random_masks, topk_masks
from .reporting import report

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
    "topk_masks",
    "weight_owners",
]


def __getattr__(name: str) -> object:
    if name == "shrink":  # also documented as ckasr.sparsity.shrink
        from ckasr.execution import shrink

        return shrink
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
