"""Grids and sweeps: their order, their budget, and cells that other processes train."""

import dataclasses
import math

import pytest
import torch
from digit_runs import CPU, digits, essence

from ckasr.data import load
from ckasr.experiments import CKA_SR_FIELDS, Settings, grid, plan, records, run, sweep
from ckasr.experiments.build import build_engine
from ckasr.experiments.sweeps import groups as run_groups
from ckasr.storage import claim


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


def test_sweep_does_not_write_over_a_damaged_record(tmp_path):
    path = records.path_of(tmp_path, digits().id)
    path.parent.mkdir()
    path.write_text("somebody's notes")
    said: list[str] = []
    with pytest.warns(RuntimeWarning, match="left out"):
        outcome = sweep([digits()], tmp_path, jobs=1, progress=said.append)
    assert outcome.left == [digits().id]
    assert said[-1].startswith(f"{digits().id} is not run: {path} is not a valid record; delete it")
    assert path.read_text() == "somebody's notes"


def test_plan_tells_what_a_sweep_would_do(finished, tmp_path):
    record, _ = finished
    records.save({**record, "seconds": 30.0}, tmp_path)  # of 3 epochs
    longer, other = digits(epochs=6), digits(model="resnet20")
    found = [(p.cell, p.known, p.seconds) for p in plan([digits(), longer, other], tmp_path)]
    assert found == [(digits(), True, 30.0), (longer, False, 60.0), (other, False, None)]


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
