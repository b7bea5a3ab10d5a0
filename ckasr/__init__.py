"""The regularizer CKA-SR (arXiv 2307.07389) for any PyTorch training loop, and sparse training."""

import importlib
from typing import Any

from ckasr.cka import (
    MinibatchCKA,
    cka_matrix,
    cka_sr_loss,
    hsic,
    linear_cka,
    null_zscore,
    rbf_cka,
)
from ckasr.regularizer import CKASR, find_stages

__version__ = "0.1.0"
__all__ = [
    "CKASR",
    "MinibatchCKA",
    "cka_matrix",
    "cka_sr_loss",
    "find_stages",
    "hsic",
    "linear_cka",
    "null_zscore",
    "rbf_cka",
    "sparse_execution",
]

_PACKAGES = (
    "analysis",
    "data",
    "execution",
    "experiments",
    "methods",
    "models",
    "sparsity",
    "terms",
    "training",
)


def __getattr__(name: str) -> Any:
    """Import a package such as ``ckasr.models`` at its first use, so ``import ckasr`` is fast."""
    if name in _PACKAGES:
        return importlib.import_module(f"ckasr.{name}")
    if name == "sparse_execution":
        return importlib.import_module("ckasr.execution").sparse_execution
    raise AttributeError(f"module 'ckasr' has no attribute {name!r}")
