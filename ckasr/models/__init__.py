"""Models: CIFAR ResNets, LeNet-300-100 and a residual MLP, created by name."""

import importlib
import pkgutil

from .pretrained import load_pretrained
from .registry import builder, create, names, register

# A family registers its models when it is imported.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["builder", "create", "load_pretrained", "names", "register"]
