"""Analysis: statistics, tables and figures, from run records alone."""

from .aa import aa_checks, aa_table
from .cells import groups
from .claims import claims_table
from .execution import execution_curves, execution_table, write_executions
from .failures import failure_cells, failures, failures_table
from .failures_figure import failure_signatures, write_failures
from .few_shots import choices, few_shot_studies, few_shots_table, selection_bias
from .few_shots_figure import few_shots, write_few_shots
from .figures import accuracy_vs_sparsity, layer_cka_maps, training_curves
from .mechanism import hypotheses, mechanism_cells, mechanism_table
from .mechanism_figure import mechanism_maps, mechanism_numbers, write_mechanism
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
    "choices",
    "chosen_precision",
    "claims_table",
    "execution_curves",
    "execution_table",
    "failure_cells",
    "failure_signatures",
    "failures",
    "failures_table",
    "few_shot_studies",
    "few_shots",
    "few_shots_table",
    "groups",
    "holm",
    "hypotheses",
    "layer_cka_maps",
    "learned",
    "mechanism_cells",
    "mechanism_maps",
    "mechanism_numbers",
    "mechanism_table",
    "method_accuracy",
    "method_families",
    "methods_table",
    "paired_differences",
    "precision_differences",
    "precision_rows",
    "precision_table",
    "runs_table",
    "save",
    "selection_bias",
    "similarity_verdict",
    "training_curves",
    "verdict",
    "write_all",
    "write_executions",
    "write_failures",
    "write_few_shots",
    "write_mechanism",
]
