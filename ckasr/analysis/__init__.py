"""Statistics, tables and figures of the records of runs. No network is trained in this package."""

from .aa import aa_checks, aa_table
from .accuracy_figure import accuracy_vs_sparsity
from .architectures import architecture_effects, architecture_studies, architectures_table
from .architectures_figure import architecture_differences, write_architectures
from .cells import groups
from .claims import claims_table, headline_table
from .curves_figure import training_curves
from .execution import execution_curves, execution_table
from .failures import failure_cells, failures_of, failures_table
from .failures_figure import failure_signatures, write_failures
from .failures_floor_figure import accuracy_and_floor, floor_groups, write_floor
from .few_shots import choices, few_shot_studies, few_shots_table, selection_bias
from .few_shots_figure import few_shot_accuracies, write_few_shots
from .information import CRITERION, information_effects, information_table
from .information_figure import information_and_accuracy, write_information
from .interaction import interactions, interactions_table
from .interaction import studies as interaction_studies
from .interaction_figure import interaction_effects, write_interactions
from .layers_figure import layer_cka_maps
from .mechanism import hypotheses, mechanism_cells, mechanism_table
from .mechanism_figure import mechanism_numbers, write_mechanism
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
    "CRITERION",
    "Comparison",
    "aa_checks",
    "aa_table",
    "accuracy_and_floor",
    "accuracy_vs_sparsity",
    "all_tables",
    "architecture_differences",
    "architecture_effects",
    "architecture_studies",
    "architectures_table",
    "choices",
    "chosen_precision",
    "claims_table",
    "execution_curves",
    "execution_table",
    "failure_cells",
    "failure_signatures",
    "failures_of",
    "failures_table",
    "few_shot_accuracies",
    "few_shot_studies",
    "few_shots_table",
    "floor_groups",
    "groups",
    "headline_table",
    "holm",
    "hypotheses",
    "information_and_accuracy",
    "information_effects",
    "information_table",
    "interaction_effects",
    "interaction_studies",
    "interactions",
    "interactions_table",
    "layer_cka_maps",
    "learned",
    "mechanism_cells",
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
    "verdict_of",
    "write_all",
    "write_architectures",
    "write_executions",
    "write_failures",
    "write_few_shots",
    "write_floor",
    "write_information",
    "write_interactions",
    "write_mechanism",
]
