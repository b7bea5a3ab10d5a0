"""bf16 against fp32 as a figure: every paired difference, with the mean and its interval."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .cells import Arm, percent, term_label, title
from .precision import MARGIN, OTHER, REFERENCE, Row
from .style import Look, blank, legend, looks, styled, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def precision_differences(rows: Sequence[Row]) -> "Figure":
    """One group of `precision_rows`: test accuracy, and effect of the term, in bf16 minus in fp32.

    Each seed a dot, equal ones side by side; the mean with its 95 % Student-t interval and the
    verdict; the band is what counts as the same. Raises ValueError if there are no rows.
    """
    if not rows:
        raise ValueError("no run in both precisions: there is nothing to draw")
    term = term_label(row.arm for row in rows)
    panels = {
        f"test accuracy,\n{OTHER} minus {REFERENCE} (points)": [r for r in rows if not r.effect],
        f"effect of {term},\n{OTHER} minus {REFERENCE} (points)": [r for r in rows if r.effect],
    }
    panels = {label: shown for label, shown in panels.items() if shown}
    figure = blank(1.0 + 2.7 * len(panels), 3.4)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    arms = looks(row.arm for row in rows)
    for axis, (label, shown) in zip(axes, panels.items(), strict=True):
        _draw_panel(axis, shown, {arm: arms[arm] for arm in arms if arm in {r.arm for r in shown}})
        axis.set_ylabel(label)
        axis.tick_params(labelleft=True)
    figure.suptitle(wrapped(title(rows[0].settings), 80), fontsize=8)
    note = (
        "Small dots: seeds. Filled markers: mean and its 95 % Student-t interval. "
        f"Band: within {100 * MARGIN:g} point, which counts as the same."
    )
    legend(figure, axes, note)
    return figure


def _draw_panel(axis: "Axes", rows: Sequence[Row], arms: Mapping[Arm, Look]) -> None:
    axis.axhspan(-100 * MARGIN, 100 * MARGIN, color="0.92", linewidth=0, zorder=0)
    axis.axhline(0, color="0.3", linewidth=0.7, zorder=1)
    levels = sorted({row.sparsity for row in rows})
    places = {arm: (i + 0.5) / len(arms) - 0.5 for i, arm in enumerate(arms)}
    for row in rows:
        x = levels.index(row.sparsity) + 0.9 * places[row.arm]
        _draw_row(axis, row, x, min(0.4, 0.9 / len(arms)), arms[row.arm])
    counts = {s: sorted({r.comparison.n for r in rows if r.sparsity == s}) for s in levels}
    ticks = [f"{percent(s)}\nn = {', '.join(map(str, counts[s]))}" for s in levels]
    axis.set_xticks(range(len(levels)), ticks)
    axis.set_xlim(-0.5, len(levels) - 0.5)
    axis.set_xlabel("sparsity; complete pairs n")


def _draw_row(axis: "Axes", row: Row, x: float, width: float, look: Look) -> None:
    """Dots on the left of the place, mean with interval on its right, the verdict above."""
    values = [round(100 * value, 6) for value in row.comparison.differences]
    if not values:
        return
    many = Counter(values)
    step = min(0.03, 0.5 * width / max(many.values()))
    seen: Counter[float] = Counter()
    places = []
    for value in values:
        places.append(x - 0.1 * width + step * (seen[value] - (many[value] - 1) / 2))
        seen[value] += 1
    color = look["color"]
    axis.plot(places, values, ".", color=color, alpha=0.5, markersize=4, markeredgewidth=0)
    average = 100 * row.comparison.mean
    low, high = (100 * end for end in row.comparison.t_interval or (row.comparison.mean,) * 2)
    axis.errorbar(
        [x + 0.32 * width],
        [average],
        [[average - low], [high - average]],
        color=color,
        fmt=look["marker"],
        markersize=3.5,
        capsize=2,
        linewidth=0.9,
        label=row.arm.label,
    )
    axis.annotate(
        row.verdict,
        (x, 1),
        xytext=(0, 1),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color=color,
        fontsize=6,
        ha="center",
        va="bottom",
    )
