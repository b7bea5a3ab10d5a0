"""The figure of the term on several networks: accuracy, layer CKA, and time per epoch."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckasr.storage import write_text

from .architectures import (
    Effect,
    architecture_studies,
    architectures_table,
    architectures_title,
    common,
)
from .cells import Record, recipe_slug
from .marks import NOTE, draw_means, draw_seeds
from .style import GUIDE, Look, blank, legend, looks, save, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def architecture_differences(study: Sequence[Effect]) -> "Figure":
    """Draw the paired differences of each network and sparsity, a row for each and a look per arm.

    The panels show the test accuracy in points; the mean CKA over all pairs of layers; and the time
    per epoch in percent. A dot per seed.

    Args:
        study: one of the `architecture_studies`, or the effects of one network.

    Raises:
        ValueError: if there is nothing to draw.
    """
    if not study:
        raise ValueError("there are no effects to draw")
    labels = list(dict.fromkeys(each.label for each in study))
    arms = sorted({each.accuracy.arm for each in study})
    shown = looks(arms)
    figure = blank(7.2, 1.8 + (0.2 + 0.24 * len(arms)) * len(labels))
    panels = figure.subplots(1, 3, sharey=True)
    named = set()
    for each in study:
        arm = each.accuracy.arm
        place = labels.index(each.label) + (arms.index(arm) + 0.5) / len(arms) - 0.5
        label = None if arm in named else arm.label
        named.add(arm)
        values = (
            [100 * value for value in each.accuracy.differences],
            each.similarity.differences,
            [100 * math.expm1(value) for value in each.time.differences],
        )
        for panel, of_panel in zip(panels, values, strict=True):
            first = label if panel is panels[0] else None
            _draw(panel, place, of_panel, shown[arm], len(arms), first, not each.learned)
    pairs = {each.label: str(each.accuracy.n) for each in study}
    panels[0].set_yticks(range(len(labels)), [f"{label}\nn = {pairs[label]}" for label in labels])
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    names = (
        "change of test\naccuracy (points)",
        "change of the\nmean CKA",
        "change of the time\nper epoch (%)",
    )
    for panel, name in zip(panels, names, strict=True):
        panel.axvline(0, **GUIDE)
        panel.set_xlabel(name)
        panel.set_ylabel("")
    figure.suptitle(wrapped(architectures_title(study), 90))
    note = "Changes: with the term minus without it. Hollow markers: the accuracy is at chance."
    legend(figure, panels[:1], f"{note} {NOTE}")
    return figure


def write_architectures(records: Iterable[Record], folder: Path) -> list[Path]:
    """Write the table of all networks and a figure of each study; returns the files.

    Args:
        records: the records of one folder.
        folder: folder of results that ``tables/`` and ``figures/`` belong to.
    """
    studies = architecture_studies(records)
    if not studies:
        return []
    written = [folder / "tables" / "architectures.md"]
    write_text(written[0], architectures_table(studies))
    for study in studies:
        name = f"{recipe_slug(common(study[0]))}_architectures.png"
        written += save(architecture_differences(study), folder / "figures" / name)
    return written


def _draw(
    axis: "Axes",
    place: float,
    values: Sequence[float],
    look: Look,
    arms: int,
    label: str | None,
    hollow: bool,
) -> None:
    if values:
        shift = 0.15 / arms
        draw_seeds(axis, place - shift, values, look, horizontal=True)
        draw_means(
            axis, [place + shift], [values], look, label=label, horizontal=True, hollow=hollow
        )
