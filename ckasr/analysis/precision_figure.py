"""The figure of the paired differences between bf16 and fp32, with their mean and its interval."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .cells import Arm, percent, term_label, title
from .marks import NOTE, draw_means, draw_seeds
from .precision import MARGIN, OTHER, REFERENCE, Row
from .style import GUIDE, Look, blank, legend, looks, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def precision_differences(rows: Sequence[Row]) -> "Figure":
    """Draw test accuracy and effect of the term, bf16 minus fp32.

    Each pair is a dot, with the mean, its 95 % Student-t interval and the verdict beside the dots.
    The grey band shows the differences that count as no difference.

    Args:
        rows: the rows of one group, from `precision_rows`.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("there are no runs in both precisions to draw")
    term = term_label(row.arm for row in rows)
    panels = {
        "test accuracy": [r for r in rows if not r.effect],
        f"effect of {term} on test accuracy": [r for r in rows if r.effect],
    }
    panels = {label: shown for label, shown in panels.items() if shown}
    figure = blank(1.0 + 2.8 * len(panels), 3.4)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    arms = looks(row.arm for row in rows)
    for axis, (label, shown) in zip(axes, panels.items(), strict=True):
        _draw_panel(axis, shown, {arm: arms[arm] for arm in arms if arm in {r.arm for r in shown}})
        axis.set_title(label, pad=14)
    axes[0].set_ylabel(f"paired difference,\n{OTHER} minus {REFERENCE} (points)")
    figure.suptitle(wrapped(title(rows[0].settings), 80))
    note = f"{NOTE} Grey band: differences of at most {100 * MARGIN:g} point."
    legend(figure, axes, note)
    return figure


def _draw_panel(axis: "Axes", rows: Sequence[Row], arms: Mapping[Arm, Look]) -> None:
    axis.axhspan(-100 * MARGIN, 100 * MARGIN, color="0.92", linewidth=0, zorder=0)
    axis.axhline(0, **GUIDE)
    levels = sorted({row.sparsity for row in rows})
    places = {arm: (i + 0.5) / len(arms) - 0.5 for i, arm in enumerate(arms)}
    for row in rows:
        x = levels.index(row.sparsity) + 0.9 * places[row.arm]
        _draw_row(axis, row, x, min(0.4, 0.9 / len(arms)), arms[row.arm])
    counts = {s: sorted({r.comparison.n for r in rows if r.sparsity == s}) for s in levels}
    ticks = [f"{percent(s)}\nn = {', '.join(map(str, counts[s]))}" for s in levels]
    axis.set_xticks(range(len(levels)), ticks)
    axis.set_xlim(-0.5, len(levels) - 0.5)
    axis.set_xlabel("sparsity (n: complete pairs)")
    axis.label_outer()


def _draw_row(axis: "Axes", row: Row, x: float, width: float, look: Look) -> None:
    """Draw the pairs left of x, their mean and interval right of it, and the verdict above."""
    values = [100 * value for value in row.comparison.differences]
    if not values:
        return
    draw_seeds(axis, x - 0.1 * width, values, look)
    draw_means(axis, [x + 0.36 * width], [values], look, row.arm.label)
    axis.annotate(
        row.verdict,
        (x, 1),
        xytext=(0, 1),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color=look["color"],
        fontsize=6,
        ha="center",
        va="bottom",
    )
