"""Tables and figures of the cost of the term, from the files that notebook 11 writes.

``python -m benchmarks.cost results/demo`` draws them again without measuring.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ckasr.analysis.style import blank, save, styled
from ckasr.analysis.tables import NOTHING, markdown
from ckasr.storage import write_text

from . import figures, store, timing
from .memory import Memory
from .scaling import LOSSES, OURS, PAIRWISE
from .term import NO_TERM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEMORY = Path("timings/memory.json")


def keep(rows: Sequence[Memory], folder: Path) -> None:
    """Write the memory to ``timings/memory.json`` of a folder of results."""
    text = json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False)
    write_text(folder / MEMORY, text + "\n")


def write_all(folder: Path) -> list[Path]:
    """Write the tables and figures of a folder of results, and return the files.

    Raises FileNotFoundError if notebook 11 has left no measurements there.
    """
    if not (folder / MEMORY).is_file():
        raise FileNotFoundError(f"no {folder / MEMORY}: run notebook 11_cost with results={folder}")
    rows = [Memory(**row) for row in json.loads((folder / MEMORY).read_text())]
    written = save(figure(rows), folder / "figures" / "cost_memory.png")
    texts = {"cost_memory": table(rows)}
    for path in sorted(folder.glob("timings/*/*.json")):
        found = json.loads(path.read_text())
        name = f"cost_{path.stem}_{path.parent.name}"
        written += save(figures.draw(found), folder / "figures" / f"{name}.png")
        texts[name] = f"{store.where(found)}.\n\n{timing.table(store.timings_of(found))}"
    for name, text in texts.items():
        written.append(folder / "tables" / f"{name}.md")
        write_text(written[-1], text + "\n")
    return written


def ratios(rows: Sequence[Memory]) -> dict[tuple[str, int], float | None]:
    """Memory of the pairwise code divided by ours, by what varies and its value.

    None if the measured peak does not rise with our term.
    """
    sizes = {(row.what, row.x, row.variant): row.megabytes for row in rows}
    ours = {(what, x): size for (what, x, variant), size in sizes.items() if variant == OURS}
    return {at: sizes[*at, PAIRWISE] / size if size > 0 else None for at, size in ours.items()}


def table(rows: Sequence[Memory]) -> str:
    """Return the memory as a Markdown table, with the ratio of the pairwise code to ours."""
    titles = ("step without the term, MB", *(f"{name}, MB" for name in LOSSES))
    sizes = {(row.what, row.x, row.variant): f"{row.megabytes:,.4g}" for row in rows}
    lines = []
    for (what, x), ratio in ratios(rows).items():
        numbers = (sizes.get((what, x, name), NOTHING) for name in (NO_TERM, *LOSSES))
        label = what if what in figures.LABELS else f"batch size, {what}"
        lines.append((label, str(x), *numbers, NOTHING if ratio is None else f"{ratio:.3g}"))
    return "\n".join(markdown(("varies", "value", *titles, "ratio"), lines))


@styled
def figure(rows: Sequence[Memory]) -> "Figure":
    """Draw the memory of both implementations, one panel for each quantity that varies."""
    panels = list(dict.fromkeys(row.what for row in rows))
    drawn = blank(1.2 + 2 * len(panels), 2.9)
    axes = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, what in zip(axes, panels, strict=True):
        for name, look in figures.LOOKS.items():
            points = [row for row in rows if (row.what, row.variant) == (what, name)]
            x = [row.x for row in points]
            axis.plot(x, [row.megabytes for row in points], **look, markersize=3.5, label=name)
        network = what.replace("resnet", "ResNet")
        batches = f"batch size of {network}\n(8 samples)"
        figures.sizes_axis(axis, x, figures.LABELS.get(what, batches))
        axis.yaxis.set_major_formatter("{x:g}")
    axes[0].set_ylabel("memory of the term (MB)")
    axes[0].legend()
    return drawn


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m benchmarks.cost FOLDER_OF_RESULTS", file=sys.stderr)
        return 2
    try:
        written = write_all(Path(arguments[0]))
    except FileNotFoundError as error:
        print(f"benchmarks.cost: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
