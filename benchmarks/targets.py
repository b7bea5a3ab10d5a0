"""Targets of the benchmarks, and whether timings meet them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ckasr.analysis.tables import markdown

from .imports import BOTH, TORCH
from .sparse import TERM
from .sparse import title as sparse_title
from .term import (
    AUTHORS,
    AUTHORS_FLOAT32,
    CONVOLUTIONS,
    EVERY_FIFTH,
    EVERY_STEP,
    NO_TERM,
    WHOLE_BATCH,
)
from .timing import Timing

SPARSE_SPEEDS = {  # speed relative to dense execution
    ("resnet20", 0.8): 1.0,
    ("resnet20", 0.9): 2.2,
    ("resnet20", 0.95): 3.0,
    ("resnet20", 0.98): 4.0,
    ("resnet20", 0.995): 7.0,
    ("resnet20", 0.998): 18.0,
    ("resnet32", 0.995): 6.0,
    ("resnet32", 0.998): 14.0,
}
FULL_EPOCH = 50_000  # number of training images of CIFAR


@dataclass(frozen=True)
class Target:
    """A limit and the measured value.

    Args:
        what: benchmark and variant.
        limit: limit, as text.
        measured: measured value, as text.
        met: whether the measured value is within the limit.
    """

    what: str
    limit: str
    measured: str
    met: bool


def targets(timings: Iterable[Timing], device_kind: str) -> list[Target]:
    """The targets for which there are timings.

    Args:
        timings: timings of one device.
        device_kind: ``"cpu"`` or ``"cuda"``.
    """
    groups: dict[str, dict[str, Timing]] = {}
    for timing in timings:
        groups.setdefault(timing.benchmark, {})[timing.variant] = timing
    found = []
    for name, group in groups.items():
        kind = name.split()[0]
        if kind == "term":
            convolutions = 0.10 if device_kind == "cpu" else 0.05
            limits = {EVERY_STEP: 0.05, EVERY_FIFTH: 0.02, CONVOLUTIONS: convolutions}
            found += _overheads(name, group, limits) + _whole_batch(name, group)
        elif kind == "sparse":
            found += _overheads(name, group, {TERM: 0.05})
            limits = {sparse_title(*cell): limit for cell, limit in SPARSE_SPEEDS.items()}
            if name in limits:
                found += _speeds(name, group, limits[name])
        elif kind in ("step", "epoch") and device_kind == "cpu":
            found += _speeds(name, group, 2.4)
        elif kind == "epoch" and name.endswith("resnet20"):
            found += _model_epochs(name, group)
        elif kind == "import":
            added = round((group[BOTH].ratio - 1) * group[TORCH].milliseconds / 1e3, 6)
            found.append(
                Target(
                    "import ckasr beside import torch", "<= 0.3 s", f"{added:.2f} s", added <= 0.3
                )
            )
    return found


def _overheads(name: str, group: dict[str, Timing], limits: Mapping[str, float]) -> list[Target]:
    found = []
    for variant, limit in limits.items():
        if variant in group:
            t = group[variant]
            measured = f"{t.ratio - 1:+.1%} ({t.ratio_low - 1:+.1%} to {t.ratio_high - 1:+.1%})"
            # Rounding removes floating-point errors: 1.05 - 1 is not exactly 0.05.
            met = round(t.ratio - 1, 6) <= limit
            found.append(Target(f"{name}: {variant}", f"<= +{limit:.0%}", measured, met))
    return found


def _whole_batch(name: str, group: dict[str, Timing]) -> list[Target]:
    found = []
    for reference in (AUTHORS, AUTHORS_FLOAT32) if WHOLE_BATCH in group else ():
        plain, ours = (group[v].ratio - group[NO_TERM].ratio for v in (reference, WHOLE_BATCH))
        what = f"{name}: {WHOLE_BATCH}, against {reference}"
        cheaper = round(plain / ours, 6) if ours > 0 else math.inf  # inf if ours is below the noise
        found.append(Target(what, ">= 5 x cheaper", f"{cheaper:.1f} x", cheaper >= 5))
    return found


def _speeds(name: str, group: dict[str, Timing], limit: float) -> list[Target]:
    found = []
    for variant, t in group.items():
        if variant.startswith("ckasr"):
            speed = 1 / t.ratio
            measured = f"{speed:.2f} x ({1 / t.ratio_high:.2f} to {1 / t.ratio_low:.2f})"
            met = round(speed, 3) >= limit  # Ratios have five digits.
            found.append(Target(f"{name}: {variant}", f">= {limit:g} x", measured, met))
    return found


def _model_epochs(name: str, group: dict[str, Timing]) -> list[Target]:
    found = []
    for variant, t in group.items():
        if variant.startswith("ckasr"):
            seconds = t.milliseconds / 1e3 * FULL_EPOCH / t.images
            what = f"{name}: {variant}, 50,000 images"
            found.append(Target(what, "<= 0.35 s", f"{seconds:.2f} s", seconds <= 0.35))
    return found


def table(found: Iterable[Target]) -> str:
    """The targets as a Markdown table."""
    rows = [(t.what, t.limit, t.measured, "met" if t.met else "not met") for t in found]
    return "\n".join(markdown(("target", "limit", "measured (quartiles)", "result"), rows))
