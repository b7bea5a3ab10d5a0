"""Execution: how a masked network is computed."""

from .sparse import SparseExecution, sparse_execution

__all__ = ["SparseExecution", "sparse_execution"]
