"""The theme of all figures, which benchmarks, theory and notebooks use as well.

Figures are created without pyplot, so they need no display and leave no open figure behind. Arms
differ in marker and line style as well as in colour, so that they can be distinguished in a
greyscale print.
"""

import functools
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckasr.storage import replacing

from .cells import BASELINE, Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Look = Mapping[str, Any]
"""Colour, marker and line style of an arm."""

DPI = 300

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.titlesize": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.0,
    "mathtext.default": "regular",
    "svg.hashsalt": "ckasr",  # Without it, the identifiers in an SVG file are random.
}
GUIDE: Look = {"color": "0.3", "linewidth": 0.7, "zorder": 1}
"""Look of a line that marks a reference value, such as 0."""

# The colours of Okabe and Ito (2008), which colour-blind readers can distinguish.
BASELINE_LOOK = {"color": "#222222", "marker": "o", "linestyle": "-"}
ARM_LOOKS = (
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#56B4E9", "marker": "^", "linestyle": ":"},
    {"color": "#009E73", "marker": "D", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "v", "linestyle": (0, (5, 1))},
    {"color": "#0072B2", "marker": "P", "linestyle": (0, (1, 1))},
)


def style() -> AbstractContextManager[None]:
    """Return a context in which matplotlib uses the theme, regardless of the user's settings."""
    import matplotlib.style

    return matplotlib.style.context(["default", STYLE])


def styled(draw: Callable[..., "Figure"]) -> Callable[..., "Figure"]:
    """Decorate a function that draws a figure, so that it uses the theme."""

    @functools.wraps(draw)
    def in_style(*args: Any, **kwargs: Any) -> "Figure":
        with style():
            return draw(*args, **kwargs)

    return in_style


def save(figure: "Figure", path: Path | str) -> list[Path]:
    """Write a figure as PNG (300 dpi) and as SVG.

    Each file is written completely or not at all (see ``ckasr.storage.replacing``). The same figure
    gives the same bytes, because the files contain neither dates nor versions.

    Args:
        figure: the figure.
        path: path of the PNG file. The SVG file has the same name and the ending ``.svg``.

    Returns:
        Both files, the PNG file first.

    Raises:
        ValueError: if ``path`` does not end in ``.png``.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"a figure is written as PNG and SVG: name {path.name!r} must end in .png")
    # Matplotlib would write its version (Software, Creator) and the date.
    kinds = {"png": {"Software": None}, "svg": {"Creator": None, "Date": None}}
    written = []
    for kind, metadata in kinds.items():
        written.append(path.with_suffix(f".{kind}"))
        with style(), replacing(written[-1]) as part:
            figure.savefig(part, format=kind, dpi=DPI, metadata=metadata)
    return written


def looks(arms: Iterable[Arm]) -> dict[Arm, Look]:
    """Return the colour, marker and line style of every arm, the baseline first."""
    others = sorted(set(arms) - {BASELINE})
    return {BASELINE: BASELINE_LOOK} | {
        arm: ARM_LOOKS[i % len(ARM_LOOKS)] for i, arm in enumerate(others)
    }


def blank(width: float, height: float) -> "Figure":
    """Return an empty figure, which a notebook can show without pyplot.

    Args:
        width: width in inches.
        height: height in inches.
    """
    return _figure_class()((width, height), layout="constrained")


@functools.cache
def _figure_class() -> type["Figure"]:
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        def savefig(self, *args: Any, **options: Any) -> None:
            # The constrained layout depends on the tick labels, which it changes itself. After
            # one pass, labels can lie outside the figure; saving makes the second pass.
            self.draw_without_rendering()
            super().savefig(*args, **options)

        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            with style():
                self.savefig(picture, format="png", dpi=120)
            return picture.getvalue()

    return NotebookFigure


HANDLE = 8
"""Width of a line or marker in a legend, with the space around it, in characters."""


def legend(figure: "Figure", axes: Iterable["Axes"], note: str, columns: int = 2) -> None:
    """Add one legend below all axes, with the reference values last.

    Args:
        figure: the figure.
        axes: axes whose entries are collected.
        note: heading of the legend.
        columns: largest number of columns. There are fewer if the labels would not fit.
    """
    entries: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries.update(zip(labels, handles, strict=True))
    labels = sorted(entries, key=lambda label: label.startswith(("chance", "paper")))
    characters = int(19 * figure.get_figwidth())
    widest = max(map(len, labels), default=0) + HANDLE
    figure.legend(
        [entries[label] for label in labels],
        [wrapped(label, characters - HANDLE) for label in labels],
        loc="outside lower center",
        ncols=max(1, min(columns, characters // widest)),
        title=textwrap.fill(note, characters, break_on_hyphens=False),
        title_fontsize=7,
    )


def widen(axis: "Axes", smallest_range: float) -> None:
    """Widen the range of the y axis, so that noise does not look like an effect.

    Args:
        axis: the axes.
        smallest_range: smallest allowed range, in units of the axis.
    """
    low, high = axis.get_ylim()
    if high - low < smallest_range:
        middle = (low + high) / 2
        axis.set_ylim(middle - smallest_range / 2, middle + smallest_range / 2)


def wrapped(text: str, width: int = 46) -> str:
    """Break a text after commas into lines of at most about ``width`` characters."""
    lines = [""]
    for part in text.split(", "):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += f"{', ' if lines[-1] else ''}{part}"
    return ",\n".join(lines)
