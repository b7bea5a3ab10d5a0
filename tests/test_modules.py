"""The names of the package's modules."""

import importlib
import pkgutil
from types import ModuleType

import ckasr


def test_no_module_has_the_name_of_a_function_in_its_package():
    """A function ``ckasr.experiments.runs`` would make the module of this name hard to reach."""
    hidden = []
    for found in pkgutil.walk_packages(ckasr.__path__, "ckasr."):
        package, _, name = found.name.rpartition(".")
        importlib.import_module(found.name)
        if not isinstance(getattr(importlib.import_module(package), name), ModuleType):
            hidden.append(found.name)
    assert hidden == []
