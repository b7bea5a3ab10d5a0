"""Functions that draw the seeds of an arm as dots, and their mean with its interval."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .statistics import t_interval
from .style import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTE = "Dots are single seeds. Large markers are means with their 95 % Student-t intervals."
MANY = 7
"""Number of seeds above which the dots may overlap: a swarm would be wider than its place."""
SPREAD = 0.13
"""Half the width of more than `MANY` dots, in places of the categorical axis."""
GOLDEN = 0.618034
"""Fractional part of the golden ratio. Its multiples, modulo 1, spread evenly for any number."""


def draw_seeds(
    axis: "Axes", place: float, values: Sequence[float], look: Look, horizontal: bool = False
) -> None:
    """Draw a dot per seed. Dots that would overlap are moved sideways.

    More than `MANY` dots are spread over a fixed width instead, in the order of the seeds.

    Args:
        axis: axes to draw on.
        place: position on the categorical axis.
        values: one value per seed.
        look: colour, marker and line style of the arm.
        horizontal: if True, the values are on the x axis.
    """
    import seaborn

    if len(values) > MANY:
        offsets = [SPREAD * (2 * (i * GOLDEN % 1) - 1) for i in range(len(values))]
        places = [place + offset for offset in offsets]
        x, y = (values, places) if horizontal else (places, values)
        axis.scatter(x, y, s=2**2, color=look["color"], alpha=0.55, linewidth=0)
        return
    places = [place] * len(values)
    seaborn.swarmplot(
        x=values if horizontal else places,
        y=places if horizontal else values,
        orient="y" if horizontal else "x",
        ax=axis,
        color=look["color"],
        alpha=0.55,
        size=2.6,
        linewidth=0,
        native_scale=True,
        legend=False,
        warn_thresh=1,
    )


def draw_means(
    axis: "Axes",
    places: Sequence[float],
    samples: Sequence[Sequence[float]],
    look: Look,
    label: str | None = None,
    horizontal: bool = False,
    hollow: bool = False,
) -> None:
    """Draw the mean of each sample with its 95 % Student-t interval, if it has one.

    Args:
        axis: axes to draw on.
        places: position of each sample on the categorical axis.
        samples: for each position the values of the seeds, at least one.
        look: colour, marker and line style of the arm.
        label: entry in the legend, or None for no entry.
        horizontal: if True, the values are on the x axis.
        hollow: if True, the marker is filled with white.
    """
    import numpy as np

    means = [float(np.mean(values)) for values in samples]
    ends = [t_interval(values) for values in samples]
    errors = [
        [
            abs(end[side] - mean) if end else float("nan")
            for mean, end in zip(means, ends, strict=True)
        ]
        for side in (0, 1)
    ]
    x, y, name = (means, places, "xerr") if horizontal else (places, means, "yerr")
    bars: Look = {name: errors}
    axis.errorbar(
        x,
        y,
        **bars,
        color=look["color"],
        markerfacecolor="white" if hollow else look["color"],
        fmt=look["marker"],
        markersize=4,
        capsize=2,
        linewidth=0.9,
        zorder=3,
        label=label,
    )
