"""Targets of the benchmarks, and whether timings meet them."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from ckasr.analysis.tables import markdown

from . import imports, sparse, term
from .timing import Timing

SPARSE_SPEEDS = {  # speed relative to dense execution
    "sparse resnet20, sparsity 0.8": 1.0,
    "sparse resnet20, sparsity 0.9": 2.2,
    "sparse resnet20, sparsity 0.95": 3.0,
    "sparse resnet20, sparsity 0.98": 4.0,
    "sparse resnet20, sparsity 0.995": 7.0,
    "sparse resnet20, sparsity 0.998": 18.0,
    "sparse resnet32, sparsity 0.995": 6.0,
    "sparse resnet32, sparsity 0.998": 14.0,
}
OVERHEADS = {term.EVERY_STEP: 0.05, term.EVERY_FIFTH: 0.02, sparse.TERM: 0.05}
FULL_EPOCH = 50_000  # number of training images of CIFAR


class Target(NamedTuple):
    """Benchmark and variant, limit and measured value as text, and whether the limit is met."""

    what: str
    limit: str
    measured: str
    met: bool


def targets(timings: Iterable[Timing], device_kind: str) -> list[Target]:
    """The targets for which there are timings of a device, ``"cpu"`` or ``"cuda"``."""
    groups: dict[str, dict[str, Timing]] = {}
    for t in timings:
        groups.setdefault(t.benchmark, {})[t.variant] = t
    judged = (_target(t, group, device_kind) for group in groups.values() for t in group.values())
    return [target for target in judged if target]


def _target(t: Timing, group: dict[str, Timing], device_kind: str) -> Target | None:
    """The target of a variant, or None. ``group`` has all variants of its benchmark.

    Numbers are rounded to the digits of the ratios, because 1.05 - 1 is not exactly 0.05.
    """
    on_cpu = device_kind == "cpu"
    kind, what = t.benchmark.split()[0], f"{t.benchmark}: {t.variant}"
    overheads = OVERHEADS | {term.CONVOLUTIONS: 0.10 if on_cpu else 0.05}
    if limit := overheads.get(t.variant):
        measured = f"{t.ratio - 1:+.1%} ({t.ratio_low - 1:+.1%} to {t.ratio_high - 1:+.1%})"
        return Target(what, f"<= +{limit:.0%}", measured, round(t.ratio - 1, 6) <= limit)
    if term.WHOLE_BATCH in group and t.variant in (term.AUTHORS, term.AUTHORS_FLOAT32):
        plain, ours = (each.ratio - 1 for each in (t, group[term.WHOLE_BATCH]))
        what = f"{t.benchmark}: {term.WHOLE_BATCH}, against {t.variant}"
        cheaper = round(plain / ours, 6) if ours > 0 else math.inf  # inf if ours is below the noise
        return Target(what, ">= 5 x cheaper", f"{cheaper:.1f} x", cheaper >= 5)
    if t.variant == imports.BOTH:
        added = round((t.ratio - 1) * group[imports.TORCH].milliseconds / 1e3, 6)
        what = "import ckasr beside import torch"
        return Target(what, "<= 0.3 s", f"{added:.2f} s", added <= 0.3)
    if not t.variant.startswith("ckasr"):
        return None
    whole_step = kind in ("step", "epoch") and on_cpu
    if limit := 2.4 if whole_step else SPARSE_SPEEDS.get(t.benchmark):
        measured = f"{1 / t.ratio:.2f} x ({1 / t.ratio_high:.2f} to {1 / t.ratio_low:.2f})"
        return Target(what, f">= {limit:g} x", measured, round(1 / t.ratio, 3) >= limit)
    if t.benchmark == "epoch resnet20":
        seconds = t.milliseconds / 1e3 * FULL_EPOCH / t.images
        return Target(f"{what}, 50,000 images", "<= 0.35 s", f"{seconds:.2f} s", seconds <= 0.35)
    return None


def table(found: Iterable[Target]) -> str:
    """The targets as a Markdown table."""
    rows = [(t.what, t.limit, t.measured, "met" if t.met else "not met") for t in found]
    return "\n".join(markdown(("target", "limit", "measured (quartiles)", "result"), rows))
