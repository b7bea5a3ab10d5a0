"""Writing what the records say: every figure and table, again and again the same bytes."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ckasr.storage import replacing, write_text

from . import figures
from .aa import aa_checks, aa_table
from .cells import Cell, Record, family_slug, percent, slug, studies
from .failures_figure import write_failures
from .few_shots_figure import write_few_shots
from .mechanism_figure import write_mechanism
from .methods import method_families, methods_table
from .methods_figure import method_accuracy
from .precision import precision_rows, precision_table
from .precision_figure import precision_differences
from .style import style
from .tables import runs_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 300


def save(figure: "Figure", path: Path | str) -> Path:
    """Write a figure as PNG, 300 dpi, whole or not at all; the same figure gives the same bytes.

    Raises ValueError for another ending than .png.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"figures are written as PNG: name {path.name!r} must end in .png")
    with style(), replacing(path) as part:
        # Matplotlib would name its own version in the file.
        figure.savefig(part, format="png", dpi=DPI, metadata={"Software": None})
    return path


def all_tables(records: Iterable[Record]) -> dict[str, str]:
    """The tables of accuracies, as markdown, by the name of their files.

    Those of the notebooks 05 to 07 are written with their figures, by `write_few_shots`,
    `write_mechanism` and `write_failures`.
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
    """Every table and figure of the records under ``folder``; returns the files, in order.

    ``tables/`` holds `all_tables`. Under ``figures/`` each group (one data set, network, method and
    schedule) has its accuracy against sparsity, and each of its cells its layer CKA and training
    curves. Several methods of one recipe have a figure of them all, which for those without a term
    is the only one; what was run in both precisions has one of the paired differences. Cells with
    several betas have tables and figures of their mechanism and failures, those with several
    numbers of samples the comparison of these.
    """
    folder = Path(folder)
    records = list(records)
    written = []
    for name, text in all_tables(records).items():
        written.append(folder / "tables" / f"{name}.md")
        write_text(written[-1], text)
    for entries in method_families(records):
        path = folder / "figures" / f"{family_slug(entries[0].cell.settings)}_methods.png"
        cells = list({id(entry.cell): entry.cell for entry in entries}.values())
        written.append(save(method_accuracy(_records(cells)), path))
    for group in studies(records):
        name = slug(group[0].settings)
        figure = figures.accuracy_vs_sparsity(_records(group))
        written.append(save(figure, folder / "figures" / f"{name}_accuracy.png"))
        for cell in group:
            at = percent(cell.settings["sparsity"]).replace(" %", "")
            runs = _records([cell])
            path = folder / "figures" / f"{name}_s{at}"
            if any(run["layer_cka"] and run["weights"] for run in runs):
                figure = figures.layer_cka_maps(runs)
                written.append(save(figure, path.with_name(f"{path.name}_layer_cka.png")))
            figure = figures.training_curves(runs)
            written.append(save(figure, path.with_name(f"{path.name}_curves.png")))
    for rows in precision_rows(records):
        path = folder / "figures" / f"{slug(rows[0].settings)}_precision.png"
        written.append(save(precision_differences(rows), path))
    for write in (write_few_shots, write_mechanism, write_failures):
        written += write(records, folder)
    return written


def _records(group: Iterable[Cell]) -> list[Record]:
    return [run for cell in group for seeds in cell.arms.values() for run in seeds.values()]
