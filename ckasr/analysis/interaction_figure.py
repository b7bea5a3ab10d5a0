"""The figure of the effect of the term with and without each partner, and of the interaction."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckasr.storage import write_text

from .cells import Record, family_slug, percent, power_of_ten
from .interaction import Interaction, interactions, interactions_table, studies
from .marks import NOTE, draw_means, draw_seeds
from .style import ARM_LOOKS, BASELINE_LOOK, GUIDE, Look, blank, legend, save, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def interaction_effects(found: Sequence[Interaction]) -> "Figure":
    """Draw the effect of the term without and with each partner, and the interaction.

    The interaction is the difference of the two effects. Each seed is a dot, with the mean and its
    95 % Student-t interval beside the dots.

    Args:
        found: the interactions of one of the `studies`.

    Raises:
        ValueError: if there is nothing to draw.
    """
    if not found:
        raise ValueError("there are no interactions to draw")
    figure = blank(7.2, 1.7 + 0.42 * len(found))
    effects, difference = figure.subplots(1, 2, sharey=True)
    for place, each in enumerate(found):
        label = place == 0
        _draw(effects, place - 0.2, each.off.differences, BASELINE_LOOK, "without partner", label)
        _draw(effects, place + 0.2, each.on.differences, ARM_LOOKS[0], "with partner", label)
        _draw(difference, place, each.difference.differences, ARM_LOOKS[4], "interaction", label)
    effects.set_yticks(
        range(len(found)),
        [f"{each.label}\nn = {each.difference.n}" for each in found],
    )
    effects.set_ylim(len(found) - 0.4, -0.6)
    effects.set_xlabel("effect of the term on test accuracy (points)")
    difference.set_xlabel("interaction: effect with the partner\nminus effect without it (points)")
    for axis in (effects, difference):
        axis.axvline(0, **GUIDE)
        axis.set_ylabel("")
    figure.suptitle(wrapped(found[0].title, 90))
    legend(figure, [effects, difference], NOTE, columns=3)
    return figure


def write_interactions(records: Iterable[Record], folder: Path) -> list[Path]:
    """Write the table of all factorials, and a figure of each study.

    Args:
        records: the records of one folder.
        folder: folder of results in which ``tables/`` and ``figures/`` are written.

    Returns:
        The written files.
    """
    found = interactions(records)
    if not found:
        return []
    written = [folder / "tables" / "interactions.md"]
    write_text(written[0], interactions_table(found))
    for members in studies(found):
        settings, arm = members[0].common, members[0].difference.arm
        at = percent(settings["sparsity"]).replace(" %", "")
        name = f"{family_slug(settings)}_s{at}_{arm.term}-{power_of_ten(arm.beta)}_interactions.png"
        written += save(interaction_effects(members), folder / "figures" / name)
    return written


def _draw(
    axis: "Axes", place: float, values: Sequence[float], look: Look, label: str, named: bool
) -> None:
    if not values:
        return
    points = [100 * value for value in values]
    draw_seeds(axis, place - 0.08, points, look, horizontal=True)
    draw_means(axis, [place + 0.08], [points], look, label if named else None, horizontal=True)
