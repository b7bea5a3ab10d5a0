"""Run records: one JSON file a finished run, and JSON-lines files to carry many of them about."""

import json
import os
from pathlib import Path
from typing import Any

SCHEMA = 1
Record = dict[str, Any]


def path_of(results: Path, run_id: str) -> Path:
    return results / "records" / f"{run_id}.json"


def save(record: Record, results: Path) -> Path:
    """Write one record, whole or not at all."""
    path = path_of(results, record["id"])
    write_text(path, json.dumps(record, indent=None, allow_nan=False) + "\n")
    return path


def load(results: Path, run_id: str) -> Record | None:
    """The record of a run, or None if it has none."""
    path = path_of(results, run_id)
    return _parse(path.read_text(), str(path)) if path.exists() else None


def load_all(results: Path) -> list[Record]:
    """All records under ``results``, ordered by what they ran."""
    paths = sorted((results / "records").glob("*.json"))
    records = [_parse(path.read_text(), str(path)) for path in paths]
    return sorted(records, key=_order)


def export_lines(results: Path, target: Path) -> int:
    """Write all records into one JSON-lines file; returns how many."""
    records = load_all(results)
    write_text(target, "".join(json.dumps(r, allow_nan=False) + "\n" for r in records))
    return len(records)


def merge_lines(source: Path, results: Path) -> tuple[int, int]:
    """Take the records of a JSON-lines file in; returns how many were new, and how many known.

    A record that is there already stays as it is. Raises ValueError, before anything is written,
    for a line that is no record.
    """
    if not source.exists():
        raise FileNotFoundError(f"no file {source} to merge records from")
    lines = source.read_text().splitlines()
    records = [
        _parse(line, f"{source}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    new = [record for record in records if not path_of(results, record["id"]).exists()]
    for record in new:
        save(record, results)
    return len(new), len(records) - len(new)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    os.replace(part, path)


def _parse(text: str, where: str) -> Record:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error.msg}): delete it or merge it anew") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ValueError(f"{where} is no run record of schema {SCHEMA}")
    return record


def _order(record: Record) -> tuple[Any, ...]:
    s = record["settings"]
    names = ("dataset", "model", "method", "epochs", "sparsity", "beta", "seed")
    return (*(s[name] for name in names), record["id"])
