"""Follow the paths from a model's input to its output through the forward pass of the model.

Module `follow` runs the forward pass and replaces every operation on a tensor that depends on the
input by an operation that computes which entries depend on the input. The tables in `operations`
and the rules in `rules` describe the operations. An operation without a rule raises an error with
the name of the layer that calls it.
"""

from .layer_names import LayerNames
from .live import Live, live_weights
from .operations import (
    CONVOLUTIONS,
    COPIES,
    DROPOUTS,
    JOINS,
    MAXIMA,
    MOVES,
    SUMS,
    asks,
    in_place,
    name_of,
)
from .tensors import Reach

__all__ = [
    "CONVOLUTIONS",
    "COPIES",
    "DROPOUTS",
    "JOINS",
    "MAXIMA",
    "MOVES",
    "SUMS",
    "LayerNames",
    "Live",
    "Reach",
    "asks",
    "in_place",
    "live_weights",
    "name_of",
]
