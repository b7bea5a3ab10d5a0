"""Names of records: the same settings keep theirs for ever, whatever becomes of the defaults."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from ckasr import methods
from ckasr.analysis.cells import cells
from ckasr.experiments import Settings, identity, records
from ckasr.methods.rigl import RigL

RESULTS = Path(__file__).parents[1] / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/records"))
COMMITTED = {path.stem: path for path in sorted(RESULTS.glob("*/records/*.json"))}


def settings_in(path: Path) -> dict:
    return json.loads(path.read_text())["settings"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_committed_records_are_valid_under_their_names(folder, recwarn):
    """A rule that changes ids or refuses what a run wrote would take the evidence away."""
    found = records.load_all(folder)
    there = sorted(path.stem for path in (folder / "records").glob("*.json"))
    assert sorted(record["id"] for record in found) == there
    assert not recwarn.list
    for record in found:
        settings = Settings.from_dict(record["settings"])
        assert Settings.from_dict(settings.to_dict()) == settings


def test_there_are_committed_records():
    assert len(COMMITTED) > 200


def test_ids_are_stable():
    """These names are in committed records: if this fails, finished runs would be run again."""
    assert Settings().id == "44136fa355b3"
    assert Settings(sparsity=0.995, beta=1e-4, seed=3).id == "139b5f0223dd"
    assert Settings(sparsity=0.95, epochs=4).id == "fd499791bc6e"


# One name of each method and form, as the records had them before names were independent of the
# defaults; CIFAR-10, ResNet20, 95 %, 2 epochs, a drop at half.
NAMES = [
    ("random", {}, "753a0c80ba3c"),
    ("l0", {"finetune": 0.5, "dual_rate": 0.05, "dual_per": "step"}, "4493241686e0"),
    ("grasp", {"train_mode": True}, "2231afbb71f7"),
    ("grasp", {"train_mode": False}, "bbce63e87d7c"),
]


@pytest.mark.parametrize(("method", "options", "name"), NAMES)
def test_names_of_the_methods_are_stable(method, options, name):
    recipe = {"dataset": "cifar10", "sparsity": 0.95, "epochs": 2, "milestones": (0.5,)}
    made = Settings(**recipe, method=method, method_options=options)
    assert made.id == name
    assert name in COMMITTED


def test_the_default_of_grasp_has_another_id_than_before():
    """The first version scored in eval mode; its names are not given again."""
    retired = {"c91fcaec794f", "6b331178cdb0"}
    assert not retired & COMMITTED.keys()
    for sparsity in (0.95, 0.995):
        recipe = {"dataset": "cifar10", "sparsity": sparsity, "epochs": 2, "milestones": (0.5,)}
        now, batch, running = (
            Settings(**recipe, method="grasp", method_options=options)
            for options in ({}, {"train_mode": True}, {"train_mode": False})
        )
        assert now == batch
        assert {now.id, running.id} <= COMMITTED.keys()
        assert not {now.id, running.id} & retired
        assert settings_in(COMMITTED[running.id])["method_options"]["train_mode"] is False
        # A record that does not say, of before the change, is read as what it was.
        assert Settings.from_dict({**recipe, "method": "grasp"}) == running


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_record_contains_every_option(method):
    written = Settings(method=method).to_dict()["method_options"]
    assert written == {f.name: f.default for f in fields(methods.METHODS[method])}


@dataclass
class Changed(RigL):
    fraction: float = 0.5


def test_a_new_default_of_an_option_renames_nothing(monkeypatch):
    old = Settings(method="rigl").to_dict()
    name_then = Settings(method="rigl").id
    monkeypatch.setitem(methods.METHODS, "rigl", Changed)
    new = Settings(method="rigl")
    assert new.id != name_then, "a finished run would be taken for one that never was"
    assert Settings(method="rigl", method_options={"fraction": 0.3}).id == name_then
    assert Settings.from_dict(old).id == name_then
    assert Settings.from_dict({**old, "method_options": {}}).id == name_then
    for name, path in COMMITTED.items():
        assert Settings.from_dict(settings_in(path)).id == name
    ours = [path for path in COMMITTED.values() if settings_in(path)["method"] == "rigl"]
    (cell, *_) = cells(json.loads(path.read_text()) for path in ours)
    assert cell.settings["method_options"] == {"fraction": 0.3}, "the table names what was run"


@dataclass(frozen=True)
class Later(Settings):
    """Settings of a later version, with other defaults."""

    momentum: float = 0.8
    samples: int = 16


def test_a_new_default_of_a_setting_renames_nothing():
    assert Later().id != Settings().id
    assert Later(momentum=0.9).id == Settings().id
    assert Later(momentum=0.9, beta=1e-4).id == Settings(beta=1e-4, samples=16).id
    for name, path in COMMITTED.items():
        assert Later.from_dict(settings_in(path)).id == name


def test_an_option_added_without_a_value_for_the_past_is_noticed(monkeypatch):
    """Then the old records' names no longer fit: they are refused, and not read as the new."""

    @dataclass
    class More(RigL):
        extra: int = 1

    old = Settings(method="rigl").to_dict()
    name = identity.run_id(old)
    monkeypatch.setitem(methods.METHODS, "rigl", More)
    assert Settings.from_dict(old).id != name
    monkeypatch.setitem(identity.OPTIONS["rigl"], "extra", 1)
    assert Settings.from_dict(old).id == name


def test_a_new_default_of_the_term_does_not_rename_baselines(monkeypatch):
    name = Settings().id
    monkeypatch.setattr(Settings, "samples", 16)  # what a run without the term is set to
    changed = Settings()
    assert changed.samples == 16
    assert changed.id == name
