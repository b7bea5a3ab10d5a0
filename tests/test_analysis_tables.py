"""Tables: every number in its place, nothing mixed, verdicts by the stated rule."""

import math

import numpy as np
import pytest
from synthetic import pairs, record, study

from ckasr.analysis.cells import BASELINE, Arm
from ckasr.analysis.paper import PUBLISHED, deviations, lookup, paper_difference
from ckasr.analysis.statistics import paired_differences
from ckasr.analysis.tables import COLUMNS, runs_table
from ckasr.analysis.verdict import verdict_of

OFFICIAL = Arm(1e-4, "official", 8, 5, "")
ERK20 = {"model": "resnet20", "method": "random", "distribution": "erk"}


def rows(text: str) -> list[dict[str, str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    header = None
    found = []
    for line in lines:
        row = [part.strip() for part in line.strip("|").split("|")]
        if row[0] == COLUMNS[0]:
            header = row
        else:
            found.append(dict(zip(header, row, strict=True)))
    return found


class TestRunsTable:
    def test_a_table_by_hand(self):
        runs = pairs([0.470, 0.472, 0.474], [0.480, 0.483, 0.486], sparsity=0.95)
        baseline, treated = rows(runs_table(runs))
        assert baseline == {
            "sparsity": "95 %",
            "arm": "baseline",
            "test accuracy, % ± sd (n)": "47.20 ± 0.20 (3)",
            "effective sparsity": "97.50 %",
            "dead classes": "3 of 100",
            "paper, %": "47.27",
            **dict.fromkeys(COLUMNS[5:9], "-"),
            "paper's difference": "-",
            "verdict": "-",
        }
        assert treated["test accuracy, % ± sd (n)"] == "48.30 ± 0.30 (3)"
        assert treated["difference, points"] == "+1.10"
        assert treated["95 % interval"] == "[+0.85, +1.35]"  # 4.303 * 0.1 / sqrt(3)
        assert treated["p"] == treated["Holm p"] == "0.25"
        assert treated["paper, %"] == "48.26"
        assert treated["paper's difference"] == "+0.99 (inside)"
        assert treated["verdict"] == "reproduced"
        assert list(treated) == list(COLUMNS)

    def test_schedules_have_tables_of_their_own(self):
        text = runs_table(study(2) + study(2, epochs=30))
        full, short = text.split("### ")[1:]
        assert "160 epochs" in full.splitlines()[0]
        assert "30 epochs" in short.splitlines()[0]
        assert len(rows(full)) == len(rows(short)) == 8 + 2  # the claims
        assert "our recipe differs: 30 epochs (paper: 160), " in short
        assert "our recipe differs: 5000 validation images (paper: 0)" in full

    def test_holm_correction_covers_one_table(self):
        runs = study(5) + study(5, epochs=30)
        for table in runs_table(runs).split("### ")[1:]:
            treated = [row for row in rows(table) if row["p"] != "-"]
            least = min(treated, key=lambda row: float(row["p"]))
            assert float(least["Holm p"]) == pytest.approx(min(1, 4 * float(least["p"])))

    def test_excluded_runs_and_pairs_are_listed(self):
        runs = pairs([0.5, 0.6, 0.5], [0.5, 0.7], sparsity=0.95)
        runs += [record(status="diverged", sparsity=0.95, beta=1e-4, seed=2)]
        runs += [record(0.5, sparsity=0.95, beta=1e-4, seed=3)]
        text = runs_table(runs)
        assert "95 % CKA-SR, β = 1e-4: diverged and excluded from the mean: seed 2" in text
        assert "excluded pairs with a diverged run: seed 2: CKA-SR, β = 1e-4" in text
        assert "excluded incomplete pairs: seed 3: no baseline" in text
        assert rows(text)[1]["test accuracy, % ± sd (n)"].endswith("(3)")
        assert rows(text)[1]["verdict"] == "undecided"

    def test_a_cell_without_a_finished_run(self):
        (row,) = rows(runs_table([record(status="diverged")]))
        assert row["test accuracy, % ± sd (n)"] == "- (0)"

    def test_smallest_possible_p_is_stated(self):
        assert "With 5 pairs, p of the sign-flip test is at least 0.0625" in runs_table(study(5))

    def test_columns_without_a_value_are_left_out(self):
        (row,) = rows(runs_table([record(0.5, sparsity=0.5)]))
        assert list(row) == list(COLUMNS[:5])

    def test_no_records(self):
        assert runs_table([]) == "There are no records yet.\n"


def judged(differences, lost=0, **settings) -> str:
    """The verdict on pairs with these differences, in points, and `lost` diverged ones."""
    treated = [0.5 + points / 100 for points in differences]
    runs = pairs([0.5] * len(treated), treated, **settings)
    arm = {"beta": runs[-1]["settings"]["beta"], **settings}
    runs += [record(status="diverged", seed=100 + i, **arm) for i in range(lost)]
    (found,) = paired_differences(runs)
    return verdict_of(found)


class TestVerdict:
    # The paper's gain at 0.95 is 0.99 points; with n equal steps around it the half width of the t
    # interval is known: for (-d, 0, d) it is 4.303 d / sqrt(3).
    @pytest.mark.parametrize(
        ("center", "step", "word"),
        [
            (0.90, 0.10, "reproduced"),  # [0.65, 1.15]
            (2.00, 0.10, "reproduced"),  # [1.75, 2.25]
            (0.40, 0.10, "positive, smaller than the paper's"),  # [0.15, 0.65]
            (0.10, 0.10, "not reproduced"),  # [-0.15, 0.35]
            (-2.0, 0.10, "not reproduced"),  # [-2.25, -1.75]
            (0.50, 0.50, "undecided"),  # [-0.74, 1.74]
        ],
    )
    def test_where_the_paper_has_a_gain(self, center, step, word):
        assert judged([center - step, center, center + step], sparsity=0.95) == word

    @pytest.mark.parametrize(
        "other",
        [
            {"sparsity": 0.995},  # no number
            {"sparsity": 0.95, "beta": 1e-3},
            {"sparsity": 0.95, "epochs": 30},  # a short schedule
            {"sparsity": 0.95, "dataset": "cifar10", "beta": 2e-4},  # the paper's is a loss
        ],
    )
    @pytest.mark.parametrize(
        ("center", "word"),
        [(0.9, "positive"), (-0.9, "negative"), (0.1, "no difference shown")],
    )
    def test_where_the_paper_has_no_gain(self, other, center, word):
        assert judged([center - 0.1, center, center + 0.1], **other) == word

    def test_too_little_to_decide(self):
        assert judged([1.0, 1.1], sparsity=0.95) == "undecided"
        assert judged([1.0, 1.0, 1.0], sparsity=0.95) == "undecided"

    def test_more_than_one_diverged_pair_in_five(self):
        assert judged([0.8, 0.9, 1.0, 0.9], lost=1, sparsity=0.95) == "reproduced"
        assert judged([0.8, 0.9, 1.0], lost=1, sparsity=0.95) == "undecided"

    def test_the_rule_is_printed_under_the_tables(self):
        words = ("reproduced", "smaller than the paper's", "not reproduced", "undecided")
        assert all(word in runs_table(study(2)) for word in words)


class TestPaper:
    def test_transcription_against_what_is_known_of_the_grid(self):
        grid = [p.percent for p in PUBLISHED if p.dataset == "cifar10" and p.variant == "official"]
        assert len(grid) == 60
        assert max(grid) == 85.03
        grid.remove(76.08)
        assert np.mean(grid) == pytest.approx(84.41, abs=0.005)
        assert np.std(grid, ddof=1) == pytest.approx(0.28, abs=0.005)

    @pytest.mark.parametrize(
        ("settings", "arm", "percent"),
        [
            ({"dataset": "cifar100", "sparsity": 0.998}, BASELINE, 2.95),
            ({"dataset": "cifar100", "sparsity": 0.998}, OFFICIAL, 3.32),
            ({"dataset": "cifar100", "sparsity": 0.98}, Arm(0.1, "aug", 0, 1, ""), 34.60),
            ({"dataset": "cifar10", "sparsity": 0.95}, BASELINE, 84.16),
            ({"dataset": "cifar10", "sparsity": 0.95}, Arm(8e-4, "official", 0, 1, ""), 85.03),
            ({"dataset": "cifar10", "sparsity": 0.95}, Arm(1e-2, "official", 4, 5, ""), 76.08),
            ({"dataset": "cifar10", "sparsity": 0.95}, Arm(2e-3, "official", 8, 10, ""), 84.59),
        ],
    )
    def test_numbers_are_found_for_their_own_setting(self, settings, arm, percent):
        found = lookup(ERK20 | settings, arm)
        assert found.percent == percent
        assert found.accuracy == pytest.approx(percent / 100)

    @pytest.mark.parametrize(
        ("changed", "arm"),
        [
            ({"sparsity": 0.995}, BASELINE),
            ({"model": "resnet32"}, BASELINE),
            ({"method": "snip"}, BASELINE),
            ({"distribution": "uniform"}, BASELINE),
            ({"dataset": "cifar10"}, OFFICIAL),  # has .95 only
            ({}, Arm(1e-3, "official", 8, 5, "")),
            ({}, Arm(1e-4, "paper", 8, 5, "")),
            ({}, Arm(1e-4, "official", 16, 5, "")),
            ({}, Arm(1e-4, "official", 8, 5, "all")),
        ],
    )
    def test_a_published_number_is_not_used_for_other_settings(self, changed, arm):
        cell = ERK20 | {"dataset": "cifar100", "sparsity": 0.998} | changed
        assert lookup(cell, arm) is None

    def test_differences_and_recipes(self):
        cell = record(sparsity=0.95, epochs=30, precision="fp32")["settings"]
        assert paper_difference(cell, OFFICIAL) == pytest.approx(0.0099)
        assert paper_difference(cell, BASELINE) is None
        assert deviations(cell) == [
            "30 epochs (paper: 160)",
            "5000 validation images (paper: 0)",
        ]
        exact = record(sparsity=0.95, validation=0, precision="fp32")["settings"]
        assert deviations(exact) == []
        assert deviations({**cell, "dataset": "cifar10"}) == ["30 epochs (paper: 160)"]

    def test_every_number_names_its_source_and_is_a_percentage(self):
        assert len(PUBLISHED) == 18 + 62 + 12
        assert all(p.source and 0 < p.percent < 100 for p in PUBLISHED)
        assert not any(p.beta is not None and math.isnan(p.beta) for p in PUBLISHED)
