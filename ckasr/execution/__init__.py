"""Execution: how a masked network is computed."""

from .choice import EXECUTIONS, choose, summary
from .sparse import SparseExecution, sparse_execution

__all__ = ["EXECUTIONS", "SparseExecution", "choose", "sparse_execution", "summary"]
