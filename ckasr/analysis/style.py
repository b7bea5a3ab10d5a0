"""How the figures look: in print, in grey, and whatever the reader's own settings are.

Figures are made without pyplot, so they need no display and leave no state. Arms differ in marker
and line as well as in colour: printed in grey they can still be told apart.
"""

import functools
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from .cells import BASELINE, Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Look = Mapping[str, Any]  # colour, marker and line style of an arm

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.0,
    "mathtext.default": "regular",
}
BASELINE_LOOK = {"color": "#222222", "marker": "o", "linestyle": "-"}
# Colours of Okabe and Ito (2008), ordered so that neighbours differ in grey too.
ARM_LOOKS = (
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#56B4E9", "marker": "^", "linestyle": ":"},
    {"color": "#009E73", "marker": "D", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "v", "linestyle": (0, (5, 1))},
    {"color": "#0072B2", "marker": "P", "linestyle": (0, (1, 1))},
)


def style() -> AbstractContextManager[None]:
    """The project's style over matplotlib's own defaults, for as long as the context lasts."""
    import matplotlib.style

    return matplotlib.style.context(["default", STYLE])


def styled(draw: Callable[..., "Figure"]) -> Callable[..., "Figure"]:
    """A function that draws in the project's style."""

    @functools.wraps(draw)
    def in_style(*args: Any, **kwargs: Any) -> "Figure":
        with style():
            return draw(*args, **kwargs)

    return in_style


def looks(arms: Iterable[Arm]) -> dict[Arm, Look]:
    """The look of every arm, the baseline first."""
    others = sorted(set(arms) - {BASELINE})
    return {BASELINE: BASELINE_LOOK} | {
        arm: ARM_LOOKS[i % len(ARM_LOOKS)] for i, arm in enumerate(others)
    }


def slot(arm: Arm, arms: Mapping[Arm, Look]) -> tuple[float, float]:
    """Center and width of an arm's place beside its tick, in ticks."""
    width = min(0.3, 0.9 / len(arms))
    return (list(arms).index(arm) - (len(arms) - 1) / 2) * width, width


def blank(width: float, height: float) -> "Figure":
    """An empty figure of so many inches; a notebook shows it without pyplot."""
    return _figure_class()((width, height), layout="constrained")


@functools.cache
def _figure_class() -> type["Figure"]:
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            with style():
                self.savefig(picture, format="png", dpi=120)
            return picture.getvalue()

    return NotebookFigure


def legend(figure: "Figure", axes: Iterable["Axes"], note: str) -> None:
    """One legend under all axes, the paper's numbers last, with a note as its heading."""
    entries: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries.update(zip(labels, handles, strict=True))
    labels = sorted(entries, key=lambda label: label.startswith("paper"))
    figure.legend(
        [entries[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=2,
        title=textwrap.fill(note, int(17 * figure.get_figwidth())),
        title_fontsize=7,
    )


def wrapped(text: str, width: int = 46) -> str:
    """Lines of at most about `width` characters, broken after commas only."""
    lines = [""]
    for part in text.split(", "):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += f"{', ' if lines[-1] else ''}{part}"
    return ",\n".join(lines)
