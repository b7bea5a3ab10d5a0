"""Data: load a data set by its name, split it, and divide it into batches."""

import importlib
import pkgutil

from .batches import Batch, Batches, Indices
from .images import AUGMENTS, ImageBatches, ImageDataset, Plan
from .registry import Dataset, data_root, fetch, load, names, register, source_of
from .sampling import keyed_generator, split

# A data set registers itself when its module is imported.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "AUGMENTS",
    "Batch",
    "Batches",
    "Dataset",
    "ImageBatches",
    "ImageDataset",
    "Indices",
    "Plan",
    "data_root",
    "fetch",
    "keyed_generator",
    "load",
    "names",
    "register",
    "source_of",
    "split",
]
