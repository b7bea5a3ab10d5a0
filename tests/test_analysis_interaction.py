"""Interactions: right values by hand, and which runs form a factorial."""

import numpy as np
import pytest
from scipy import stats
from synthetic import record

from ckasr.analysis import (
    interaction_effects,
    interaction_studies,
    interactions,
    interactions_table,
    write_interactions,
)

HOST = {"dataset": "digits", "epochs": 4, "sparsity": 0.9}
# Accuracies of three seeds: neither, partner, term, both.
NEITHER = (0.50, 0.52, 0.54)
PARTNER = (0.55, 0.56, 0.57)
TERM = (0.51, 0.54, 0.57)  # minus neither: 0.01, 0.02, 0.03
BOTH = (0.60, 0.63, 0.62)  # minus partner: 0.05, 0.07, 0.05
INTERACTION = (0.04, 0.05, 0.02)


def factorial(partner: dict, *, off: dict | None = None, beta: float = 1e-4) -> list[dict]:
    arms = [(NEITHER, off or {}, 0.0), (TERM, off or {}, beta)]
    arms += [(PARTNER, partner, 0.0), (BOTH, partner, beta)]
    return [
        record(accuracy, seed=seed, beta=b, **{**HOST, **settings})
        for values, settings, b in arms
        for seed, accuracy in enumerate(values)
    ]


def test_the_interaction_is_the_difference_of_the_effects_paired_by_seed():
    (found,) = interactions(factorial({"dropout": 0.2}))
    assert found.label == "dropout 0.2"
    assert found.off.differences == pytest.approx((0.01, 0.02, 0.03))
    assert found.on.differences == pytest.approx((0.05, 0.07, 0.05))
    assert found.difference.differences == pytest.approx(INTERACTION)
    mean, error = np.mean(INTERACTION), stats.sem(INTERACTION)
    assert found.difference.mean == pytest.approx(mean)
    interval = stats.t.interval(0.95, 2, loc=mean, scale=error)
    assert found.difference.t_interval == pytest.approx(interval)
    assert found.difference.p == 2 / 2**3  # all three are positive
    assert interval[0] < 0 < interval[1]
    assert found.verdict == "no interaction shown"


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.10, "positive interaction"), (-0.20, "negative interaction")]
)
def test_verdicts(shift, verdict):
    runs = factorial({"dropout": 0.2})
    for run in runs:
        if run["settings"]["dropout"] and run["settings"]["beta"]:
            run["test_accuracy"] += shift
    (found,) = interactions(runs)
    assert found.verdict == verdict
    few = [run for run in runs if run["settings"]["seed"] < 2]
    assert interactions(few)[0].verdict == "undecided"
    for run in runs:
        run["test_accuracy"] /= 100  # 100 classes: chance is 1 %
    assert interactions(runs)[0].verdict == "not tested: accuracy is at chance"


@pytest.mark.parametrize(
    ("partner", "on", "off"),
    [
        ("HSIC", {"hsic": 1e-5}, {}),
        ("label smoothing", {"label_smoothing": 0.1}, {}),
        ("weight decay", {"weight_decay": 5e-4}, {"weight_decay": 0.0}),
        ("L1", {"method": "l1"}, {"method": "l1", "method_options": {"strength": 0.0}}),
        (
            "L0",
            {"method": "l0", "method_options": {"finetune": 0.5}},
            {"method": "l0", "method_options": {"finetune": 0.5, "dual_rate": 1e-9}},
        ),
    ],
)
def test_the_hosts_of_a_partner_are_found(partner, on, off):
    (found,) = interactions(factorial(on, off=off))
    assert found.partner.label == partner
    assert found.difference.differences == pytest.approx(INTERACTION)


def test_hosts_that_differ_in_anything_else_are_no_factorial():
    other = {"dropout": 0.2, "validation": 100}
    assert interactions(factorial(other)) == []
    assert interactions(factorial({"method": "l1"})) == []
    both = {"dropout": 0.2, "label_smoothing": 0.1}
    assert interactions(factorial(both)) == []
    assert interactions_table([]) == "There are no complete factorial designs yet.\n"


def test_a_seed_without_all_four_runs_is_left_out_and_named():
    runs = factorial({"dropout": 0.2})
    runs = [
        run
        for run in runs
        if not (run["settings"]["seed"] == 1 and run["settings"]["dropout"] == 0.0)
        or run["settings"]["beta"]
    ]
    (found,) = interactions(runs)
    assert found.difference.seeds == (0, 2)
    assert found.difference.differences == pytest.approx((0.04, 0.02))
    assert found.off.seeds == found.on.seeds == (0, 2)
    text = interactions_table([found])
    assert "- dropout 0.2: excluded seeds: " in text
    assert "without the partner, seed 1: no baseline" in text


def test_a_diverged_run_is_counted_as_lost():
    runs = factorial({"dropout": 0.2})
    runs[-1] = record(status="diverged", seed=2, beta=1e-4, **HOST, dropout=0.2)
    (found,) = interactions(runs)
    assert found.difference.seeds == (0, 1)
    assert len(found.difference.diverged) == 1
    assert found.verdict == "undecided"


def test_the_table_has_the_means_of_all_arms_and_holm_over_its_rows():
    runs = factorial({"dropout": 0.2})
    runs += [r for r in factorial({"label_smoothing": 0.1}) if r["settings"]["label_smoothing"]]
    text = interactions_table(interactions(runs))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith(("| dropout", "| label"))
    ]
    assert len(rows) == 2
    assert rows[0][:11] == [
        *("dropout", "0.2", "3", "52.00", "56.00", "54.00", "61.67"),
        *("+2.00", "+5.67", "+3.67"),
        "[-0.13, +7.46]",
    ]
    assert rows[0][11:13] == ["0.25", "0.5"]  # Holm: two rows


def test_the_weight_decay_of_the_recipe_does_not_make_a_study():
    """The common settings have the recipe's strength of every partner."""
    runs = factorial({"dropout": 0.2})
    runs += [
        r for r in factorial({}, off={"weight_decay": 0.0}) if not r["settings"]["weight_decay"]
    ]
    (study,) = interaction_studies(interactions(runs))
    assert [each.partner.label for each in study] == ["weight decay", "dropout"]
    assert "weight decay" not in study[0].title


def test_the_figure_shows_the_effects_and_the_interaction(tmp_path):
    found = interactions(factorial({"dropout": 0.2}))
    figure = interaction_effects(found)
    effects, difference = figure.axes
    means = [float(c.lines[0].get_xdata()[0]) for c in effects.containers]
    assert means == pytest.approx([2.0, 17 / 3])
    (only,) = difference.containers
    assert float(only.lines[0].get_xdata()[0]) == pytest.approx(11 / 3)
    written = write_interactions(factorial({"dropout": 0.2}), tmp_path)
    assert [path.suffix for path in written] == [".md", ".png", ".svg"]
    assert write_interactions([], tmp_path) == []
    with pytest.raises(ValueError, match="no interactions to draw"):
        interaction_effects([])
