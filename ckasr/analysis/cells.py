"""Sort records into cells, which hold the runs that differ only in the term and in the seed.

Only runs of the same cell may be compared. This module also gives the titles and the file names of
cells and of groups of cells.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ckasr.experiments.settings import CKA_SR_FIELDS, Settings
from ckasr.terms import find

from . import words

Record = Mapping[str, Any]

_METHOD_FIELDS = {"method", "method_options", "distribution"}

_DEFAULTS = Settings().to_dict()

_READ = ("curves", "sparsity", "layer_cka", "weights", "device")
"""Fields that tables and figures need. A record without one of them is left out."""


class Arm(NamedTuple):
    """The settings of the term in one side of a comparison. The arm with beta 0 is the baseline."""

    beta: float
    variant: str
    samples: int  # Number of images per batch that the term compares; 0 means all.
    every: int
    pairs: str
    term: str = "cka_sr"

    @property
    def label(self) -> str:
        """Short name of the arm, without the settings that have the value of the official code."""
        if self.beta == 0:
            return "baseline"
        parts = [f"{find(self.term).label}, β = {power_of_ten(self.beta)}"]
        if self.variant != BASELINE.variant:
            parts.append(self.variant)
        if (self.samples, self.every) != (BASELINE.samples, BASELINE.every):
            parts.append(self.sampling)
        if self.pairs:
            parts.append(f"{self.pairs} pairs")
        return ", ".join(parts)

    @property
    def sampling(self) -> str:
        """Number of samples that the term compares, and how often, as text.

        Example: "8 samples every 5 steps".
        """
        interval = "step" if self.every == 1 else f"{self.every} steps"
        return f"{self.samples or 'all'} samples every {interval}"


BASELINE = Arm(**{name: _DEFAULTS[name] for name in CKA_SR_FIELDS})


@dataclass(frozen=True)
class Cell:
    """Records that differ only in the settings of the term and in the seed."""

    settings: dict[str, Any]  # The settings that all records share.
    arms: dict[Arm, dict[int, Record]] = field(default_factory=dict)  # Arm to seed to record.


def settings_of(record: Record) -> dict[str, Any]:
    """Return the settings of a record, with the options of the method that are not the default.

    A setting that is missing in an old record has the value that was used at that time.

    Args:
        record: the record of a run.
    """
    settings = Settings.from_dict(record["settings"])
    return {**settings.to_dict(), "method_options": dict(settings.method_options)}


def arm_of(settings: Mapping[str, Any]) -> Arm:
    """Return the arm to which the settings of a run belong."""
    if settings["beta"] == 0:
        return BASELINE
    return Arm(**{name: settings[name] for name in CKA_SR_FIELDS})


def term_label(arms: Iterable[Arm]) -> str:
    """Return the label of the term that the arms share, or "term" if their terms differ.

    The baseline has no term. If there is no other arm, the label is that of CKA-SR, the default.

    Args:
        arms: the arms.
    """
    arms = set(arms)
    labels = {find(arm.term).label for arm in arms - {BASELINE} or {BASELINE}}
    return labels.pop() if len(labels) == 1 else "term"


def cells(records: Iterable[Record]) -> list[Cell]:
    """Sort records into cells.

    Cells are ordered by their settings (the longest schedule first) and by sparsity. The arms of a
    cell are ordered by beta. A record that is given twice, with the same id, counts once. A record
    that lacks a field that tables and figures need is left out, with a RuntimeWarning that names
    it.

    Args:
        records: the records of runs.

    Raises:
        ValueError: for two different records with the same settings and seed.
    """
    found: dict[str, Cell] = {}
    for record in records:
        if missing := [name for name in _READ if name not in record]:
            text = f"record {record['id']} is left out, because it has no {', '.join(missing)}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            continue
        settings = settings_of(record)
        shared = {
            name: value
            for name, value in settings.items()
            if name not in CKA_SR_FIELDS and name != "seed"
        }
        cell = found.setdefault(_key(shared), Cell(shared))
        seeds = cell.arms.setdefault(arm_of(settings), {})
        known = seeds.setdefault(settings["seed"], record)
        if known["id"] != record["id"]:
            raise ValueError(
                f"records {known['id']} and {record['id']} have the same settings and seed: "
                "remove one of them"
            )
    ordered = sorted(found.values(), key=lambda cell: _order(cell.settings))
    return [
        Cell(c.settings, {a: dict(sorted(c.arms[a].items())) for a in sorted(c.arms)})
        for c in ordered
    ]


def groups(records: Iterable[Record]) -> list[list[Cell]]:
    """Group the cells that differ only in sparsity, which one table or figure may show together.

    Args:
        records: the records of runs.

    Raises:
        ValueError: for two different records with the same settings and seed.
    """
    found: dict[str, list[Cell]] = {}
    for cell in cells(records):
        found.setdefault(_key(_without_sparsity(cell.settings)), []).append(cell)
    return list(found.values())


def families(records: Iterable[Record]) -> list[list[Cell]]:
    """Group the cells that differ only in method and sparsity.

    Groups with a single method are left out.

    Args:
        records: the records of runs.
    """
    found: dict[str, list[Cell]] = {}
    for cell in cells(records):
        shared = _without_sparsity(_no_method(cell.settings))
        found.setdefault(_key(shared), []).append(cell)
    return [family for family in found.values() if len({c.settings["method"] for c in family}) > 1]


def studies(records: Iterable[Record]) -> list[list[Cell]]:
    """Return the `groups`, except those that only have a baseline and are part of `families`.

    Args:
        records: the records of runs.
    """
    records = list(records)
    beside = [cell.settings for family in families(records) for cell in family]
    return [
        group
        for group in groups(records)
        if group[0].settings not in beside or any(set(cell.arms) - {BASELINE} for cell in group)
    ]


def nonempty_groups(records: Iterable[Record]) -> list[list[Cell]]:
    """Return the `groups`.

    Args:
        records: the records of runs.

    Raises:
        ValueError: if there are no records.
    """
    found = groups(records)
    if not found:
        raise ValueError("there are no records to draw")
    return found


def only_cell(records: Iterable[Record]) -> Cell:
    """Return the single cell of the records.

    Args:
        records: the records of runs.

    Raises:
        ValueError: if the records belong to no cell, or to more than one.
    """
    found = [cell for group in nonempty_groups(records) for cell in group]
    if len(found) > 1:
        names = "; ".join(cell_title(cell.settings) for cell in found)
        raise ValueError(f"this figure shows one cell, but the records have {len(found)}: {names}")
    return found[0]


def title(settings: Mapping[str, Any]) -> str:
    """Return the title of a group: data set, network, method, epochs, and non-default settings.

    Example: "CIFAR-100, ResNet20, random ERK masks, 160 epochs".
    """
    return ", ".join([*_task(settings), recipe_title(settings)])


def recipe_title(settings: Mapping[str, Any]) -> str:
    """The title of a group, without the data set and the network."""
    method = words.method(settings["method"], settings["distribution"])
    return ", ".join([method, *_recipe(settings)])


def cell_title(settings: Mapping[str, Any]) -> str:
    """Return the title of a cell: the title of its group, and the sparsity."""
    return f"{title(settings)}, sparsity {percent(settings['sparsity'])}"


def family_title(settings: Mapping[str, Any]) -> str:
    """Return the title of a family: the title of a group, without the method."""
    return ", ".join([*_task(settings), *_recipe(_no_method(settings))])


def slug(settings: Mapping[str, Any]) -> str:
    """Return the file name of a group, which does not contain the sparsity."""
    return _slug(settings, "dataset", "model", "method", "distribution")


def recipe_slug(settings: Mapping[str, Any]) -> str:
    """The file name of a group, without the data set, the network and the sparsity."""
    return _slug(settings, "method", "distribution")


def family_slug(settings: Mapping[str, Any]) -> str:
    """Return the file name of a family."""
    return _slug(_no_method(settings), "dataset", "model")


def percent(share: float) -> str:
    """Format a fraction in percent with all its significant digits: 0.998 gives "99.8 %"."""
    return f"{100 * share:.10g} %"


def power_of_ten(value: float) -> str:
    """Format a number as the paper writes beta: 0.0001 gives "1e-4", and 0.05 gives "0.05"."""
    if 0.01 <= value < 1000:
        return f"{value:g}"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _slug(settings: Mapping[str, Any], *names: str) -> str:
    parts = [*(str(settings[name]) for name in names), f"{settings['epochs']}ep"]
    for name, value in _unusual(settings).items():
        options = value if isinstance(value, Mapping) else {name: value}
        parts += [f"{key}-{json.dumps(each)}" for key, each in options.items()]
    text = "_".join(parts).replace(", ", "-").replace(",", "-")
    return "".join(c for c in text if c.isalnum() or c in "_-.")


def _task(settings: Mapping[str, Any]) -> list[str]:
    return [words.dataset(settings["dataset"]), words.network(settings["model"])]


def _recipe(settings: Mapping[str, Any]) -> list[str]:
    extra = [words.setting(name, value) for name, value in _unusual(settings).items()]
    return [words.setting("epochs", settings["epochs"]), *extra]


def _no_method(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _METHOD_FIELDS}


def _unusual(settings: Mapping[str, Any]) -> dict[str, Any]:
    named = {"dataset", "model", "method", "distribution", "sparsity", "epochs", "schedule", "seed"}
    return {
        name: value
        for name, value in settings.items()
        if name not in named and name not in CKA_SR_FIELDS and value != _DEFAULTS.get(name)
    }


def _without_sparsity(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "sparsity"}


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _order(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("dataset", "model", "method", "distribution")
    rest = _key(_without_sparsity(settings))
    return (*(settings[name] for name in names), -settings["epochs"], rest, settings["sparsity"])
