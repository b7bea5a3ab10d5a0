"""Analysis: statistics, tables and figures, from run records alone."""

from .aa import aa_checks, aa_table
from .cells import groups
from .claims import claims_table, headline_table
from .execution import execution_curves, execution_table, write_executions
from .figures import accuracy_vs_sparsity, layer_cka_maps, training_curves
from .methods import method_families, methods_table
from .methods_figure import method_accuracy
from .precision import chosen_precision, precision_rows, precision_table
from .precision_figure import precision_differences
from .statistics import Comparison, holm, paired_differences
from .tables import runs_table
from .verdict import learned, similarity_verdict, verdict
from .write import all_tables, save, write_all

__all__ = [
    "Comparison",
    "aa_checks",
    "aa_table",
    "accuracy_vs_sparsity",
    "all_tables",
    "chosen_precision",
    "claims_table",
    "execution_curves",
    "execution_table",
    "groups",
    "headline_table",
    "holm",
    "layer_cka_maps",
    "learned",
    "method_accuracy",
    "method_families",
    "methods_table",
    "paired_differences",
    "precision_differences",
    "precision_rows",
    "precision_table",
    "runs_table",
    "save",
    "similarity_verdict",
    "training_curves",
    "verdict",
    "write_all",
    "write_executions",
]
