"""Runs side by side in one process, and whether a run fits into memory."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ckasr import devices, models
from ckasr.experiments import Settings, run, sweep
from ckasr.experiments.pools import Interleaved
from ckasr.training import memory

VOLATILE = {"seconds", "started", "peak_memory_bytes", "curves", "runs_in_process"}


def cell(**changes: object) -> Settings:
    values = {
        "dataset": "digits",
        "model": "resmlp",
        "sparsity": 0.9,
        "epochs": 2,
        "validation": 200,
    }
    return Settings(**values | changes)


CELLS = [
    cell(beta=0.05, every=3),
    cell(method="l0"),  # draws from the global generator in every step
    cell(method="lth", method_options={"levels": "0.9"}),
    cell(seed=1),
]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the runs of a pool have it on a CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("steps", [0, 3], ids=["epochs", "steps"])
def test_interleaved_runs_end_as_each_does_alone(tmp_path: Path, monkeypatch, steps):
    monkeypatch.setattr(devices.Device, "interleaved_steps", steps)
    lines: list[str] = []
    records = {}
    with Interleaved(3, tmp_path / "turns", "cpu", None, lines.append) as pool:
        for settings in CELLS:
            pool.start(settings, float("inf"))
        while pool.running:
            records |= {settings.id: record for settings, record in pool.ended()}
    for settings in CELLS:
        alone = run(settings, tmp_path / "alone", device="cpu", progress=None)
        found = records[settings.id]
        assert {k: v for k, v in found.items() if k not in VOLATILE} == {
            k: v for k, v in alone.items() if k not in VOLATILE
        }
        assert found["curves"]["loss"] == alone["curves"]["loss"]
        assert (found["runs_in_process"], alone["runs_in_process"]) == (3, 1)
    # They did take turns, and each line says whose it is.
    ids = [line.split()[0] for line in lines if " epoch " in line]
    assert ids[:4] == [settings.id for settings in CELLS]


def test_a_gpu_run_has_a_stream_of_its_own_device(monkeypatch):
    """Of cuda:1, too: a graph captured on another device's stream would be empty."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: device)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.find("cuda:1").stream() == torch.device("cuda:1")


def test_the_flags_of_a_gpu_training_are_set_by_name_and_by_nothing_else(monkeypatch):
    gpu = devices.GPU(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: device)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    gpu.stream()
    assert torch.backends.cudnn.allow_tf32
    gpu.set_process_flags()
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.benchmark
    for precision, allowed in (("tf32", True), ("fp32", False), ("tf32", True), ("bf16", False)):
        gpu.set_precision(precision)
        assert torch.backends.cudnn.allow_tf32 == allowed


def test_a_device_without_a_backend_is_refused():
    with pytest.raises(ValueError, match="device meta is not supported: use cpu or cuda"):
        devices.of(torch.empty(0, device="meta"))


def test_a_run_past_its_deadline_stops_and_the_others_go_on(tmp_path: Path):
    late, calm = cell(), cell(seed=1)
    with Interleaved(2, tmp_path, "cpu", None, lambda line: None) as pool:
        pool.start(late, time.monotonic())
        pool.start(calm, float("inf"))
        ended = []
        while pool.running:
            ended += pool.ended()
    assert [(settings.id, record is None) for settings, record in ended] == [
        (late.id, True),
        (calm.id, False),
    ]
    assert (tmp_path / "checkpoints" / f"{late.id}.pt").exists()
    assert sweep([late, calm], tmp_path, jobs=1, progress=lambda line: None).left == []


def test_an_error_in_one_run_ends_them_all(tmp_path: Path):
    with Interleaved(2, tmp_path, "cpu", None, lambda line: None) as pool:
        pool.start(cell(beta=0.1), float("inf"))
        pool.start(cell(method="magnitude", sparsity=0.9999999), float("inf"))
        with pytest.raises(ValueError, match="leaves none"):
            pool.ended()


@pytest.mark.parametrize("name", ["resnet20", "lenet300", "resmlp"])
def test_memory_counts_what_backward_keeps(name):
    """Against the same count on real tensors, storage by storage."""
    model = models.create(name, num_classes=10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    parameters = 4 * sum(p.numel() for p in model.parameters())
    found = memory.least_bytes(model, torch.empty(6, 3, 32, 32))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(torch.zeros(6, 3, 32, 32))
    assert output.requires_grad
    real = sum(storage.nbytes() for storage in kept.values())
    assert found - memory.COPIES * parameters == pytest.approx(real, rel=0.05)
    less = memory.least_bytes(model, torch.empty(6, 3, 32, 32), "bf16")
    assert less < found


def test_a_run_that_cannot_fit_says_so_before_it_starts(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(devices.Device, "free_memory", lambda self: 10_000_000)
    with pytest.raises(ValueError, match=r"a step on 128 samples needs at least .* smaller batch"):
        run(cell(model="resnet20"), tmp_path, device="cpu", progress=None)
    assert not list(tmp_path.rglob("*"))
    monkeypatch.setattr(devices.Device, "free_memory", lambda self: None)  # no system that tells
    assert run(cell(epochs=1), tmp_path, device="cpu", progress=None)["status"] == "finished"


def test_free_memory_is_read_from_the_system():
    free = devices.find("cpu").free_memory()
    assert free is None or 1e6 < free < 1e14


@pytest.mark.gpu
def test_streams_of_one_process_end_within_the_spread_of_the_device(tmp_path: Path):
    cells = [cell(model="resnet20", seed=seed, beta=0.05, every=2) for seed in range(3)]
    records = {}
    with Interleaved(3, tmp_path / "turns", "cuda", None, lambda line: None) as pool:
        for settings in cells:
            pool.start(settings, float("inf"))
        while pool.running:
            records |= {settings.id: record for settings, record in pool.ended()}
    for settings in cells:
        alone, again = (
            run(settings, tmp_path / name, device="cuda", progress=None)["curves"]["loss"]
            for name in ("alone", "again")
        )
        spread = max(abs(a - b) for a, b in zip(alone, again, strict=True))
        found = records[settings.id]["curves"]["loss"]
        difference = max(abs(a - b) for a, b in zip(found, alone, strict=True))
        assert difference <= max(5 * spread, 1e-3)
