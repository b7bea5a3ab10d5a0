"""Records of benchmarks, ``<folder>/<device>/<name>.json``, and the table of their results."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ckasr import devices
from ckasr.experiments.provenance import environment
from ckasr.storage import write_text

from . import COUNTED, NAMES, WHAT, targets, timing
from .timing import Timing, consistent

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
    """Write one record atomically and return its path.

    It replaces the record of the same benchmark and device.
    """
    path = folder / slug(found["device"]) / f"{found['benchmark']}.json"
    write_text(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
    return path


def load(folder: Path) -> list[Record]:
    """Load the records in the folder of one device, in the order of `NAMES`."""
    paths = sorted(folder.glob("*.json"), key=lambda p: (*NAMES, p.stem).index(p.stem))
    return [json.loads(path.read_text()) for path in paths]


def timings_of(found: Record) -> list[Timing]:
    """The timings of a record, with times that agree with the ratios (see `timing.consistent`)."""
    return consistent(Timing(**values) for values in found["timings"])


def write_table(folder: Path) -> Path:
    """Write ``table.md`` with the targets and timings of one device, from its records."""
    found = load(folder)
    kind = found[0]["device_kind"]
    timings = [t for each in found for t in timings_of(each)]
    lines = [f"# Benchmarks on {found[0]['device']}", "", HOW_TO_READ, ""]
    if met := targets.targets(timings, kind):
        lines += [targets.table(met), ""]
    for each in found:
        name = each["benchmark"]
        lines += [f"## {name}", "", f"{WHAT[name]} {measured(each)}", ""]
        lines += [f"{where(each)}.", "", f"![{name}]({name}.png)", ""]
        lines += [timing.table(ends(timings_of(each))), ""]
        if counted := timing.work_table(timings_of(each)):
            lines += [counted, "", COUNTED, ""]
    path = folder / "table.md"
    write_text(path, "\n".join(lines))
    return path


def measured(found: Record) -> str:
    """Clock and number of rounds, in one sentence."""
    rounds = sorted({t["rounds"] for t in found["timings"]})
    clocks = sorted({t["clock"] for t in found["timings"]})
    return f"{' and '.join(clocks)} time, {' to '.join(map(str, rounds))} rounds."


def ends(timings: Iterable[Timing]) -> list[Timing]:
    """The timings without the inner points of the curves of scaling benchmarks."""
    timings = list(timings)
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


def slug(device: str) -> str:
    """The name of the folder of a device, for example ``intel-xeon-processor``."""
    plain = re.sub(r"\((r|tm)\)", "", device.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
