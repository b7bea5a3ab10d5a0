"""Write all figures and tables of the records. The same records give the same bytes."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ckasr.storage import write_text

from .aa import aa_checks, aa_table
from .accuracy_figure import accuracy_vs_sparsity
from .architectures_figure import write_architectures
from .cells import Cell, Record, family_slug, percent, slug, studies
from .curves_figure import training_curves
from .execution import execution_curves, execution_pairs, execution_table
from .failures_figure import write_failures
from .failures_floor_figure import write_floor
from .few_shots_figure import write_few_shots
from .interaction_figure import write_interactions
from .layers_figure import has_layers, layer_cka_maps
from .mechanism_figure import write_mechanism
from .methods import method_families, methods_table
from .methods_figure import method_accuracy
from .precision import precision_rows, precision_table
from .precision_figure import precision_differences
from .style import save
from .tables import runs_table


def all_tables(records: Iterable[Record]) -> dict[str, str]:
    """Return the tables of accuracies in Markdown, by the names of their files.

    `write_few_shots`, `write_mechanism`, `write_failures`, `write_interactions` and
    `write_architectures` write other tables.

    Args:
        records: the records of one folder.
    """
    records = list(records)
    tables = {"runs": runs_table(records)}
    if method_families(records):
        tables["methods"] = methods_table(records)
    if precision_rows(records):
        tables["precision"] = precision_table(records)
    if aa_checks(records):
        tables["aa"] = aa_table(records)
    return tables


def write_all(records: Iterable[Record], folder: Path | str) -> list[Path]:
    """Write all tables and figures of the records.

    The folder ``tables/`` contains `all_tables`. The folder ``figures/`` contains the following
    figures, each as PNG and as SVG:

    * for every group (one data set, network, method and schedule), the accuracy against sparsity;
    * for every cell of a group, the training curves and, if a run is finished, the layer CKA;
    * for methods with one recipe, a figure of all of them, which is the only figure of methods
      without a term;
    * for runs in two precisions, the paired differences;
    * for groups with sparsities above the paper's, the share of classes with a path from the input.

    Both a table and figures are written for the mechanism and the failures of cells with several
    betas, for cells with several numbers of samples, for the interactions of cells that differ in
    one partner of the term (`interaction.py`), and for the effects on several networks
    (`architectures.py`).

    Args:
        records: the records of one folder.
        folder: folder of results in which ``tables/`` and ``figures/`` are written.

    Returns:
        The written files, in the order of writing.
    """
    folder = Path(folder)
    records = list(records)
    drawn = folder / "figures"
    written = []
    for name, text in all_tables(records).items():
        written.append(folder / "tables" / f"{name}.md")
        write_text(written[-1], text)
    for entries in method_families(records):
        cells = list({id(entry.cell): entry.cell for entry in entries}.values())
        name = family_slug(entries[0].cell.settings)
        written += save(method_accuracy(_records(cells)), drawn / f"{name}_methods.png")
    for group in studies(records):
        name = slug(group[0].settings)
        written += save(accuracy_vs_sparsity(_records(group)), drawn / f"{name}_accuracy.png")
        for cell in group:
            at = percent(cell.settings["sparsity"]).replace(" %", "")
            runs = _records([cell])
            if has_layers(runs):
                written += save(layer_cka_maps(runs), drawn / f"{name}_s{at}_layer_cka.png")
            written += save(training_curves(runs), drawn / f"{name}_s{at}_curves.png")
    for rows in precision_rows(records):
        name = slug(rows[0].settings)
        written += save(precision_differences(rows), drawn / f"{name}_precision.png")
    for write in (
        write_floor,
        write_few_shots,
        write_mechanism,
        write_failures,
        write_interactions,
        write_architectures,
    ):
        written += write(records, folder)
    return written


def write_executions(folders: Sequence[Path]) -> list[Path]:
    """Write the table and the figure of runs in dense and in sparse execution.

    Args:
        folders: folders of results. The files of a comparison are written in the folder that
            contains its sparse runs.

    Returns:
        The written files, in the order of writing. The list is empty if no run has records of both
        executions.
    """
    written = []
    for folder, pairs in execution_pairs(folders).items():
        written.append(folder / "tables" / "executions.md")
        write_text(written[-1], execution_table(pairs))
        written += save(execution_curves(pairs), folder / "figures" / "executions.png")
    return written


def _records(group: Iterable[Cell]) -> list[Record]:
    return [run for cell in group for seeds in cell.arms.values() for run in seeds.values()]
