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
from .style import ARM_LOOKS, BASELINE_LOOK, GUIDE, Look, blank, legend, save, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def architecture_differences(study: Sequence[Effect]) -> "Figure":
    """Draw the paired differences of each network and sparsity, a row for each.

    The panels show the test accuracy in points; the mean CKA over all pairs of layers; and the time
    per epoch in percent. A dot per seed.

    Args:
        study: one of the `architecture_studies`, or the effects of one network.

    Raises:
        ValueError: if there is nothing to draw.
    """
    if not study:
        raise ValueError("no effect: there is nothing to draw")
    figure = blank(7.2, 1.6 + 0.36 * len(study))
    accuracy, similarity, time = figure.subplots(1, 3, sharey=True)
    for place, each in enumerate(study):
        points = [100 * value for value in each.accuracy.differences]
        _draw(accuracy, place, points, ARM_LOOKS[0] if each.learned else BASELINE_LOOK)
        _draw(similarity, place, each.similarity.differences, ARM_LOOKS[3])
        _draw(time, place, [100 * math.expm1(v) for v in each.time.differences], ARM_LOOKS[4])
    several = len({each.accuracy.arm for each in study}) > 1
    names = [
        "\n".join([each.label, *[each.accuracy.arm.label] * several, f"n = {each.accuracy.n}"])
        for each in study
    ]
    accuracy.set_yticks(range(len(study)), names)
    accuracy.set_ylim(len(study) - 0.4, -0.6)
    accuracy.set_xlabel("change of test accuracy\n(points)")
    similarity.set_xlabel("change of the mean CKA\nof all layers")
    time.set_xlabel("change of the time\nper epoch (%)")
    for axis in (accuracy, similarity, time):
        axis.axvline(0, **GUIDE)
        axis.set_ylabel("")
    arm = "" if several else f"{study[0].accuracy.arm.label}, "
    figure.suptitle(wrapped(f"{arm}{architectures_title(study)}", 90))
    note = "With the term minus without it. Black: the accuracy is at chance."
    legend(figure, [accuracy], f"{note} {NOTE}")
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


def _draw(axis: "Axes", place: float, values: Sequence[float], look: Look) -> None:
    if values:
        draw_seeds(axis, place - 0.12, values, look, horizontal=True)
        draw_means(axis, [place + 0.12], [values], look, horizontal=True)
