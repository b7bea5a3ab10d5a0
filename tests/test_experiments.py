"""Settings, runs, records and sweeps, on real digits (and, where it is at hand, on CIFAR-100)."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ckasr
from ckasr import methods
from ckasr.data import load
from ckasr.experiments import CKA_SR_FIELDS, OutOfTime, Settings, grid, records, run, sweep
from ckasr.experiments import run as run_function
from ckasr.experiments.run import _build
from ckasr.methods import create

run_module = sys.modules[run_function.__module__]
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
    monkeypatch.setattr(run_module, "_build", None)
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
        engine, _ = _build(settings, create("random"), load("digits"), torch.device("cpu"))
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
        engine, _ = _build(
            digits(beta=beta, seed=4), create("random"), load("digits"), torch.device("cpu")
        )
        initial.append([p.clone() for p in engine.context.model.parameters()])
        next(engine.epochs())
        masks.append(dict(engine.context.masks))
        batches.append(list(engine.batches.epoch(0)))
    torch.testing.assert_close(initial[0], initial[1], rtol=0, atol=0)
    torch.testing.assert_close(batches[0], batches[1], rtol=0, atol=0)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_masks_hold_weights_and_momentum():
    engine, _ = _build(digits(), create("random"), load("digits"), torch.device("cpu"))
    for _ in engine.epochs():
        pass
    optimizer = engine.context.optimizer
    for name, parameter in engine.context.model.named_parameters():
        if name in engine.context.masks:
            outside = ~engine.context.masks[name]
            assert (parameter[outside] == 0).all()
            assert (optimizer.state[parameter]["momentum_buffer"][outside] == 0).all()


def test_measuring_the_gradient_ratio_changes_nothing():
    """The step that takes the two gradients apart ends with the same sum."""
    weights = []
    for measure in (True, False):
        engine, _ = _build(
            digits(beta=0.05, every=1), create("random"), load("digits"), torch.device("cpu")
        )
        engine.context.model.double()
        engine.batches.dtype = torch.float64
        start = run_module.Engine._epoch

        def epoch(self, index, phase, number, step, measure=measure, start=start):
            begin = step.start_epoch

            def start_epoch() -> None:
                begin()
                if not measure:
                    step.gradient_ratio = torch.zeros(())

            step.start_epoch = start_epoch
            return start(self, index, phase, number, step)

        engine._epoch = epoch.__get__(engine)
        engine.validation = None
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
    assert [name for name, _ in reads] == ["test_images", "test_labels"]
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
    other = {**record, "id": "0" * 12}
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


def test_commit_is_marked_where_any_part_of_the_package_differs(monkeypatch):
    asked = []

    def git(command, **options):
        asked.append(command[3:])
        return subprocess.CompletedProcess(command, 0, stdout=" M cka.py\n", stderr="")

    monkeypatch.delenv("CKASR_COMMIT", raising=False)
    monkeypatch.setattr(run_module.subprocess, "run", git)
    assert run_module._commit.__wrapped__().endswith("+")
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
    sweep(cells, tmp_path / "two", jobs=2, progress=said.append)
    for cell in cells:
        one, two = (records.load(tmp_path / name, cell.id) for name in ("one", "two"))
        assert essence(one) == essence(two)
        assert any(line.startswith(f"{cell.id}  train epoch") for line in said)
