"""Records sorted into what may be compared: a cell's arms, side by side, seed by seed."""

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ckasr.experiments.settings import CKA_SR_FIELDS, Settings
from ckasr.terms import find

Record = Mapping[str, Any]

_METHOD_FIELDS = {"method", "method_options", "distribution"}

_DEFAULTS = Settings().to_dict()

_READ = ("curves", "sparsity", "layer_cka", "weights", "device")
"""Fields that tables and figures read, and that a record need not have."""


class Arm(NamedTuple):
    """One side of a comparison: the term's settings. Beta 0 is the baseline, whatever the rest."""

    beta: float
    variant: str
    samples: int  # images of a batch the term sees; 0: all
    every: int
    pairs: str
    term: str = "cka_sr"

    @property
    def label(self) -> str:
        """Short name; settings that are the official code's are left out."""
        if self.beta == 0:
            return "baseline"
        words = [f"{find(self.term).label}, β = {power_of_ten(self.beta)}"]
        if self.variant != BASELINE.variant:
            words.append(self.variant)
        if (self.samples, self.every) != (BASELINE.samples, BASELINE.every):
            words.append(f"{self.samples or 'all'} samples every {self.every}")
        if self.pairs:
            words.append(f"pairs {self.pairs}")
        return ", ".join(words)


BASELINE = Arm(**{name: _DEFAULTS[name] for name in CKA_SR_FIELDS})


@dataclass(frozen=True)
class Cell:
    """Records that differ in nothing but the settings of the term and the seed."""

    settings: dict[str, Any]  # what they share
    arms: dict[Arm, dict[int, Record]] = field(default_factory=dict)  # arm -> seed -> record


def settings_of(record: Record) -> dict[str, Any]:
    """A record's settings; of the method's options, those that are not the default.

    What an old record does not hold has the value that was used when it was made.
    """
    settings = Settings.from_dict(record["settings"])
    return {**settings.to_dict(), "method_options": dict(settings.method_options)}


def arm_of(settings: Mapping[str, Any]) -> Arm:
    """The arm that settings belong to."""
    if settings["beta"] == 0:
        return BASELINE
    return Arm(**{name: settings[name] for name in CKA_SR_FIELDS})


def term_label(arms: Iterable[Arm]) -> str:
    """Label of the term of these arms; "term" where they have different ones.

    The baseline has none. Without any other arm it is the label of CKA-SR, the default.
    """
    arms = set(arms)
    labels = {find(arm.term).label for arm in arms - {BASELINE} or {BASELINE}}
    return labels.pop() if len(labels) == 1 else "term"


def cells(records: Iterable[Record]) -> list[Cell]:
    """All cells, by settings (longest schedule first) and sparsity; in each, arms by beta.

    A record given twice (same id) counts once. One that lacks a field that tables and figures read
    is named in a RuntimeWarning and left out. Raises ValueError for two records of one setting
    and seed, between which nothing could choose.
    """
    found: dict[str, Cell] = {}
    for record in records:
        if missing := [name for name in _READ if name not in record]:
            text = f"record {record['id']} is left out: it has no {', '.join(missing)}"
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
    """Cells that differ in nothing but the sparsity: what one table or one figure may hold."""
    found: dict[str, list[Cell]] = {}
    for cell in cells(records):
        found.setdefault(_key(_without_sparsity(cell.settings)), []).append(cell)
    return list(found.values())


def families(records: Iterable[Record]) -> list[list[Cell]]:
    """Cells that differ in nothing but method and sparsity: where there is more than one method."""
    found: dict[str, list[Cell]] = {}
    for cell in cells(records):
        shared = _without_sparsity(_no_method(cell.settings))
        found.setdefault(_key(shared), []).append(cell)
    return [family for family in found.values() if len({c.settings["method"] for c in family}) > 1]


def studies(records: Iterable[Record]) -> list[list[Cell]]:
    """The groups, without those that have the baseline only and stand in one of the `families`."""
    records = list(records)
    beside = [cell.settings for family in families(records) for cell in family]
    return [
        group
        for group in groups(records)
        if group[0].settings not in beside or any(set(cell.arms) - {BASELINE} for cell in group)
    ]


def title(settings: Mapping[str, Any]) -> str:
    """What a group is, in words: data, network, method, schedule, and whatever is not default."""
    method = settings["method"]
    if method != "dense":
        method += f" ({settings['distribution']})"
    head = f"{settings['dataset']}, {settings['model']}, {method}"
    return ", ".join([head, *_recipe(settings)])


def family_title(settings: Mapping[str, Any]) -> str:
    """What a family is, in words: as a group's, without the method."""
    return ", ".join([settings["dataset"], settings["model"], *_recipe(_no_method(settings))])


def slug(settings: Mapping[str, Any]) -> str:
    """A group's title as a file name, without the sparsity."""
    return _slug(settings, "dataset", "model", "method", "distribution")


def family_slug(settings: Mapping[str, Any]) -> str:
    """A family's title as a file name."""
    return _slug(_no_method(settings), "dataset", "model")


def percent(share: float) -> str:
    """A share in percent with the digits it needs: 0.998 is 99.8 %."""
    return f"{100 * share:.10g} %"


def power_of_ten(value: float) -> str:
    """0.0001 as 1e-4, 0.05 as 0.05: betas as the paper writes them."""
    if 0.01 <= value < 1000:
        return f"{value:g}"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _slug(settings: Mapping[str, Any], *names: str) -> str:
    words = [*(str(settings[name]) for name in names), f"{settings['epochs']}ep"]
    words += [f"{name}-{json.dumps(value)}" for name, value in _unusual(settings).items()]
    kept = "_".join(words).replace(", ", "-")
    return "".join(c for c in kept if c.isalnum() or c in "_-.")


def _recipe(settings: Mapping[str, Any]) -> list[str]:
    extra = [f"{name} {value}" for name, value in _unusual(settings).items()]
    return [f"{settings['epochs']} epochs ({settings['schedule']} schedule)", *extra]


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
