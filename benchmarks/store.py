"""What is kept of a benchmark: ``<folder>/<device>/<name>.json``, and ``table.md`` beside them."""

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

from . import COUNTED, NAMES, targets, timing
from .timing import Timing

FOLDER = Path("results/benchmarks")
Record = dict[str, Any]


def record(name: str, timings: Iterable[Timing], device: torch.device) -> Record:
    """The timings of one benchmark, with the where and when."""
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
    """Write one record, whole or not at all; those of other benchmarks stay."""
    path = folder / slug(found["device"]) / f"{found['benchmark']}.json"
    write_text(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
    return path


def load(folder: Path) -> list[Record]:
    """The records of one device's folder, in the order of the names."""
    paths = sorted(folder.glob("*.json"), key=lambda p: (*NAMES, p.stem).index(p.stem))
    return [json.loads(path.read_text()) for path in paths]


def timings_of(found: Record) -> list[Timing]:
    return [Timing(**values) for values in found["timings"]]


def write_table(folder: Path) -> Path:
    """``table.md``: the targets and all timings of one device, from its records alone."""
    found = load(folder)
    kind = found[0]["device_kind"]
    timings = [t for each in found for t in timings_of(each)]
    lines = [f"# Benchmarks on {found[0]['device']}", ""]
    if met := targets.targets(timings, kind):
        lines += [targets.table(met), ""]
    for each in found:
        name = each["benchmark"]
        lines += [f"## {name}", "", f"{where(each)}.", "", f"![{name}]({name}.png)", ""]
        lines += [timing.table(timings_of(each)), ""]
        if counted := timing.work_table(timings_of(each)):
            lines += [counted, "", COUNTED, ""]
    path = folder / "table.md"
    write_text(path, "\n".join(lines))
    return path


def where(found: Record) -> str:
    """Device, date and versions of a record, in one line."""
    on_cpu = found["device_kind"] == "cpu"
    place = f"{found['device']}, {found['cores']} cores" if on_cpu else found["device"]
    threads = f", threads where not said: {found['threads']}" if on_cpu else ""
    release = found["versions"]["torch"]
    return f"{place}{threads}; torch {release}; {found['date']}; commit {found['commit']}"


def slug(device: str) -> str:
    """A device's name as a folder's: ``intel-xeon-processor``."""
    plain = re.sub(r"\((r|tm)\)", "", device.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
