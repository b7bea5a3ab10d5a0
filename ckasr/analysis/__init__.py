"""Statistics, tables and figures of run records; nothing is trained here."""

from .aa import aa_checks, aa_table
from .accuracy_figure import accuracy_vs_sparsity
from .cells import groups
from .claims import claims_table
from .curves_figure import training_curves
from .execution import execution_curves, execution_table
from .layers_figure import layer_cka_maps
from .methods import method_families, methods_table
from .methods_figure import method_accuracy
from .precision import chosen_precision, precision_rows, precision_table
from .precision_figure import precision_differences
from .statistics import Comparison, holm, paired_differences
from .style import save
from .tables import runs_table
from .verdict import learned, similarity_verdict, verdict_of
from .write import all_tables, write_all, write_executions

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
    "verdict_of",
    "write_all",
    "write_executions",
]
