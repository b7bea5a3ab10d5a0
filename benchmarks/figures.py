"""``python -m benchmarks.figures`` draws all figures and writes all tables from the records."""

import math
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckasr.analysis.cells import percent
from ckasr.analysis.style import ARM_LOOKS, BASELINE_LOOK, GUIDE, Look, blank, save, styled

from . import scaling, sparse, store
from .shrink import SHRUNK
from .store import FOLDER, Record
from .timing import Timing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Groups = dict[str, list[Timing]]
OURS, PLAIN = ARM_LOOKS[4]["color"], "0.65"
TITLES = {
    "data": "a batch of 128 augmented images",
    "epoch": "training",
    "import": "start of a process",
    "shrink": "inference",
    "step": "a training step",
    "term": "a training step",
}
"""Title of the panels of each benchmark: what one call does."""

LOG_FROM = 10
"""The axis is logarithmic if a ratio is larger than this number."""

LABELS = {
    "layers": "number of layers\n(8 samples)",
    "samples": "number of samples\n(9 layers)",
    "batch": "batch size\n(8 samples, 9 layers)",
}
"""Label of the x axis of each scaling benchmark: what varies."""

EPOCH = 45_000
"""Number of training images of CIFAR without the validation images."""

FASTER = 0.8
"""If a ratio is smaller than this number, bars start at 0 instead of 1."""


def write_all(folder: Path) -> list[Path]:
    """Write the table and all figures of the folder of one device and return the files."""
    written = [store.write_table(folder)]
    for found in store.load(folder):
        written += save(draw(found), folder / f"{found['benchmark']}.png")
    return written


@styled
def draw(found: Record) -> "Figure":
    """Draw the figure of one record: lines for scaling and sparse, bars of ratios otherwise."""
    groups: Groups = {}
    for timing in store.timings_of(found):
        groups.setdefault(timing.benchmark, []).append(timing)
    figure = {"scaling": _lines, "sparse": _epochs}.get(found["benchmark"], _bars)(groups)
    note = textwrap.fill(store.where(found), int(19 * figure.get_figwidth()))
    figure.supxlabel(note, fontsize=6, color="0.35")
    return figure


def _bars(groups: Groups) -> "Figure":
    """Draw bars of the ratios, from 0 if a ratio is below `FASTER` and from 1 otherwise."""
    columns = 1 if len(groups) <= 4 else 2
    heights = [1.2 + max(map(len, row)) for row in _rows(list(groups.values()), columns)]
    figure = blank(6.6 if columns == 1 else 8.2, 0.55 + 0.27 * sum(heights))
    axes = figure.subplots(len(heights), columns, squeeze=False, sharex=True, height_ratios=heights)
    timings = [t for group in groups.values() for t in group]
    start = 0 if min(t.ratio for t in timings) < FASTER else 1
    if start and max(t.ratio for t in timings) > LOG_FROM:
        _logarithmic(axes.flat[0])
    for index, (name, group) in enumerate(groups.items()):
        _draw_bars(axes.flat[index], name, group, start, labelled=index % columns == 0)
    for axis in axes.flat[len(groups) :]:
        axis.remove()
    label = f"{timings[0].clock} time relative to the first row (median; whiskers: quartiles)"
    for axis in axes.flat[max(0, len(groups) - columns) : len(groups)]:
        axis.set_xlabel(label if columns == 1 else label.replace(" (", "\n("))
        axis.tick_params(labelbottom=True)
    return figure


def _rows(groups: list[list[Timing]], columns: int) -> list[list[list[Timing]]]:
    return [groups[i : i + columns] for i in range(0, len(groups), columns)]


def _draw_bars(
    axis: "Axes", name: str, timings: Sequence[Timing], start: int, labelled: bool
) -> None:
    for y, t in enumerate(timings):
        color = OURS if "ckasr" in t.variant or t.variant == SHRUNK else PLAIN
        axis.barh(y, t.ratio - start, left=start, height=0.62, color=color, zorder=2)
        axis.plot([t.ratio_low, t.ratio_high], [y, y], color="black", linewidth=0.9, zorder=3)
        for end in (t.ratio_low, t.ratio_high):
            axis.plot(end, y, marker="|", color="black", markersize=4, zorder=3)
        axis.annotate(
            _numbers(t, y == 0), (1.02, y), xycoords=("axes fraction", "data"), va="center",
            fontsize=7,
        )  # fmt: skip
    axis.axvline(1, **GUIDE)
    names = [t.variant if labelled else "" for t in timings]
    axis.set_yticks(range(len(timings)), names)
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.set_title(_title(name), loc="left", fontweight="bold")


def _title(name: str) -> str:
    """A benchmark's name in words: "step resnet20" gives "a training step, ResNet20"."""
    kind, _, rest = name.partition(" ")
    words = ", ".join(filter(None, [TITLES.get(kind, kind), rest])).replace("resnet", "ResNet")
    return re.sub(r"sparsity (\d\.\d+)", lambda m: f"sparsity {percent(float(m[1]))}", words)


def _logarithmic(axis: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _numbers(t: Timing, reference: bool) -> str:
    speed = f"{t.images_per_second:,.0f} images/s" if t.images else _duration(t.milliseconds)
    if reference:
        return f"reference: {speed}"
    if t.ratio < FASTER:
        return f"{1 / t.ratio:.3g} x as fast; {speed}"
    if t.ratio > 2:
        return f"{t.ratio:.3g} x the time; {speed}"
    return f"{100 * (t.ratio - 1):+.1f} %; {speed}".replace("-", "\N{MINUS SIGN}")


def _duration(milliseconds: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(milliseconds))) if milliseconds > 0 else 2
    return f"{milliseconds:,.{min(digits, 3)}f} ms"


def _lines(groups: Groups) -> "Figure":
    figure = blank(6.6, 2.9)
    axes = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axis, (name, timings) in zip(axes, groups.items(), strict=True):
        _draw_lines(axis, name.split()[-1], timings)
    axes[0].set_ylabel("time of the term,\nforward and backward (ms)")
    return figure


def _draw_lines(axis: "Axes", what: str, timings: Sequence[Timing]) -> None:
    """Draw time against layers, samples or batch size; the legend states the exponents."""
    looks = {scaling.PAIRWISE: BASELINE_LOOK, scaling.OURS: ARM_LOOKS[4]}
    for variant, look in looks.items():
        points = [t for t in timings if t.variant == variant]
        x = [t.x for t in points]
        exponent = _exponent(x, [t.milliseconds for t in points])
        look = look | {"markersize": 3.5, "label": f"{variant}: {exponent}"}
        _curve(axis, x, points, look, lambda milliseconds, _: milliseconds)
    sizes_axis(axis, x, LABELS[what])
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), handlelength=2.4)


def _curve(
    axis: "Axes",
    x: Sequence[float],
    points: Sequence[Timing],
    look: Look,
    value: Callable[[float, Timing], float],
) -> None:
    """Draw the times of one variant, with their smallest and largest values."""
    y = [value(t.milliseconds, t) for t in points]
    below = [a - value(t.lowest, t) for a, t in zip(y, points, strict=True)]
    above = [value(t.highest, t) - a for a, t in zip(y, points, strict=True)]
    axis.errorbar(x, y, yerr=[below, above], elinewidth=0.6, **look)


def sizes_axis(axis: "Axes", x: Sequence[float], label: str) -> None:
    """Make both axes logarithmic, with a tick at every size that was measured."""
    axis.set_xscale("log")
    axis.set_yscale("log", nonpositive="clip")
    axis.set_xticks(x, [f"{value:g}" for value in x], fontsize=7)
    axis.minorticks_off()
    axis.set_xlabel(label)


def _exponent(x: Sequence[float], y: Sequence[float]) -> str:
    exponent = growth(x, y)
    return "growth unknown" if exponent is None else f"exponent {exponent:.1f}"


def growth(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Exponent of the power law through the first and the last point; None if there is none."""
    if len(x) < 2 or min(y[0], y[-1]) <= 0:
        return None
    return math.log(y[-1] / y[0]) / math.log(x[-1] / x[0])


def _epochs(groups: Groups) -> "Figure":
    """Draw seconds per epoch against sparsity."""
    networks: Groups = {}
    for timings in groups.values():
        for t in timings:
            if "sparsity" in t.work:
                networks.setdefault(t.benchmark.split()[1].rstrip(","), []).append(t)
    figure = blank(6.6, 3.4)
    shares = [0.8 + len({t.work["sparsity"] for t in timings}) for timings in networks.values()]
    axes = figure.subplots(1, len(networks), squeeze=False, sharey=True, width_ratios=shares)[0]
    for axis, (name, timings) in zip(axes, networks.items(), strict=True):
        _draw_epochs(axis, timings)
        axis.set_title(name.replace("resnet", "ResNet"), loc="left", fontweight="bold")
    axes[0].set_ylabel(f"seconds per epoch of {EPOCH:,} images")
    # Matplotlib lists lines with error bars last.
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles[1:] + handles[:1], labels[1:] + labels[:1], loc="outside upper center", ncols=4
    )
    return figure


def _draw_epochs(axis: "Axes", timings: Sequence[Timing]) -> None:
    """Draw the time of all variants, and the ideal time in proportion to the multiply-adds."""

    def seconds(milliseconds: float, t: Timing) -> float:
        return milliseconds / 1e3 * EPOCH / t.images

    by_variant: Groups = {}
    for t in sorted(timings, key=lambda t: t.work["sparsity"]):
        by_variant.setdefault(t.variant, []).append(t)
    dense, ours = by_variant[sparse.DENSE], by_variant[sparse.SPARSE]
    names = {sparse.DENSE: "dense execution", sparse.SPARSE: "sparse execution"}
    looks = {
        sparse.DENSE: BASELINE_LOOK,
        sparse.SPARSE: ARM_LOOKS[4] | {"linestyle": "-"},
        sparse.SPARSEPROP: ARM_LOOKS[0],
    }
    for variant, points in by_variant.items():
        look = looks[variant] | {"markersize": 4, "label": names.get(variant, variant)}
        _curve(axis, [_left(t) for t in points], points, look, seconds)
    ideal = [
        seconds(d.milliseconds, d) * t.work[sparse.MULTIPLY_ADDS] / d.work[sparse.MULTIPLY_ADDS]
        for d, t in zip(dense, ours, strict=True)
    ]
    axis.plot(
        [_left(t) for t in ours], ideal, color="0.5", linestyle=":",
        label="ideal: in proportion to the multiply-adds",
    )  # fmt: skip
    color = looks[sparse.SPARSE]["color"]
    for t in ours:
        axis.annotate(
            f"{1 / t.ratio:.1f} x", (_left(t), seconds(t.milliseconds, t)), xytext=(0, -6),
            textcoords="offset points", ha="center", va="top", fontsize=7, color=color,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks([_left(t) for t in ours], [f"{100 * t.work['sparsity']:g}" for t in ours])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlim(1.25 * _left(ours[0]), _left(ours[-1]) / 1.25)
    axis.set_xlabel("sparsity (%)")


def _left(t: Timing) -> float:
    """Fraction of the weights that are not zero."""
    return 1 - t.work["sparsity"]


def main() -> int:
    folders = sorted({path.parent for path in FOLDER.glob("*/*.json")})
    if not folders:
        print(
            f"benchmarks: no {FOLDER}/*/*.json; run `python -m benchmarks --save`", file=sys.stderr
        )
        return 1
    for folder in folders:
        for path in write_all(folder):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
