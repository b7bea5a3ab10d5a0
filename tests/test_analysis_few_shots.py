"""Samples, interval and beta: who is compared, and what four ways of choosing one claim."""

import numpy as np
import pytest
from synthetic import pairs, record

from ckasr.analysis import (
    choices,
    few_shot_accuracies,
    few_shot_studies,
    selection_bias,
    write_few_shots,
)
from ckasr.analysis.few_shots import (
    SAME_TEST,
    SAME_VALIDATION,
    SINGLE_TEST,
    UNBIASED,
    expected_best,
    few_shots_table,
)

CELL = {"sparsity": 0.995, "epochs": 40}


def run(test, validation=None, **settings):
    """A record whose validation accuracy may differ from its test accuracy."""
    found = record(test, **{**CELL, **settings})
    return {**found, "validation_accuracy": test if validation is None else validation}


def study(table, **settings):
    """Runs of a baseline at 0.5 and of settings: samples -> (test, validation) of each seed."""
    seeds = range(len(next(iter(table.values()))))
    runs = [run(0.5, seed=seed, **settings) for seed in seeds]
    for samples, row in table.items():
        for seed, (test, validation) in enumerate(row):
            runs.append(run(test, validation, seed=seed, beta=1e-3, samples=samples, **settings))
    return runs


# On the test set 4 samples are best for seed 0, 16 for the others; validation says 8 throughout.
TABLE = {
    4: [(0.60, 0.1), (0.40, 0.1), (0.40, 0.1)],
    8: [(0.51, 0.9), (0.52, 0.9), (0.50, 0.9)],
    16: [(0.50, 0.2), (0.55, 0.2), (0.56, 0.2)],
}


def of(cell):
    return {choice.rule: choice.comparison for choice in choices(cell)}


class TestStudies:
    def test_a_study_has_more_than_one_number_of_samples_or_interval(self):
        assert few_shot_studies(pairs([0.5], [0.5], **CELL)) == []
        assert few_shot_studies([run(0.5), run(0.5, beta=1e-3), run(0.5, beta=1e-4)]) == []
        assert len(few_shot_studies([run(0.5, beta=1e-3), run(0.5, beta=1e-3, every=1)])) == 1
        assert len(few_shot_studies([run(0.5, beta=1e-3), run(0.5, beta=1e-3, samples=4)])) == 1

    def test_placebos_and_other_variants_are_not_settings_of_the_term(self):
        for other in ({"term": "shuffled"}, {"variant": "paper"}, {"pairs": "all"}):
            runs = [run(0.5, beta=1e-3), run(0.5, beta=1e-3, samples=4, **other)]
            assert few_shot_studies(runs) == [], other


class TestChoices:
    def test_four_ways_by_hand(self):
        (cell,) = few_shot_studies(study(TABLE))
        found = of(cell)
        assert found[UNBIASED].differences == pytest.approx((0.01, 0.02, 0.00))
        assert found[SAME_VALIDATION].differences == pytest.approx((0.01, 0.02, 0.00))
        assert found[SAME_TEST].differences == pytest.approx((0.00, 0.05, 0.06))
        assert found[SINGLE_TEST].differences == pytest.approx((0.10, 0.05, 0.06))
        assert selection_bias(cell) == pytest.approx(0.07 - 0.01)
        assert [choice.unbiased for choice in choices(cell)] == [True, False, False, False]

    def test_the_measured_seed_does_not_influence_the_choice(self):
        """Seed 0 prefers 4 samples, the others 16; each is measured by what the others prefer."""
        table = {
            4: [(0.7, 0.9), (0.4, 0.1), (0.4, 0.1)],
            16: [(0.5, 0.3), (0.5, 0.3), (0.5, 0.3)],
        }
        (cell,) = few_shot_studies(study(table))
        # For seed 0, the others: 0.1 against 0.3. For seeds 1 and 2: 0.5 against 0.3.
        assert of(cell)[UNBIASED].differences == pytest.approx((0.0, -0.1, -0.1))
        assert of(cell)[SAME_VALIDATION].differences == pytest.approx((0.2, -0.1, -0.1))

    def test_without_any_effect_the_best_single_run_gains_and_the_unbiased_choice_does_not(self):
        rng = np.random.default_rng(0)
        noise = rng.normal(0.5, 0.01, (12, 60, 2))
        settings = [(samples, beta) for samples in (4, 8, 16) for beta in (1e-4, 1e-3, 1e-2, 1e-1)]
        runs = [run(b, seed=seed) for seed, b in enumerate(rng.normal(0.5, 0.01, 60))]
        for (samples, beta), rows in zip(settings, noise, strict=True):
            for seed, (test, validation) in enumerate(rows):
                runs.append(run(test, validation, seed=seed, beta=beta, samples=samples))
        (cell,) = few_shot_studies(runs)
        found = of(cell)
        assert abs(found[UNBIASED].mean) < 0.005
        assert found[SINGLE_TEST].mean == pytest.approx(expected_best(0, 0.01, 12), abs=0.004)
        assert selection_bias(cell) > 0.01

    def test_a_seed_counts_only_with_every_run(self):
        runs = study(TABLE)
        runs = [r for r in runs if not (r["settings"]["seed"] == 2 and r["settings"]["beta"] == 0)]
        (cell,) = few_shot_studies(runs)
        assert of(cell)[UNBIASED].seeds == (0, 1)
        diverged = record(status="diverged", beta=1e-2, samples=4, seed=0, **CELL)
        (cell,) = few_shot_studies([*runs, diverged])
        assert choices(cell) == []
        assert selection_bias(cell) is None


@pytest.mark.parametrize(("count", "expected"), [(1, 0.0), (2, 0.5642), (12, 1.6292)])
def test_expected_best_of_normal_values(count, expected):
    """Against the table of normal order statistics (Harter 1961)."""
    assert expected_best(0, 1, count) == pytest.approx(expected, abs=1e-4)
    assert expected_best(84, 0.3, count) == pytest.approx(84 + 0.3 * expected, abs=1e-4)


class TestTable:
    def test_rows_choices_and_bias(self):
        text = few_shots_table(few_shot_studies(study(TABLE)))
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in text.splitlines()
            if line.startswith("| ")
        ]
        assert rows[1][:2] == ["baseline", "-"]
        assert [row[0] for row in rows[2:5]] == ["16", "8", "4"]
        assert rows[2][3:7] == ["20.00", "53.67", "3", "+3.67"]
        unbiased = next(row for row in rows if row[0] == UNBIASED)
        assert unbiased[1:4] == ["8 samples every 5 steps, beta 0.001", "3", "+1.00"]
        assert unbiased[-1] == "no difference shown"
        selected = next(row for row in rows if row[0] == SINGLE_TEST)
        assert selected[3] == "+7.00"
        assert selected[-1] == "none, because of the selection"
        assert "The selection bias is +6.00 points" in text
        assert "paper, %" not in text, "its table is of CIFAR-10"

    def test_the_papers_table_stands_beside_cifar10(self):
        text = few_shots_table(few_shot_studies(study(TABLE, dataset="cifar10")))
        row = next(line for line in text.splitlines() if line.startswith("| 16 "))
        assert [cell.strip() for cell in row.strip("|").split("|")][-2:] == ["84.40", "+0.24"]

    def test_the_papers_best_entry_is_weighed_against_its_own_scatter(self):
        text = few_shots_table(few_shot_studies(study(TABLE)))
        assert "has 60 settings, of which 1 collapsed" in text
        assert "the best of them, 85.03 %, is compared with one run of 84.16 %" in text

    def test_nothing_to_compare(self):
        assert few_shots_table([]).startswith("There are no runs")


class TestFigure:
    def test_panels_for_the_intervals_and_the_choices(self):
        runs = study(TABLE) + [run(0.53, beta=1e-3, samples=4, every=1, seed=s) for s in range(3)]
        (cell,) = few_shot_studies(runs)
        figure = few_shot_accuracies(cell)
        titles = [axis.get_title() for axis in figure.axes]
        assert titles == [
            "term at every step",
            "term at one of 5 steps",
            "one of 4 settings selected by",
        ]
        means = [float(c.lines[0].get_ydata()[0]) for c in figure.axes[1].containers]
        assert means == pytest.approx([-10 / 3, 1.0, 11 / 3])
        gains = [float(c.lines[0].get_xdata()[0]) for c in figure.axes[2].containers]
        assert gains == pytest.approx([1.0, 1.0, 11 / 3, 7.0])

    def test_files_are_written_for_studies_only(self, tmp_path):
        assert write_few_shots(pairs([0.5], [0.5], **CELL), tmp_path) == []
        written = write_few_shots(iter(study(TABLE)), tmp_path)
        assert written[0] == tmp_path / "tables" / "few_shots.md"
        assert [p.suffix for p in written] == [".md", ".png", ".svg"]
        before = [path.read_bytes() for path in written]
        assert write_few_shots(study(TABLE)[::-1], tmp_path) == written
        assert [path.read_bytes() for path in written] == before
