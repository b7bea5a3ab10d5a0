"""Run records: one JSON file per finished run, and JSON-lines files that hold many records.

A record is valid only if a run could have written it: it is UTF-8 JSON, its file is named by the
hash of its settings, and each field has its type and range. The fields of `REQUIRED` must be
present. Other fields may be missing; a table or figure that needs one leaves the record out.
"""

import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckasr.storage import write_text

from .settings import Settings

SCHEMA = 1
STATUSES = ("finished", "diverged")
Record = dict[str, Any]


def path_of(results: Path | str, run_id: str) -> Path:
    """Return the path of a run's record. Raises ValueError if the id is not 12 hex digits."""
    if not re.fullmatch(r"[0-9a-f]{12}", str(run_id)):
        raise ValueError(f"{run_id!r} is not a run id: it must be 12 hex digits")
    return Path(results) / "records" / f"{run_id}.json"


def save(record: Record, results: Path) -> Path:
    """Write one record atomically and return its path."""
    path = path_of(results, record["id"])
    write_text(path, json.dumps(record, indent=None, allow_nan=False) + "\n")
    return path


def load(results: Path | str, run_id: str) -> Record | None:
    """Return the record of a run, or None if there is none. Raises ValueError if it is invalid."""
    path = path_of(results, run_id)
    return _read(path) if path.exists() else None


def load_all(results: Path | str) -> list[Record]:
    """Return all valid records under ``results``, sorted by their settings.

    Any other ``.json`` file in the folder is left out, with a RuntimeWarning that names it.
    """
    records = []
    for path in sorted((Path(results) / "records").glob("*.json")):
        try:
            records.append(_read(path))
        except (ValueError, OSError) as error:
            warnings.warn(f"left out: {error}", RuntimeWarning, stacklevel=2)
    return sorted(records, key=_order)


def export_lines(results: Path | str, target: Path) -> int:
    """Write all records into one JSON-lines file and return their number."""
    records = load_all(results)
    write_text(target, "".join(json.dumps(r, allow_nan=False) + "\n" for r in records))
    return len(records)


def merge_lines(source: Path, results: Path) -> tuple[int, int]:
    """Add the records of a JSON-lines file; return the numbers of new and of known records.

    A valid record that exists already is not changed. Of two lines with the same id, the first is
    added; if the second differs, a RuntimeWarning names it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is not a valid record. The message has the numbers of these lines, and
            nothing is written.
    """
    if not source.is_file():
        raise FileNotFoundError(f"no file {source} to merge records from")
    found: dict[str, Record] = {}
    bad, again = [], 0
    # Not splitlines: a JSON text may hold other line separators of Unicode.
    for number, line in enumerate(source.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            record = _parse(line, where)
        except ValueError as error:
            bad.append(str(error))
            continue
        first = found.setdefault(record["id"], record)
        if first is not record:
            again += 1
            if first != record:
                warnings.warn(
                    f"{where} is another record of {record['id']}: the first one is kept",
                    RuntimeWarning,
                    stacklevel=2,
                )
    if bad:
        more = f" (and {len(bad) - 3} more)" if len(bad) > 3 else ""
        raise ValueError(f"nothing is merged: {'; '.join(bad[:3])}{more}")
    known = {record["id"] for record in load_all(results)} if found else set()
    new = [record for run_id, record in found.items() if run_id not in known]
    for record in new:
        save(record, results)
    return len(new), len(found) - len(new) + again


def _read(path: Path) -> Record:
    record = _parse(path.read_bytes(), str(path))
    if path.stem != record["id"]:
        raise ValueError(
            f"{path} is the record of {record['id']}: rename it to {record['id']}.json"
        )
    return record


def _parse(text: bytes, where: str) -> Record:
    """Return the record in a text. Raises a one-line ValueError that starts with ``where``."""
    try:
        record = json.loads(text.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError:
        raise ValueError(f"{where} is not UTF-8: delete it or merge it again") from None
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or str(error)
        raise ValueError(f"{where} is not JSON ({reason}): delete it or merge it again") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ValueError(f"{where} is not a run record of schema {SCHEMA}")
    if problem := _problem(record):
        raise ValueError(f"{where} is not a valid run record: {problem}")
    return record


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _problem(record: Record) -> str | None:
    """Return what is wrong with a record of this schema, or None if it is valid."""
    if missing := [name for name in REQUIRED if name not in record]:
        return f"{', '.join(missing)} missing"
    for name, (fine, rule) in FIELDS.items():
        if name in record and not fine(record[name]):
            return f"{name} must be {rule}"
    given = record["settings"]
    try:
        settings = Settings.from_dict(given)
    except (ValueError, LookupError) as error:
        return f"settings: {error}"
    written = settings.to_dict()
    # The id compares the options, because a record may contain or omit an option with its default.
    if wrong := [n for n in given if n != "method_options" and given[n] != written[n]]:
        return f"its setting {wrong[0]} is {given[wrong[0]]!r}, a run has {written[wrong[0]]!r}"
    if settings.id != record["id"]:
        return f"its id is {record['id']!r}, that of its settings {settings.id!r}"
    if record["status"] == "finished" and record["test_accuracy"] is None:
        return "it is finished, but has no test_accuracy"
    return None


def _number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and low <= value <= high
    )


def _count(value: Any) -> bool:
    return _number(value, 0) and isinstance(value, int)


def _share(value: Any) -> bool:
    return _number(value, 0, 1)


def _optional(fine: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fine(value)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_number, value))


def _curves(value: Any) -> bool:
    """Lists of one length by name: phases as text, all else as numbers or null."""
    if not isinstance(value, dict) or not all(isinstance(c, list) for c in value.values()):
        return False
    return len({len(curve) for curve in value.values()}) <= 1 and all(
        isinstance(item, str) if name in ("phase", "execution") else item is None or _number(item)
        for name, curve in value.items()
        for item in curve
    )


def _report(value: Any) -> bool:
    """As `ckasr.sparsity.report` writes it."""
    if not isinstance(value, dict):
        return False
    counts = ("weights", "kept", "effective_kept", "filters", "dead_filters", "classes")
    return (
        all(_count(value[name]) for name in counts if name in value)
        and all(_share(value[name]) for name in ("nominal", "effective") if name in value)
        and value.get("kept", 0) <= value.get("weights", math.inf)
        and isinstance(value.get("dead_layers", []), list)
    )


def _layer_cka(value: Any) -> bool:
    """Names of layers and a square matrix of numbers."""
    if not isinstance(value, dict) or not isinstance(value.get("layers"), list):
        return False
    matrix = value.get("matrix")
    return isinstance(matrix, list) and all(
        isinstance(row, list)
        and len(row) == len(matrix)
        and all(item is None or _number(item) for item in row)
        for row in matrix
    )


def _weights(value: Any) -> bool:
    """Statistics of the kept weights; empty if no weight is kept."""
    if not isinstance(value, dict):
        return False
    bars = value.get("histogram")
    return bars is None or (
        isinstance(bars, dict)
        and _numbers(bars.get("edges"))
        and _numbers(bars.get("counts"))
        and len(bars["edges"]) == len(bars["counts"]) + 1
    )


REQUIRED = ("schema", "id", "settings", "status", "test_accuracy")

FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (lambda v: isinstance(v, str), "a string"),
    "settings": (lambda v: isinstance(v, dict), "an object"),
    "status": (lambda v: isinstance(v, str) and v in STATUSES, "finished or diverged"),
    "test_accuracy": (_optional(_share), "null or in [0, 1]"),
    "validation_accuracy": (_optional(_share), "null or in [0, 1]"),
    "curves": (_curves, "an object of lists of one length"),
    "sparsity": (_report, "an object of counts and shares"),
    "layer_cka": (_optional(_layer_cka), "null or an object with layers and a square matrix"),
    "weights": (_optional(_weights), "null or an object with a histogram"),
    "seconds": (lambda v: _number(v, 0), "a number of seconds"),
    "started": (lambda v: isinstance(v, str), "a string"),
    "device": (lambda v: isinstance(v, str), "a string"),
    "threads": (_count, "a count"),
    "peak_memory_bytes": (_count, "a count"),
    "versions": (lambda v: isinstance(v, dict), "an object"),
    "commit": (lambda v: isinstance(v, str), "a string"),
    "execution": (lambda v: isinstance(v, str), "a string"),
    "runs_in_process": (_count, "a count"),
}
"""For each field, a check of its value and a description of valid values."""


def _order(record: Record) -> tuple[Any, ...]:
    s = {**Settings().to_dict(), **record["settings"]}  # for records older than a setting
    names = ("dataset", "model", "method", "epochs", "sparsity", "beta", "seed")
    return (*(s[name] for name in names), record["id"])
