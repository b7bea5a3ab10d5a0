"""Networks for image classification, created by name.

One file for each family; accuracies that others published, with their source, stand in its
docstring. ``torchvision:NAME`` and ``timm:NAME`` name the networks of other libraries.
"""

import importlib
import pkgutil

from .pretrained import load_pretrained
from .registry import builder, create, names, register

# A family registers its models when its module is imported.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["builder", "create", "load_pretrained", "names", "register"]
