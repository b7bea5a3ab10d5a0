"""The engine under sparse execution: same results, recorded, resumed bit for bit."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckasr import devices
from ckasr.analysis.statistics import compare
from ckasr.data import load
from ckasr.experiments import Settings, run, sweep
from ckasr.experiments.build import build_engine
from ckasr.experiments.pools import Interleaved
from ckasr.experiments.records import load_all
from ckasr.experiments.runs import OutOfTime
from ckasr.experiments.sweeps import groups
from ckasr.training import Engine

pytest.importorskip("numba")


def cell(**changes: object) -> Settings:
    values = {
        "dataset": "digits",
        "model": "resnet20",
        "sparsity": 0.98,
        "epochs": 2,
        "learning_rate": 0.01,
        "validation": 200,
    }
    return Settings(**values | changes)


def trained(settings: Settings, execution: str) -> Engine:
    engine = build_engine(settings, load("digits"), devices.find("cpu"), execution)
    for _ in engine.epochs():
        pass
    return engine


def test_both_executions_train_the_same_network(tmp_path: Path):
    # A small rate: at large ones, two roundings of one computation part within a few steps.
    settings = cell(beta=1e-3, learning_rate=1e-3)
    dense, sparse = (
        run(settings, tmp_path / kind, device="cpu", progress=None, execution=kind)
        for kind in ("dense", "sparse")
    )
    assert (dense["execution"], sparse["execution"]) == ("dense", "sparse")
    assert sparse["id"] == dense["id"]
    for name in ("loss", "term", "gradient_ratio"):
        # Rounding alone tells them apart, and grows from step to step: the first epoch only.
        assert sparse["curves"][name][0] == pytest.approx(dense["curves"][name][0], rel=1e-3), name
    assert sparse["test_accuracy"] == pytest.approx(dense["test_accuracy"], abs=0.03)
    assert sparse["sparsity"] == dense["sparsity"]


def test_the_choice_of_auto_is_printed_and_recorded(tmp_path: Path):
    lines: list[str] = []
    record = run(cell(epochs=1), tmp_path, device="cpu", progress=lines.append)
    assert record["execution"] == "sparse"
    assert any("sparse execution (density 0.02" in line for line in lines)
    levels = cell(epochs=1, method="lth", method_options={"levels": "0.5,0.98"})
    record = run(levels, tmp_path, device="cpu", progress=None)
    assert record["execution"] == "level 0 dense, level 1 dense, level 2 sparse"
    assert record["curves"]["execution"] == ["dense", "dense", "sparse"]


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path):
    settings = cell(beta=1e-3, epochs=3)
    whole = run(settings, tmp_path / "whole", device="cpu", progress=None)
    for _ in range(4):
        try:
            parts = run(
                settings, tmp_path / "parts", device="cpu", progress=None, deadline=time.monotonic()
            )
        except OutOfTime:
            continue
    assert parts["execution"] == "sparse"
    for name in ("loss", "term", "validation_accuracy"):
        assert parts["curves"][name] == whole["curves"][name], name
    assert parts["test_accuracy"] == whole["test_accuracy"]


@pytest.mark.parametrize(
    ("method", "options"),
    [("rigl", {"every": 4}), ("set", {"every": 4}), ("gmp", {"every": 3})],
)
def test_methods_that_change_masks_act_as_in_dense_execution(method, options):
    """Rounding may tip a few choices; a gradient of zeros, or masks of before, would tip most."""
    settings = cell(method=method, method_options=options, sparsity=0.9)
    dense, sparse = (trained(settings, execution) for execution in ("dense", "sparse"))
    kept = {name: int(mask.sum()) for name, mask in dense.state.masks.items()}
    assert {name: int(mask.sum()) for name, mask in sparse.state.masks.items()} == kept
    both = sum(
        int((mask & sparse.state.masks[name]).sum()) for name, mask in dense.state.masks.items()
    )
    assert both > 0.85 * sum(kept.values())
    for name, p in sparse.context.model.named_parameters():
        if name in sparse.state.masks:
            assert not p[~sparse.state.masks[name]].any()


def test_arms_of_a_group_start_together_and_share_their_execution(tmp_path: Path, monkeypatch):
    # In this process: new ones would spend a minute on imports. Few samples: the order counts.
    monkeypatch.setattr("ckasr.experiments.sweeps.pool_of", Interleaved)
    small = {"epochs": 1, "validation": 1000}
    cells = [cell(**small, seed=s, beta=b) for b in (0.0, 1e-3) for s in (0, 1)]
    assert [[(c.seed, c.beta) for c in group] for group in groups(cells)] == [
        [(0, 0.0), (0, 1e-3)],
        [(1, 0.0), (1, 1e-3)],
    ]
    lines: list[str] = []
    outcome = sweep(cells, tmp_path, jobs=2, device="cpu", progress=lines.append)
    assert len(outcome.done) == 4
    begun = [line.split()[0] for line in lines if "sparsity 0.98" in line]
    assert set(begun[:2]) == {cells[0].id, cells[2].id}
    assert [record["execution"] for record in load_all(tmp_path)] == ["sparse"] * 4
    with pytest.raises(ValueError, match="unknown execution 'quick'"):
        sweep(cells, tmp_path, execution="quick")


def test_arms_of_different_executions_do_not_form_a_pair(tmp_path: Path):
    from ckasr.analysis.cells import cells as sorted_cells

    records = []
    for seed in range(3):
        for beta in (0.0, 1e-3):
            execution = "dense" if seed == 0 and beta else "sparse"
            settings = cell(epochs=1, seed=seed, beta=beta)
            records.append(
                run(settings, tmp_path, device="cpu", progress=None, execution=execution)
            )
    (found,) = sorted_cells(records)
    comparison = compare(found, next(arm for arm in found.arms if arm.beta))
    assert comparison.n == 2
    assert any("seed 0: dense and sparse execution" in text for text in comparison.incomplete)


HASHES = """
import hashlib, sys
import torch
from ckasr import models, sparse_execution
from ckasr.sparsity import layer_densities, prunable, random_masks
torch.manual_seed(0)
model = models.create("resnet20", num_classes=10, input_shape=(1, 8, 8))
shapes = {name: tuple(weight.shape) for name, weight in prunable(model).items()}
masks = random_masks(shapes, layer_densities(shapes, 0.05, "erk"), 0)
with sparse_execution(model, masks):
    model(torch.randn(16, 1, 8, 8)).square().mean().backward()
numbers = torch.cat([p.grad.flatten() for p in model.parameters()]).numpy()
print(hashlib.sha256(numbers.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_a_process_that_compiles_the_kernels_rounds_as_one_that_loads_them(tmp_path):
    found = []
    for _ in range(2):
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", HASHES]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.append((done.stdout, "compiling" in done.stderr))
    (first, compiled), (second, compiled_again) = found
    assert compiled
    assert not compiled_again
    assert first == second
