"""Records of benchmarks, ``<folder>/<device>/<name>.json``, and the tables of their results."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ckasr import devices
from ckasr.experiments.provenance import environment
from ckasr.storage import write_text

from . import COUNTED, NAMES, WHAT, targets, timing
from .timing import Timing

FOLDER = Path("results/benchmarks")
Record = dict[str, Any]
HOW_TO_READ = (
    "The ratio is the time relative to the first row of the same benchmark: the median over the "
    "rounds, with quartiles. The time is the median time of the first row multiplied by the ratio. "
    "The images per second are computed from this time. Minimum and maximum are in the records."
)


def record(name: str, timings: Iterable[Timing], device: torch.device) -> Record:
    """Make the record of one benchmark: its timings, the device, the date and the versions."""
    here = environment(devices.of(device))
    return {
        "benchmark": name,
        "device": here["device"].split(", ")[0],
        "device_kind": device.type,
        "cores": os.cpu_count(),
        "threads": here["threads"],
        "date": datetime.now(UTC).date().isoformat(),
        "commit": here["commit"],
        "versions": here["versions"],
        "timings": [asdict(timing) for timing in timings],
    }


def save(found: Record, folder: Path) -> Path:
    """Write a record atomically, in place of that of the same benchmark and device."""
    device = re.sub(r"\((r|tm)\)", "", found["device"].lower())
    device = re.sub(r"[^a-z0-9]+", "-", device).strip("-")  # for example intel-xeon-processor
    path = folder / device / f"{found['benchmark']}.json"
    write_text(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
    return path


def load(folder: Path) -> list[Record]:
    """Load the records in the folder of one device, in the order of `NAMES`."""
    paths = sorted(folder.glob("*.json"), key=lambda p: (*NAMES, p.stem).index(p.stem))
    return [json.loads(path.read_text()) for path in paths]


def timings_of(found: Record) -> list[Timing]:
    """The timings of a record, with times that agree with the ratios (see `timing.consistent`)."""
    return timing.consistent(Timing(**values) for values in found["timings"])


def write_table(folder: Path) -> Path:
    """Write the `report` of the records of one device to ``table.md`` in their folder."""
    write_text(folder / "table.md", report(load(folder)))
    return folder / "table.md"


def report(found: Sequence[Record]) -> str:
    """Markdown: the targets and the timings in the records of one device."""
    timings = [t for each in found for t in timings_of(each)]
    lines = [f"# Benchmarks on {found[0]['device']}", "", HOW_TO_READ, ""]
    if met := targets.targets(timings, found[0]["device_kind"]):
        lines += [targets.table(met), ""]
    for each in found:
        name, timings = each["benchmark"], timings_of(each)
        clocks, rounds = (sorted({getattr(t, key) for t in timings}) for key in ("clock", "rounds"))
        how = f"{' and '.join(clocks)} time, {' to '.join(map(str, rounds))} rounds."
        lines += [f"## {name}", "", f"{WHAT[name]} {how}", ""]
        lines += [f"{where(each)}.", "", f"![{name}]({name}.png)", ""]
        lines += [timing.table(ends(timings)), ""]
        if counted := timing.work_table(timings):
            lines += [counted, "", COUNTED, ""]
    return "\n".join(lines)


def ends(timings: Sequence[Timing]) -> list[Timing]:
    """The timings without the inner points of the curves of scaling benchmarks."""
    points: dict[str, list[float | None]] = {}
    for t in timings:
        points.setdefault(t.benchmark, []).append(t.x)
    return [t for t in timings if t.x in (points[t.benchmark][0], points[t.benchmark][-1])]


def where(found: Record) -> str:
    """Device, date and versions of a record, in one line."""
    on_cpu = found["device_kind"] == "cpu"
    place = f"{found['device']}, {found['cores']} cores" if on_cpu else found["device"]
    threads = f", threads unless stated otherwise: {found['threads']}" if on_cpu else ""
    release = found["versions"]["torch"]
    return f"{place}{threads}; torch {release}; {found['date']}; commit {found['commit']}"
