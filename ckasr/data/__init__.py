"""Data: load a set by its name, split it, turn it into batches on the device."""

from .datasets import NAMES, Dataset, data_root, fetch, load, source_of
from .loader import AUGMENTS, Batches, Plan, keyed_generator, split

__all__ = [
    "AUGMENTS",
    "NAMES",
    "Batches",
    "Dataset",
    "Plan",
    "data_root",
    "fetch",
    "keyed_generator",
    "load",
    "source_of",
    "split",
]
