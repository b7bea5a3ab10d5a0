"""Runs on real digits (and, where it is at hand, on CIFAR-100): record, resumption, errors."""

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
from digit_runs import CPU, digits, essence

import ckasr
from ckasr.data import load
from ckasr.experiments import OutOfTime, Settings, records, run, sweep
from ckasr.experiments import run as run_function
from ckasr.experiments.build import build_engine
from ckasr.experiments.provenance import commit
from ckasr.training import Engine

run_module = sys.modules[run_function.__module__]


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


def test_several_processes_of_torchrun_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun started 2: start it without torchrun"):
        run(Settings(dataset="digits", epochs=1, validation=0), tmp_path, progress=None)
    assert not list(tmp_path.iterdir())
