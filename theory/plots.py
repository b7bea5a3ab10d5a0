"""Panels and line styles of the figures. The lines can also be distinguished in greyscale."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#000000", "#0072b2", "#d55e00", "#56b4e9", "#8a8a8a")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v")


def style(index: int, marker: bool = False) -> dict[str, object]:
    """Colour, line style and, if ``marker`` is true, marker of the series with number ``index``.

    The five series differ in their line styles and markers too. From the sixth series on, the
    styles repeat.
    """
    look: dict[str, object] = {"color": COLOURS[index % 5], "linestyle": LINES[index % 5]}
    return look | {"marker": MARKERS[index % 5], "markersize": 4} if marker else look


def panels(columns: int, rows: int = 1, width: float = 4.2) -> "tuple[Figure, list[Axes]]":
    """A figure with rows x columns panels, each 0.8 * width inches wide, and the list of its axes.

    The axes are listed row by row.
    """
    from ckasr.analysis.style import blank

    figure = blank(0.8 * width * columns, 0.8 * 3.4 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes
