"""Networks for image classification, created by name.

There is one file for each family of networks. Its docstring lists published accuracies and their
sources. ``torchvision:NAME`` and ``timm:NAME`` are the names of networks of other libraries.
"""

import importlib
import pkgutil

from .pretrained import load_pretrained
from .registry import builder, create, names, register

# A family registers its models when its module is imported.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["builder", "create", "load_pretrained", "names", "register"]
