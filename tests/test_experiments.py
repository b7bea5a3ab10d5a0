"""Settings, runs, records and sweeps, on real digits (and, where it is at hand, on CIFAR-100)."""

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ckasr
from ckasr import analysis, devices, methods
from ckasr.data import load
from ckasr.experiments import CKA_SR_FIELDS, OutOfTime, Settings, grid, plan, records, run, sweep
from ckasr.experiments import run as run_function
from ckasr.experiments.build import build_engine
from ckasr.experiments.provenance import commit
from ckasr.experiments.sweep import groups as run_groups
from ckasr.storage import claim
from ckasr.training import Engine

run_module = sys.modules[run_function.__module__]
CPU = devices.find("cpu")
DIGITS = {"dataset": "digits", "model": "resmlp", "validation": 200, "sparsity": 0.9}


def digits(**changes) -> Settings:
    return Settings(**{**DIGITS, "epochs": 3, "beta": 1e-3, **changes})


def essence(record: dict) -> dict:
    """A record without what may differ between two runs of the same settings."""
    timing = ("seconds", "started", "peak_memory_bytes", "commit")
    curves = {k: v for k, v in record["curves"].items() if k != "seconds"}
    return {k: v for k, v in record.items() if k not in timing} | {"curves": curves}


# ---- settings


def test_ids_are_stable():
    """These names are in committed records: if this fails, finished runs would be run again."""
    assert Settings().id == "44136fa355b3"
    assert Settings(sparsity=0.995, beta=1e-4, seed=3).id == "139b5f0223dd"
    assert Settings(sparsity=0.95, epochs=4).id == "fd499791bc6e"


COMMITTED = sorted((Path(__file__).resolve().parents[1] / "results").glob("*/records/*.json"))


@pytest.mark.parametrize("folder", sorted({path.parents[1] for path in COMMITTED}), ids=str)
def test_committed_records_are_valid(folder, recwarn):
    """A rule that changes ids or refuses what a run wrote would take the evidence away."""
    there = [path.stem for path in COMMITTED if path.parents[1] == folder]
    assert sorted(record["id"] for record in records.load_all(folder)) == there
    assert not recwarn.list


@pytest.mark.parametrize("method", [name for name in methods.METHODS if name != "dense"])
def test_distribution_changes_the_id_where_the_method_reads_it(method):
    """Whether it reads it is seen from a training."""

    class Context(methods.Context):
        read = False

        def __getattribute__(self, name: str):
            if name == "distribution":
                type(self).read = True
            return super().__getattribute__(name)

    settings = digits(method=method, epochs=1, beta=0.0)
    engine = build_engine(settings, load("digits"), CPU)
    old = {f.name: getattr(engine.context, f.name) for f in dataclasses.fields(methods.Context)}
    engine.context = Context(**old)
    Context.read = False
    for _ in engine.epochs():
        pass
    other = dataclasses.replace(settings, distribution="uniform")
    assert (other.id != settings.id) == Context.read
    with pytest.raises(ValueError, match=r"^setting distribution "):
        dataclasses.replace(settings, distribution="erdos")


def test_decay_is_no_setting_where_there_are_no_milestones():
    assert Settings(milestones=(), decay=0.5) == Settings(milestones=())
    assert Settings(milestones=(0.5,), decay=0.5) != Settings(milestones=(0.5,))


def test_id_depends_on_values_not_on_how_they_are_written():
    assert Settings(beta=1, milestones=[0.5, 0.75]).id == Settings(beta=1.0).id
    assert Settings(beta=1.0).id != Settings(beta=1.0, every=1).id


def test_every_setting_changes_the_id():
    other = {
        "dataset": "digits",
        "model": "resnet32",
        "method": "rigl",
        "method_options": {"fraction": 0.5},
        "distribution": "er",
        "term": "shuffled",
        "variant": "paper",
        "pairs": "all",
        "milestones": (0.5,),
        "nesterov": False,
        "augment": "none",
        "precision": "bf16",
    }
    base = Settings(method="set", beta=0.5, sparsity=0.5)
    ids = {base.id}
    for item in dataclasses.fields(Settings):
        value = getattr(base, item.name)
        changed = other.get(item.name, value * 2 if isinstance(value, float) and value < 0.5 else 7)
        if item.name == "sparsity":
            changed = 0.25
        if item.name == "momentum":
            changed = 0.5
        ids.add(dataclasses.replace(base, **{item.name: changed}).id)
    assert len(ids) == len(dataclasses.fields(Settings)) + 1


def test_method_options_are_read_as_the_method_reads_them():
    chosen = Settings(method="lth", method_options={"rewind": 2})
    for written in ("2", 2.0):
        assert Settings(method="lth", method_options={"rewind": written}).id == chosen.id
    default = methods.create("lth").rewind
    assert Settings(method="lth", method_options={"rewind": default}) == Settings(method="lth")


def test_baselines_of_all_terms_are_one_run():
    assert Settings(beta=0.0, variant="paper", samples=0, every=1, pairs="all").id == Settings().id
    assert Settings(beta=1e-3, variant="aug", seed=2).baseline() == Settings(seed=2)


def test_settings_survive_json():
    settings = Settings(
        beta=1e-4, method="lth", method_options={"rewind": 2}, milestones=(0.25, 0.5)
    )
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(LookupError, match="unknown setting 'betta'"):
        Settings.from_dict({"betta": 1})


def test_short_schedules_are_named():
    assert Settings(epochs=159).schedule == "short"
    assert Settings().schedule == "full"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sparsity", 1.0),
        ("sparsity", -0.1),
        ("sparsity", "0.9"),
        ("beta", float("nan")),
        ("beta", -1e-4),
        ("samples", 3),
        ("every", 0),
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", True),
        ("batch_size", 1),
        ("learning_rate", 0.0),
        ("momentum", 1.0),
        ("milestones", (0.75, 0.5)),
        ("decay", 0.0),
        ("learning_rate", float("inf")),
        ("weight_decay", float("inf")),
        ("weight_decay", float("nan")),
        ("milestones", (0.5, float("nan"))),
        ("milestones", ("0.5",)),
        ("seed", -1),
        ("seed", 2**63),
        ("batch_size", 10**30),
        ("epochs", 10_001),
        ("validation", -1),
        ("variant", "offical"),
        ("pairs", "some"),
        ("distribution", "erdos"),
        ("augment", "flip"),
        ("precision", "fp16"),
    ],
)
def test_bad_settings_are_one_clear_line(name, value):
    with pytest.raises(ValueError, match=f"^setting {name} ") as error:
        Settings(**{"beta": 0.1, name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "near"),
    [
        ("dataset", "cifar-100", r"'cifar-100'; nearest: cifar100,? .*\(all: "),
        ("model", "resnet-20", r"'resnet-20'; nearest: resnet20,? "),
        ("dataset", "movies", r"'movies' \(all: "),
        ("method", "xyz", r"'xyz' \(all: dense, "),
    ],
)
def test_unknown_names_are_refused_and_only_near_ones_offered(name, value, near):
    with pytest.raises(LookupError, match=f"^unknown (data set|model|method) {near}"):
        Settings(**{name: value})


def test_a_baseline_is_checked_like_the_other_arm():
    with pytest.raises(ValueError, match=r"^setting variant "):
        Settings(beta=0.0, variant="offical")


# ---- runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[dict, Path]:
    results = tmp_path_factory.mktemp("results")
    return run(digits(), results, progress=None), results


def test_record_holds_what_it_must(finished):
    record, results = finished
    assert record == json.loads(records.path_of(results, record["id"]).read_text())
    assert record["status"] == "finished"
    assert record["settings"] == digits().to_dict()
    assert record["curves"]["epoch"] == [1, 2, 3]
    assert {len(curve) for curve in record["curves"].values()} == {3}
    assert record["curves"]["learning_rate"] == pytest.approx([0.1, 0.01, 0.001])
    assert all(0 < term < 16.1 for term in record["curves"]["term"])
    assert all(0 < ratio < 1 for ratio in record["curves"]["gradient_ratio"])
    assert 0.3 < record["test_accuracy"] <= 1
    assert record["validation_accuracy"] == record["curves"]["validation_accuracy"][-1]
    assert record["sparsity"]["nominal"] == pytest.approx(0.9, abs=1e-4)
    assert record["layer_cka"]["samples"] == 200
    assert record["layer_cka"]["split"] == "validation"
    assert record["layer_cka"]["layers"][0] == "stem"
    assert sum(record["weights"]["histogram"]["counts"]) <= record["sparsity"]["kept"]
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert not list(results.rglob("*.part"))
    assert not list(results.rglob("*.pt")), "a finished run needs no checkpoint"


def test_finished_run_is_read_not_trained(finished, monkeypatch):
    record, results = finished
    monkeypatch.setattr(run_module, "build_engine", None)
    assert run(digits(), results, progress=None) == record


def test_stopped_run_resumes_to_the_same_record(finished, tmp_path):
    for _ in range(2):
        with pytest.raises(OutOfTime):
            run(digits(), tmp_path, progress=None, deadline=time.monotonic())
    assert records.load(tmp_path, digits().id) is None
    assert essence(run(digits(), tmp_path, progress=None)) == essence(finished[0])


def test_killed_run_resumes_to_the_same_weights(tmp_path):
    """SIGKILL in the middle of an epoch; the weights are compared bit for bit."""
    settings = digits(epochs=60)
    code = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[3]))\n"
        "import json; from pathlib import Path; from ckasr.experiments import Settings, run\n"
        "run(Settings.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2]))"
    )
    threads = str(torch.get_num_threads())
    arguments = [json.dumps(settings.to_dict()), str(tmp_path / "killed"), threads]
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", code, *arguments], stdout=subprocess.PIPE, text=True
    )
    for line in child.stdout:
        if "epoch   3" in line:
            os.kill(child.pid, signal.SIGKILL)
            break
    child.wait()
    kept = tmp_path / "killed" / "checkpoints" / f"{settings.id}.pt"
    assert kept.exists()

    def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
        engine = build_engine(settings, load("digits"), CPU)
        engine.checkpoint = checkpoint
        assert sum(1 for _ in engine.epochs()) == 60 - before
        return engine.context.model.state_dict()

    before = torch.load(kept, weights_only=True)["epoch"]
    assert 3 <= before < 60
    resumed = weights(kept)
    before = 0
    straight = weights(tmp_path / "straight.pt")
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name


def test_arms_share_everything_but_the_term(tmp_path):
    batches, masks, initial = [], [], []
    for beta in (0.0, 0.1):
        engine = build_engine(digits(beta=beta, seed=4), load("digits"), CPU)
        initial.append([p.clone() for p in engine.context.model.parameters()])
        next(engine.epochs())
        masks.append(dict(engine.state.masks))
        batches.append(list(engine.batches.epoch(0)))
    torch.testing.assert_close(initial[0], initial[1], rtol=0, atol=0)
    torch.testing.assert_close(batches[0], batches[1], rtol=0, atol=0)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_masks_hold_weights_and_momentum():
    engine = build_engine(digits(), load("digits"), CPU)
    for _ in engine.epochs():
        pass
    optimizer = engine.state.optimizer
    for name, parameter in engine.context.model.named_parameters():
        if name in engine.state.masks:
            outside = ~engine.state.masks[name]
            assert (parameter[outside] == 0).all()
            assert (optimizer.state[parameter]["momentum_buffer"][outside] == 0).all()


def test_measuring_the_gradient_ratio_changes_nothing():
    """The step that takes the two gradients apart ends with the same sum."""
    weights = []
    for measure in (True, False):
        engine = build_engine(digits(beta=0.05, every=1), load("digits"), CPU)
        engine.context.model.double()
        engine.batches.dtype = torch.float64
        start = Engine._epoch

        def epoch(self, index, phase, number, step, measure=measure, start=start):
            begin = step.start_epoch

            def start_epoch(number: int) -> None:
                begin(number)
                if not measure:
                    step.gradient_ratio = torch.zeros(())

            step.start_epoch = start_epoch
            return start(self, index, phase, number, step)

        engine._epoch = epoch.__get__(engine)
        engine.validation = engine.measure_term = None
        entry = next(engine.epochs())
        assert (entry["gradient_ratio"] > 0) == measure
        weights.append(engine.context.model.state_dict())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-9, atol=1e-11)


def test_test_set_is_read_once_after_the_last_epoch(tmp_path, monkeypatch):
    dataset = load("digits")
    reads = []

    class Watched:
        def __getattr__(self, name: str):
            if name.startswith("test_"):
                reads.append((name, len(epochs)))
            return getattr(dataset, name)

    epochs: list[str] = []
    monkeypatch.setattr(run_module, "_load", lambda name, data: Watched())
    run(digits(), tmp_path, progress=lambda line: epochs.append(line) if "epoch" in line else None)
    assert [name for name, _ in reads] == ["test_batches"]
    assert all(seen >= 3 for _, seen in reads)


def test_diverged_run_is_recorded_as_such(tmp_path):
    record = run(digits(learning_rate=1e30, epochs=5), tmp_path, progress=None)
    assert record["status"] == "diverged"
    assert record["test_accuracy"] is None
    assert len(record["curves"]["epoch"]) < 5
    assert records.load(tmp_path, record["id"]) == record


def test_training_on_everything(tmp_path):
    record = run(digits(validation=0, epochs=1, beta=0.0), tmp_path, progress=None)
    assert record["validation_accuracy"] is None
    assert record["curves"]["term"] == [None]
    assert record["layer_cka"]["split"] == "train"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dataset": "digit"}, LookupError, "unknown data set 'digit'"),
        ({"model": "resmpl"}, LookupError, "resmlp"),
        ({"method": "randon"}, LookupError, "unknown method 'randon'; nearest: random"),
        ({"method_options": {"x": 1}}, LookupError, "no option 'x'"),
        ({"method": "dense"}, ValueError, "'dense' prunes nothing, but sparsity is 0.9"),
        ({"validation": 5000}, ValueError, "validation=5000"),
        ({"batch_size": 4096}, ValueError, "do not fill one batch of 4096"),
    ],
)
def test_impossible_runs_fail_clearly_and_write_nothing(tmp_path, changes, error, message):
    with pytest.raises(error, match=message) as caught:
        run(digits(**changes), tmp_path / "results", progress=None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_damaged_checkpoint_says_what_to_do(tmp_path):
    path = tmp_path / "checkpoints" / f"{digits().id}.pt"
    path.parent.mkdir()
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"cannot be read .* delete it"):
        run(digits(), tmp_path, progress=None)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    """Its weights, masks and optimiser would fit: it differs in the seed alone."""
    mine, other = digits(), digits(seed=1)
    for settings in (mine, other):
        with pytest.raises(OutOfTime):
            run(settings, tmp_path, progress=None, deadline=0)
    folder = tmp_path / "checkpoints"
    (folder / f"{other.id}.pt").replace(folder / f"{mine.id}.pt")
    with pytest.raises(ValueError, match=f"is of run {other.id}, not of run {mine.id}: delete it"):
        run(mine, tmp_path, progress=None)


@pytest.mark.parametrize("change", ["a tensor", "no owner", "a curve less", "another shape"])
def test_a_foreign_checkpoint_is_one_line(tmp_path, change):
    settings = digits()
    with pytest.raises(OutOfTime):
        run(settings, tmp_path, progress=None, deadline=0)
    path = tmp_path / "checkpoints" / f"{settings.id}.pt"
    state = torch.load(path, weights_only=True)
    if change == "a tensor":
        state = torch.zeros(3)
    elif change == "no owner":
        del state["owner"]
    elif change == "a curve less":
        del state["curves"]["loss"]
    else:
        name = next(name for name, value in state["model"].items() if value.dim() == 2)
        state["model"][name] = torch.zeros(1, 1)
    torch.save(state, path)
    with pytest.raises(ValueError, match=rf"checkpoint {path} .*delete it") as caught:
        run(settings, tmp_path, progress=None)
    assert "\n" not in str(caught.value)
    assert not records.path_of(tmp_path, settings.id).exists()


def test_a_killed_save_is_cleaned_up_by_the_next_run(tmp_path):
    part = tmp_path / "checkpoints" / f"{digits().id}.pt.0123abcd.part"
    part.parent.mkdir()
    part.write_bytes(b"half")
    run(digits(epochs=1), tmp_path, progress=None)
    assert part.exists(), "it is another run's"
    run(digits(), tmp_path, progress=None)
    assert not part.exists()


@pytest.mark.parametrize("name", ["gpu", "mps", "xpu", "meta", "cpu:1", "cuda:x", "cuda:-1", ""])
def test_other_devices_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"^device '{name}' is not supported: use cpu, cuda"):
        run(digits(), tmp_path / "results", device=name, progress=None)
    assert not (tmp_path / "results").exists()


def test_a_gpu_beyond_the_last_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="device 'cuda:2' asked for, but the last of 2 is cuda:1"):
        run(digits(), tmp_path, device="cuda:2", progress=None)


@pytest.mark.parametrize(
    "door",
    [
        lambda results: run(digits(), results, progress=None),
        lambda results: sweep([digits()], results, progress=lambda line: None),
    ],
    ids=["run", "sweep"],
)
def test_an_unwritable_results_folder_is_found_before_training(tmp_path, monkeypatch, door):
    monkeypatch.setattr(Engine, "queued_epochs", None)
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.raises(NotADirectoryError, match=r"cannot write to .*results is not a folder"):
        door(tmp_path / "results")


def test_a_number_that_json_cannot_hold_does_not_cost_the_record(tmp_path, monkeypatch):
    matrix = {"layers": ["a", "b"], "matrix": [[1.0, math.nan], [math.nan, 1.0]]}
    monkeypatch.setattr(run_module, "layer_cka", lambda *arguments: matrix)
    record = run(digits(epochs=1), tmp_path, progress=None)
    assert record["layer_cka"]["matrix"] == [[1.0, None], [None, 1.0]]
    assert records.load(tmp_path, record["id"]) == record


@pytest.mark.cifar
def test_both_arms_train_on_real_cifar(cifar, tmp_path, monkeypatch):
    """A slice of CIFAR-100 through the whole door, with and without the term."""
    part = dataclasses.replace(
        cifar,
        train_images=cifar.train_images[:6000],
        train_labels=cifar.train_labels[:6000],
        test_images=cifar.test_images[:1000],
        test_labels=cifar.test_labels[:1000],
    )
    monkeypatch.setattr(run_module, "_load", lambda name, data: part)
    settings = Settings(sparsity=0.9, epochs=2, batch_size=64, validation=500, beta=1e-4, every=2)
    for cell in (settings, settings.baseline()):
        record = run(cell, tmp_path, progress=None)
        assert record["curves"]["loss"][-1] < record["curves"]["loss"][0]
        assert record["curves"]["loss"][-1] < 4.4, "chance is log 100 = 4.61"
        assert record["test_accuracy"] > 0.02, "chance is 0.01"
        assert record["sparsity"]["kept"] == round(0.1 * record["sparsity"]["weights"])


# ---- records


def test_records_travel_in_one_file(finished, tmp_path):
    record, _ = finished
    seed_1 = digits(seed=1)
    other = {**record, "id": seed_1.id, "settings": seed_1.to_dict()}
    records.save(other, tmp_path / "a")
    records.save(record, tmp_path / "a")
    lines = tmp_path / "all.jsonl"
    assert records.export_lines(tmp_path / "a", lines) == 2
    assert records.merge_lines(lines, tmp_path / "b") == (2, 0)
    assert records.merge_lines(lines, tmp_path / "b") == (0, 2)
    assert records.load_all(tmp_path / "b") == records.load_all(tmp_path / "a")


def test_merging_a_broken_file_writes_nothing(finished, tmp_path):
    lines = tmp_path / "bad.jsonl"
    lines.write_text(json.dumps(finished[0]) + '\n{"schema": 1, "id"\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2 is not JSON"):
        records.merge_lines(lines, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    lines.write_text('{"schema": 99}\n')
    with pytest.raises(ValueError, match="line 1 is no run record of schema 1"):
        records.merge_lines(lines, tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="no file"):
        records.merge_lines(tmp_path / "none.jsonl", tmp_path / "b")


def edited(record: dict, **changes) -> dict:
    return json.loads(json.dumps(record)) | changes


BROKEN = {
    "an id of other settings": lambda r: edited(r, id="0123456789ab"),
    "a path as id": lambda r: edited(r, id="../../0123456789ab"),
    "an id of another type": lambda r: edited(r, id=12),
    "edited settings": lambda r: edited(r, settings=r["settings"] | {"seed": 7}),
    "no settings": lambda r: edited(r, settings={}),
    "settings that are none": lambda r: edited(r, settings=[1]),
    "a setting out of range": lambda r: edited(r, settings=r["settings"] | {"sparsity": 2.0}),
    "a setting of another version": lambda r: edited(r, settings=r["settings"] | {"depth": 3}),
    "another schedule": lambda r: edited(r, settings=r["settings"] | {"schedule": "full"}),
    "no status": lambda r: {k: v for k, v in r.items() if k != "status"},
    "an unknown status": lambda r: edited(r, status="done"),
    "finished without accuracy": lambda r: edited(r, test_accuracy=None),
    "an accuracy in percent": lambda r: edited(r, test_accuracy=93.5),
    "an accuracy as text": lambda r: edited(r, test_accuracy="0.9"),
    "a negative time": lambda r: edited(r, seconds=-1.0),
    "curves of two lengths": lambda r: edited(r, curves=r["curves"] | {"loss": [1.0]}),
    "more weights than there are": lambda r: edited(r, sparsity=r["sparsity"] | {"kept": 10**9}),
    "a matrix that is not square": lambda r: edited(
        r, layer_cka=r["layer_cka"] | {"matrix": [[1.0, 0.5]]}
    ),
    "a histogram without edges": lambda r: edited(r, weights={"histogram": {"counts": [1]}}),
    "another schema": lambda r: edited(r, schema=2),
    "a list": lambda r: [r],
}
TEXTS = {
    "no JSON": b'{"schema": 1',
    "NaN": b'{"schema": NaN}',
    "not UTF-8": '{"schema": "é"}'.encode("latin-1"),
    "too deep": b"[" * 100_000,
    "empty": b"",
}


@pytest.mark.parametrize("kind", [*BROKEN, *TEXTS])
def test_what_is_no_record_is_named_and_the_others_are_read(finished, tmp_path, kind):
    record, _ = finished
    text = TEXTS[kind] if kind in TEXTS else json.dumps(BROKEN[kind](record)).encode()
    good = edited(record, id=digits(seed=1).id, settings=digits(seed=1).to_dict())
    records.save(good, tmp_path)
    path = records.path_of(tmp_path, record["id"])
    path.write_bytes(text)
    with pytest.warns(RuntimeWarning, match=f"^left out: {path} is ") as caught:
        assert records.load_all(tmp_path) == [good]
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    with pytest.raises(ValueError, match=f"^{path} is "):
        records.load(tmp_path, record["id"])

    lines = tmp_path / "all.jsonl"
    lines.write_bytes(json.dumps(good).encode() + b"\n" + text + b"\n")
    if text:  # an empty line is none
        with pytest.raises(ValueError, match=r"^nothing is merged: .*all\.jsonl, line 2 is "):
            records.merge_lines(lines, tmp_path / "in" / "there")
        assert not (tmp_path / "in").exists()


def test_a_record_under_another_name_is_left_out(finished, tmp_path):
    path = records.save(finished[0], tmp_path)
    path.rename(path.with_name("copy.json"))
    with pytest.warns(RuntimeWarning, match="rename it to "):
        assert records.load_all(tmp_path) == []


def test_fields_that_analysis_alone_reads_may_be_missing(finished, tmp_path):
    record = finished[0]
    few = {n: record[n] for n in ("schema", "id", "settings", "status", "test_accuracy")}
    records.save(few, tmp_path)
    (found,) = records.load_all(tmp_path)
    with pytest.warns(RuntimeWarning, match=f"{record['id']} is left out: it has no curves"):
        assert analysis.write_all([found], tmp_path / "written") == [
            tmp_path / "written" / "tables" / "runs.md"
        ]


def test_the_first_of_two_lines_is_kept(finished, tmp_path):
    first = finished[0]
    second = edited(first, test_accuracy=0.0123)
    lines = tmp_path / "all.jsonl"
    lines.write_text("".join(json.dumps(r) + "\n" for r in (first, second, first)))
    with pytest.warns(RuntimeWarning, match=r"all\.jsonl, line 2 is another record") as caught:
        assert records.merge_lines(lines, tmp_path) == (1, 2)
    assert len(caught) == 1
    assert records.load(tmp_path, first["id"]) == first
    lines.write_text(json.dumps(second))
    assert records.merge_lines(lines, tmp_path) == (0, 1)
    assert records.load(tmp_path, first["id"]) == first


def test_merging_mends_a_damaged_record(finished, tmp_path):
    record = finished[0]
    path = records.save(record, tmp_path)
    records.export_lines(tmp_path, tmp_path / "all.jsonl")
    path.write_text("")
    with pytest.warns(RuntimeWarning, match="left out"):
        assert records.merge_lines(tmp_path / "all.jsonl", tmp_path) == (1, 0)
    assert records.load(tmp_path, record["id"]) == record


# ---- sweeps


def test_grid_leaves_complete_pairs_wherever_it_stops():
    cells = grid(Settings(), sparsities=[0.95, 0.998], betas=[0, 1e-4], seeds=[0, 1])
    assert len(cells) == 8
    for arm_a, arm_b in zip(cells[::2], cells[1::2], strict=True):
        assert arm_b.baseline() == arm_a
        assert arm_b.beta == 1e-4
    assert [cell.seed for cell in cells] == [0] * 4 + [1] * 4
    assert set(CKA_SR_FIELDS) < {item.name for item in dataclasses.fields(Settings)}


def test_grid_pairs_the_precisions_inside_an_arm():
    cells = grid(
        Settings(), sparsities=[0.95], betas=[0, 1e-4], seeds=[0, 1], precisions=["fp32", "bf16"]
    )
    assert len(cells) == 8
    assert [(cell.seed, cell.beta, cell.precision) for cell in cells[:4]] == [
        (0, 0.0, "fp32"),
        (0, 0.0, "bf16"),
        (0, 1e-4, "fp32"),
        (0, 1e-4, "bf16"),
    ]
    bf16 = Settings(precision="bf16")
    assert grid(bf16, sparsities=[0.95], betas=[0], seeds=[0])[0].precision == "bf16"


def test_pairs_of_orders_stay_together():
    """The runs of an A/A pair start side by side, like the arms of a comparison."""
    cells = grid(Settings(), sparsities=[0.95], betas=[0], seeds=[0, 1], order_seeds=[-1, 0])
    assert [(cell.seed, cell.order_seed) for cell in cells] == [(0, -1), (0, 0), (1, -1), (1, 0)]
    assert run_groups(cells) == [cells[:2], cells[2:]]
    reordered = Settings(order_seed=3)
    assert grid(reordered, sparsities=[0.9], betas=[0], seeds=[0])[0].order_seed == 3


def test_an_order_seed_leaves_weights_mask_and_split_as_they_are():
    def built(order_seed):
        settings = digits(epochs=1, order_seed=order_seed)
        engine = build_engine(settings, load("digits"), CPU)
        weights = {k: v.clone() for k, v in engine.context.model.state_dict().items()}
        for _ in engine.epochs():
            pass
        split_ = {"train": engine.batches.images, "validation": engine.validation.images}
        same = weights | split_ | {f"mask {k}": v for k, v in engine.state.masks.items()}
        return same, engine.batches.plan(0).order, engine.context.model.state_dict()

    (same, order, trained), (other, reordered, other_trained) = built(-1), built(0)
    assert same.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in same.items())
    assert not torch.equal(order, reordered)
    assert any(not torch.equal(value, other_trained[name]) for name, value in trained.items())
    with pytest.raises(ValueError, match=r"^setting order_seed = -2 must be"):
        digits(order_seed=-2)


def test_grid_reads_the_options_behind_a_method():
    """As a notebook's parameters can hold them; {sparsity} is the cell's own."""
    methods = ["dense", "lth levels=0.8,{sparsity} rewind=5", "random"]
    cells = grid(Settings(), sparsities=[0.95, 0.995], betas=[0], seeds=[0], methods=methods)
    assert [(c.method, c.sparsity, c.method_options) for c in cells] == [
        ("dense", 0.0, {}),
        ("lth", 0.95, {"levels": "0.8,0.95", "rewind": 5}),
        ("lth", 0.995, {"levels": "0.8,0.995", "rewind": 5}),
        ("random", 0.95, {}),
        ("random", 0.995, {}),
    ]
    one = {"sparsities": [0.9], "betas": [0], "seeds": [0]}
    base = Settings(method="lth", method_options={"rewind": 7})
    assert [c.method_options for c in grid(base, **one)] == [{"rewind": 7}]
    for wrong in ("lth rewind", "lth =5"):
        with pytest.raises(ValueError, match=f"{wrong!r}.* must be name=value"):
            grid(Settings(), methods=[wrong], **one)
    with pytest.raises(LookupError, match="no option 'rewnd'; nearest: rewind"):
        grid(Settings(), methods=["lth rewnd=5"], **one)
    with pytest.raises(LookupError, match="unknown method ''"):
        grid(Settings(), methods=[""], **one)


def test_sweep_runs_what_is_missing(finished, tmp_path):
    record, _ = finished
    records.save(record, tmp_path)
    cells = grid(digits(), sparsities=[0.9], betas=[0, 1e-3], seeds=[0])
    lines = tmp_path / "all.jsonl"
    outcome = sweep(cells, tmp_path, jobs=1, progress=lambda line: None, lines=lines)
    assert outcome.known == [record["id"]]
    assert outcome.done == [cells[0].id]
    assert outcome.left == []
    assert len(lines.read_text().splitlines()) == 2


def test_sweep_stays_inside_its_budget(finished, tmp_path):
    """Known costs: a cell that cannot end in time is not started. Unknown: it stops and resumes."""
    cells = grid(digits(epochs=4), sparsities=[0.9], betas=[0], seeds=[0])
    quiet = {"jobs": 1, "progress": lambda line: None}
    assert sweep(cells, tmp_path, minutes=0, **quiet).left == [cells[0].id]
    assert not (tmp_path / "checkpoints").exists()
    assert sweep(cells, tmp_path, minutes=1e-3 / 60, **quiet).left == [cells[0].id]
    assert (tmp_path / "checkpoints" / f"{cells[0].id}.pt").exists()
    assert sweep(cells, tmp_path, **quiet).done == [cells[0].id]

    slow = {**finished[0], "seconds": 300.0}
    records.save(slow, tmp_path / "known")
    assert sweep(cells, tmp_path / "known", minutes=1, **quiet).left == [cells[0].id]
    assert not (tmp_path / "known" / "checkpoints").exists()


@pytest.mark.parametrize("wrong", [{"minutes": math.nan}, {"minutes": -1.0}, {"jobs": -1}])
def test_sweep_refuses_a_budget_that_is_none(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}="):
        sweep([digits()], tmp_path / "results", **wrong)
    assert not (tmp_path / "results").exists()


def test_two_sweeps_on_one_folder_take_other_cells(tmp_path):
    """The other sweep runs one cell all the while, and finishes another before its turn comes."""
    taken, theirs, ours = (digits(epochs=1, seed=seed) for seed in (1, 2, 3))
    finished_there = run(theirs, tmp_path / "other", progress=None)
    said: list[str] = []

    def progress(line: str) -> None:
        said.append(line)
        if "cells to run" in line:
            records.save(finished_there, tmp_path)

    with claim(tmp_path / "checkpoints" / f"{taken.id}.lock"):
        outcome = sweep([taken, theirs, ours], tmp_path, jobs=1, progress=progress)
    assert (outcome.done, outcome.known, outcome.left) == ([ours.id], [theirs.id], [taken.id])
    assert any(line.startswith(f"{taken.id}: {taken.id} is being run by process ") for line in said)
    assert not list(tmp_path.rglob("*.lock"))
    assert sweep([taken], tmp_path, jobs=1, progress=said.append).done == [taken.id]


def test_a_run_that_another_process_finished_meanwhile_is_read(finished, tmp_path, monkeypatch):
    """Between our look for a record and our claim."""
    record, _ = finished

    @contextlib.contextmanager
    def late(path):
        records.save(record, tmp_path)
        yield

    monkeypatch.setattr(run_module, "claim", late)
    monkeypatch.setattr(run_module, "_train", None)
    assert run(digits(), tmp_path, progress=None) == record


def test_sweep_does_not_write_over_a_damaged_record(tmp_path):
    path = records.path_of(tmp_path, digits().id)
    path.parent.mkdir()
    path.write_text("somebody's notes")
    said: list[str] = []
    with pytest.warns(RuntimeWarning, match="left out"):
        outcome = sweep([digits()], tmp_path, jobs=1, progress=said.append)
    assert outcome.left == [digits().id]
    assert said[-1].startswith(f"{digits().id} is not run: {path} is no valid record; delete it")
    assert path.read_text() == "somebody's notes"


def test_plan_tells_what_a_sweep_would_do(finished, tmp_path):
    record, _ = finished
    records.save({**record, "seconds": 30.0}, tmp_path)  # of 3 epochs
    longer, other = digits(epochs=6), digits(model="resnet20")
    found = [(p.cell, p.known, p.seconds) for p in plan([digits(), longer, other], tmp_path)]
    assert found == [(digits(), True, 30.0), (longer, False, 60.0), (other, False, None)]


def test_commit_is_marked_where_any_part_of_the_package_differs(monkeypatch):
    asked = []

    def git(command, **options):
        asked.append(command[3:])
        return subprocess.CompletedProcess(command, 0, stdout=" M cka.py\n", stderr="")

    monkeypatch.delenv("CKASR_COMMIT", raising=False)
    monkeypatch.setattr(subprocess, "run", git)
    assert commit.__wrapped__().endswith("+")
    assert asked[0][0] == "status"
    assert Path(asked[0][-1]) == Path(ckasr.__file__).parent


def test_sweep_side_by_side_equals_one_by_one(tmp_path):
    cells = grid(digits(epochs=1), sparsities=[0.9], betas=[0, 1e-3], seeds=[1])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        sweep(cells, tmp_path / "one", jobs=1, progress=lambda line: None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert {r["threads"] for r in records.load_all(tmp_path / "one")} == {1}, "as side by side"
    said: list[str] = []
    claimed = digits(epochs=1, seed=9)  # by another process, for all that the workers know
    with claim(tmp_path / "two" / "checkpoints" / f"{claimed.id}.lock"):
        outcome = sweep([claimed, *cells], tmp_path / "two", jobs=2, progress=said.append)
    assert outcome.left == [claimed.id]
    assert any(line.startswith(f"{claimed.id}: ") for line in said)
    for cell in cells:
        one, two = (records.load(tmp_path / name, cell.id) for name in ("one", "two"))
        assert essence(one) == essence(two)
        assert any(line.startswith(f"{cell.id}  train epoch") for line in said)
