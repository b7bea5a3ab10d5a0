"""Analysis: statistics, tables and figures, from run records alone."""

from .cells import groups
from .figures import accuracy_vs_sparsity, layer_cka_maps, training_curves
from .methods import method_families, methods_table
from .methods_figure import method_accuracy
from .statistics import Comparison, holm, paired_differences
from .tables import runs_table
from .verdict import verdict
from .write import save, write_all

__all__ = [
    "Comparison",
    "accuracy_vs_sparsity",
    "groups",
    "holm",
    "layer_cka_maps",
    "method_accuracy",
    "method_families",
    "methods_table",
    "paired_differences",
    "runs_table",
    "save",
    "training_curves",
    "verdict",
    "write_all",
]
