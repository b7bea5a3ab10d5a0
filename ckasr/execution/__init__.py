"""Execution: dense and sparse computation of a masked network.

For training, `sparse_execution` replaces parts of a model's forward by sparse kernels, and `choose`
decides whether this is faster. For inference, each function in `INFERENCE` returns a new module
with the same outputs.
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
