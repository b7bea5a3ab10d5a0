"""The check that reads run records: its verdict follows the records, and only those that count."""

from typing import Any

import numpy as np
import pytest
from synthetic import record

import theory
from ckasr.experiments.records import save
from theory import trained_networks
from theory.result import FALSE, HOLDS, INCONCLUSIVE, Result
from theory.trained_networks import change, found, one_sided, units

BETAS = (0.0, 1e-4, 1e-3)


def grid(
    cka: float = -0.03, near: float = 0.03, norm: float = -0.3, seeds: int = 5, **settings: Any
) -> list[dict[str, Any]]:
    """Records at four sparsities, whose measures move by so much a step of beta, and noise."""
    rng = np.random.default_rng(0)
    records = []
    for seed in range(seeds):
        for sparsity in (0.95, 0.98, 0.995, 0.998):
            shared = rng.normal(0, 0.05, 3)  # of the seed: cancels in the pair
            for step, beta in enumerate(BETAS):
                run = record(beta=beta, seed=seed, sparsity=sparsity, **{"epochs": 160} | settings)
                noise = shared + rng.normal(0, 0.005, 3)
                similar = 0.5 + cka * step + noise[0]
                run["layer_cka"]["matrix"] = [[1.0, similar], [similar, 1.0]]
                run["weights"]["fraction_below_1e-2"] = 0.3 + near * step + noise[1]
                run["weights"]["frobenius_norm"] = 10 + norm * step + noise[2]
                records.append(run)
    return records


def verdict(records: list[dict[str, Any]], **overrides: Any) -> Result:
    return theory.run("trained_networks", records=records, **overrides)


def test_all_as_the_paper_says():
    v = verdict(grid())
    assert (v.verdict, v.consequence) == (HOLDS, "supports"), v.reason
    assert all(c.value < 1e-4 for c in v.conditions if c.p)


@pytest.mark.parametrize(
    ("effect", "name"),
    [({"cka": 0.03}, "layer CKA rises"), ({"near": -0.03}, "share below 1e-2 falls"),
     ({"norm": 0.3}, "||W||_F rises")],
)  # fmt: skip
def test_one_measure_that_moves_against_the_paper_is_a_counterexample(effect, name):
    v = verdict(grid(**effect))
    assert (v.verdict, v.consequence) == (FALSE, "refutes")
    assert v.reason == f"against the paper, in 20 units: {name}"


@pytest.mark.parametrize("effect", ["cka", "near", "norm"])
def test_a_measure_that_does_not_move_leaves_it_open(effect):
    v = verdict(grid(**{effect: 0.0}))
    assert (v.verdict, v.consequence) == (INCONCLUSIVE, "open")
    assert len(v.failing) == 1


def test_a_wrong_formula_changes_the_verdict():
    upside_down = {
        name: lambda run, measure=measure: -measure(run)
        for name, measure in trained_networks.MEASURES.items()
        if name in trained_networks.CLAIMED
    }
    assert verdict(grid(), measures=upside_down).verdict == FALSE
    claimed = {name: -sign for name, sign in trained_networks.CLAIMED.items()}
    assert verdict(grid(), claimed=claimed).verdict == FALSE
    blind = dict.fromkeys(trained_networks.CLAIMED, lambda run: 1.0)
    assert verdict(grid(), measures=blind).verdict == INCONCLUSIVE


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([], id="none"),
        pytest.param(grid(seeds=3), id="12 units"),
        pytest.param(grid(epochs=6), id="short schedule"),
        pytest.param([r for r in grid() if r["settings"]["beta"]], id="no baseline"),
        pytest.param([r | {"status": "diverged"} for r in grid()], id="diverged"),
        pytest.param([r | {"weights": {}} for r in grid()], id="no weights"),
        pytest.param([r | {"device": str(r["settings"]["beta"])} for r in grid()], id="devices"),
    ],
)
def test_too_few_records_that_count_are_inconclusive(records):
    v = verdict(records)
    assert (v.verdict, v.consequence) == (INCONCLUSIVE, "open")
    assert "units of run records" in v.reason
    assert (trained_networks.figure(v) is None) == (v.figure["units"] == 0)


def test_verdict_updates_by_itself_as_records_come(tmp_path, monkeypatch):
    monkeypatch.setattr(trained_networks, "RESULTS", tmp_path)
    assert theory.run("trained_networks").verdict == INCONCLUSIVE
    for run in grid():
        save(run, tmp_path / "gpu")
    v = theory.run("trained_networks")
    assert v.verdict == HOLDS
    save(grid()[0], tmp_path / "copy")
    assert len(found(tmp_path)) == 60
    figure = trained_networks.figure(Result.from_json(v.to_json()))
    assert figure.axes[0].get_title().startswith("20 units")


def test_a_unit_is_a_baseline_with_all_that_is_compared_to_it():
    runs = grid(seeds=1) + [
        r for r in grid(seeds=1, samples=16) if r["settings"]["beta"]
    ]  # two terms share a baseline: one unit, two chains
    found_units = units(runs)
    assert len(found_units) == 4
    for unit in found_units:
        assert len(unit) == 2
        for chain in unit:
            assert [run["settings"]["beta"] for run in chain] == list(BETAS)
            assert len({run["settings"]["sparsity"] for run in chain}) == 1
        assert unit[0][0] is unit[1][0]


def test_change_and_its_test_by_hand():
    assert change([[1.0, 2.0, 4.0]]) == pytest.approx((1 + 3 + 2) / 3)
    assert change([[1.0, 2.0], [1.0, 4.0]]) == 2
    assert one_sided([1.0, 2.0, 3.0, 4.0, 5.0], 1) == pytest.approx(2**-5)
    assert one_sided([1.0, 2.0, 3.0, 4.0, 5.0], -1) == 1
    assert one_sided([0.0, 0.0], 1) == 1
