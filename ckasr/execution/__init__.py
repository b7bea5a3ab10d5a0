"""Execution: how a masked network is computed.

For training, `sparse_execution` binds sparse kernels to a model, and `choose` decides where that
pays. For inference, each function in `INFERENCE` makes another module that computes the same.
"""

from .choice import EXECUTIONS, choose, summary
from .inference import INFERENCE
from .shrunk import shrink
from .sparse import SparseExecution, sparse_execution

__all__ = [
    "EXECUTIONS",
    "INFERENCE",
    "SparseExecution",
    "choose",
    "shrink",
    "sparse_execution",
    "summary",
]
