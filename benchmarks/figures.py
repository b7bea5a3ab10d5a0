"""``python -m benchmarks.figures`` draws all figures and writes all tables from the records."""

import math
import re
import sys
import textwrap
from collections.abc import Sequence
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
TITLES = {  # what one call of a benchmark does
    "data": "a batch of 128 augmented images",
    "epoch": "training",
    "import": "start of a process",
    "shrink": "inference",
    "step": "a training step",
    "term": "a training step",
}
LABELS = {  # what a scaling benchmark varies
    "layers": "number of layers\n(8 samples)",
    "samples": "number of samples\n(9 layers)",
    "batch": "batch size\n(8 samples, 9 layers)",
}
OURS, PLAIN = ARM_LOOKS[4]["color"], "0.65"
LOOKS = {scaling.PAIRWISE: BASELINE_LOOK, scaling.OURS: ARM_LOOKS[4]}
FASTER = 0.8  # If a ratio is smaller than this number, bars start at 0 instead of 1.
LOG_FROM = 10  # If a ratio is larger than this number, the axis of the bars is logarithmic.
EPOCH = 45_000  # number of training images of CIFAR without the validation images


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
    for t in store.timings_of(found):
        groups.setdefault(t.benchmark, []).append(t)
    figure = {"scaling": _lines, "sparse": _epochs}.get(found["benchmark"], _bars)(groups)
    note = textwrap.fill(store.where(found), int(19 * figure.get_figwidth()))
    figure.supxlabel(note, fontsize=6, color="0.35")
    return figure


def _bars(groups: Groups) -> "Figure":
    """Draw bars of the ratios, from 0 if a ratio is below `FASTER` and from 1 otherwise."""
    columns = 1 if len(groups) <= 4 else 2
    sizes = [len(group) for group in groups.values()]
    heights = [1.2 + max(sizes[i : i + columns]) for i in range(0, len(sizes), columns)]
    figure = blank(6.6 if columns == 1 else 8.2, 0.55 + 0.27 * sum(heights))
    axes = figure.subplots(len(heights), columns, squeeze=False, sharex=True, height_ratios=heights)
    timings = [t for group in groups.values() for t in group]
    start = 0 if min(t.ratio for t in timings) < FASTER else 1
    if start and max(t.ratio for t in timings) > LOG_FROM:
        axes.flat[0].set_xscale("log")
        ticks = axes.flat[0].xaxis
        ticks.get_major_locator().set_params(subs=(1, 2, 5))
        ticks.set_major_formatter("{x:g}")
        ticks.set_minor_formatter("")
    for index, (name, group) in enumerate(groups.items()):
        _draw_bars(axes.flat[index], name, group, start, labelled=index % columns == 0)
    for axis in axes.flat[len(groups) :]:
        axis.remove()
    label = f"{timings[0].clock} time relative to the first row (median; whiskers: quartiles)"
    for axis in axes.flat[max(0, len(groups) - columns) : len(groups)]:
        axis.set_xlabel(label if columns == 1 else label.replace(" (", "\n("))
        axis.tick_params(labelbottom=True)
    return figure


def _draw_bars(
    axis: "Axes", name: str, timings: Sequence[Timing], start: int, labelled: bool
) -> None:
    for y, t in enumerate(timings):
        color = OURS if "ckasr" in t.variant or t.variant == SHRUNK else PLAIN
        axis.barh(y, t.ratio - start, left=start, height=0.62, color=color, zorder=2)
        axis.plot([t.ratio_low, t.ratio_high], [y, y], color="black", linewidth=0.9, zorder=3)
        for end in (t.ratio_low, t.ratio_high):
            axis.plot(end, y, marker="|", color="black", markersize=4, zorder=3)
        place = {"xy": (1.02, y), "xycoords": ("axes fraction", "data"), "va": "center"}
        axis.annotate(_numbers(t, y == 0), **place, fontsize=7)
    axis.axvline(1, **GUIDE)
    axis.set_yticks(range(len(timings)), [t.variant if labelled else "" for t in timings])
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.set_title(_title(name), loc="left", fontweight="bold")


def _title(name: str) -> str:
    """A benchmark's name in words: "step resnet20" gives "a training step, ResNet20"."""
    kind, _, rest = name.partition(" ")
    words = ", ".join(filter(None, [TITLES.get(kind, kind), rest])).replace("resnet", "ResNet")
    return re.sub(r"sparsity (\d\.\d+)", lambda m: f"sparsity {percent(float(m[1]))}", words)


def _numbers(t: Timing, reference: bool) -> str:
    digits = max(0, 2 - math.floor(math.log10(t.milliseconds))) if t.milliseconds > 0 else 2
    duration = f"{t.milliseconds:,.{min(digits, 3)}f} ms"
    speed = f"{t.images_per_second:,.0f} images/s" if t.images else duration
    if reference:
        return f"reference: {speed}"
    if t.ratio < FASTER:
        return f"{1 / t.ratio:.3g} x as fast; {speed}"
    if t.ratio > 2:
        return f"{t.ratio:.3g} x the time; {speed}"
    return f"{100 * (t.ratio - 1):+.1f} %; {speed}".replace("-", "\N{MINUS SIGN}")


def _lines(groups: Groups) -> "Figure":
    """Draw time against layers, samples and batch size; the legends state the exponents."""
    figure = blank(6.6, 2.9)
    axes = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axis, (name, timings) in zip(axes, groups.items(), strict=True):
        for variant, look in LOOKS.items():
            points = [t for t in timings if t.variant == variant]
            x = [t.x for t in points]
            exponent = growth(x, [t.milliseconds for t in points])
            told = "growth unknown" if exponent is None else f"exponent {exponent:.1f}"
            look = look | {"markersize": 3.5, "label": f"{variant}: {told}"}
            _curve(axis, x, points, look)
        sizes_axis(axis, x, LABELS[name.split()[-1]])
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), handlelength=2.4)
    axes[0].set_ylabel("time of the term,\nforward and backward (ms)")
    return figure


def growth(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Exponent of the power law through the first and the last point; None if there is none."""
    if len(x) < 2 or min(y[0], y[-1]) <= 0:
        return None
    return math.log(y[-1] / y[0]) / math.log(x[-1] / x[0])


def _curve(
    axis: "Axes", x: Sequence[float], points: Sequence[Timing], look: Look, unit: float = 1
) -> None:
    """Draw the times of one variant, with their smallest and largest values, times ``unit``."""
    y = [unit * t.milliseconds for t in points]
    below = [unit * (t.milliseconds - t.lowest) for t in points]
    above = [unit * (t.highest - t.milliseconds) for t in points]
    axis.errorbar(x, y, yerr=[below, above], elinewidth=0.6, **look)


def sizes_axis(axis: "Axes", x: Sequence[float], label: str) -> None:
    """Make both axes logarithmic, with a tick at every size that was measured."""
    axis.set_xscale("log")
    axis.set_yscale("log", nonpositive="clip")
    axis.set_xticks(x, [f"{value:g}" for value in x], fontsize=7)
    axis.minorticks_off()
    axis.set_xlabel(label)


def _epochs(groups: Groups) -> "Figure":
    """Draw seconds per epoch against sparsity."""
    networks: Groups = {}
    for t in (t for timings in groups.values() for t in timings if "sparsity" in t.work):
        networks.setdefault(t.benchmark.split()[1].rstrip(","), []).append(t)
    figure = blank(6.6, 3.4)
    shares = [0.8 + len({t.work["sparsity"] for t in timings}) for timings in networks.values()]
    axes = figure.subplots(1, len(networks), squeeze=False, sharey=True, width_ratios=shares)[0]
    for axis, (name, timings) in zip(axes, networks.items(), strict=True):
        _draw_epochs(axis, sorted(timings, key=lambda t: t.work["sparsity"]))
        axis.set_title(name.replace("resnet", "ResNet"), loc="left", fontweight="bold")
    axes[0].set_ylabel(f"seconds per epoch of {EPOCH:,} images")
    # Matplotlib lists lines with error bars last.
    handles, labels = axes[0].get_legend_handles_labels()
    legend = handles[1:] + handles[:1], labels[1:] + labels[:1]
    figure.legend(*legend, loc="outside upper center", ncols=4)
    return figure


def _draw_epochs(axis: "Axes", timings: Sequence[Timing]) -> None:
    """Draw the time of both executions, and the ideal time in proportion to the multiply-adds."""
    unit = EPOCH / (1e3 * timings[0].images)  # from milliseconds per step to seconds per epoch
    looks = {sparse.DENSE: BASELINE_LOOK, sparse.SPARSE: ARM_LOOKS[4] | {"linestyle": "-"}}
    for variant, look in looks.items():
        points = [t for t in timings if t.variant == variant]
        x = [1 - t.work["sparsity"] for t in points]
        label = f"{sparse.EXECUTIONS[variant]} execution"
        _curve(axis, x, points, look | {"markersize": 4, "label": label}, unit)
    adds, dense = sparse.MULTIPLY_ADDS, [t for t in timings if t.variant == sparse.DENSE]
    pairs = zip(dense, points, strict=True)
    ideal = [unit * d.milliseconds * t.work[adds] / d.work[adds] for d, t in pairs]
    label = "ideal: in proportion to the multiply-adds"
    axis.plot(x, ideal, color="0.5", linestyle=":", label=label)
    for kept, t in zip(x, points, strict=True):
        axis.annotate(
            f"{1 / t.ratio:.1f} x", (kept, unit * t.milliseconds), xytext=(0, -6),
            textcoords="offset points", ha="center", va="top", fontsize=7, color=OURS,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(x, [f"{100 * t.work['sparsity']:g}" for t in points])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_xlim(1.25 * x[0], x[-1] / 1.25)
    axis.set_xlabel("sparsity (%)")


def main() -> int:
    folders = sorted({path.parent for path in FOLDER.glob("*/*.json")})
    if not folders:
        how = "run `python -m benchmarks --save`"
        print(f"benchmarks: no {FOLDER}/*/*.json; {how}", file=sys.stderr)
        return 1
    for folder in folders:
        for path in write_all(folder):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
