"""Following the paths from a model's input to its output, through the model's own forward pass.

`follow` replaces every operation that the forward pass calls on a tensor that depends on the input
by one that computes which entries depend on it. What an operation does is in the tables of
`operations` and in the rules of `rules`. An operation without a rule is refused with the name of
the layer that calls it: nothing is assumed about it.
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
