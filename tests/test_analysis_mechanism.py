"""H2 and H3: what is measured of layers and weights, and which word it gets."""

import copy

import pytest
from synthetic import record

from ckasr.analysis import hypotheses, mechanism_cells, mechanism_numbers, write_mechanism
from ckasr.analysis.mechanism import (
    FAILS,
    HOLDS,
    IN_PART,
    UNDECIDED,
    UNTESTED,
    mean_similarity,
    mechanism_table,
    several_betas,
    stage_similarity,
)

LAYERS = ["stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1"]


def run(similarity=0.8, near_zero=0.1, norm=10.0, accuracy=0.5, *, seed=0, beta=0.0, **settings):
    """A record in which all pairs of layers have one CKA; seeds differ a little."""
    found = copy.deepcopy(record(accuracy, seed=seed, beta=beta, sparsity=0.95, **settings))
    shift = 0.001 * (seed - 1) * (1 + beta)
    matrix = [[1.0 if i == j else similarity + shift for j in range(5)] for i in range(5)]
    found["layer_cka"] |= {"layers": LAYERS, "matrix": matrix}
    found["weights"] |= {
        "frobenius_norm": norm + shift,
        "fraction_below_1e-2": near_zero + shift,
        "fraction_below_tenth_rms": 0.1,
        "effective_rank": 20.0,
    }
    return found


def arms(**by_beta):
    """Three seeds of every arm: b0=(similarity, near zero, norm, accuracy), b1=... (beta 1)."""
    return [
        run(*values, seed=seed, beta=float(name[1:]))
        for name, values in by_beta.items()
        for seed in range(3)
    ]


def verdicts(runs):
    (cell,) = mechanism_cells(runs)
    return {found.name: found.verdict for found in hypotheses(cell)}


class TestMeasures:
    def test_all_pairs_and_those_of_a_stage(self):
        found = run()
        found["layer_cka"]["matrix"][2][1] = 0.2  # within stage 1
        found["layer_cka"]["matrix"][4][0] = 0.0  # stem and stage 2
        assert mean_similarity(found) == pytest.approx((8 * 0.799 + 0.2 + 0.0) / 10)
        assert stage_similarity(found) == pytest.approx((0.2 + 0.799) / 2)

    @pytest.mark.parametrize("undefined", [0.0, None])
    def test_a_layer_of_constant_output_has_no_similarity(self, undefined):
        found = run()
        for other in range(5):
            found["layer_cka"]["matrix"][0][other] = undefined
            found["layer_cka"]["matrix"][other][0] = undefined
        assert mean_similarity(found) is None
        assert stage_similarity(found) == pytest.approx(0.799), "the stem is in no stage"

    def test_not_measured(self):
        assert mean_similarity(record(status="diverged")) is None
        found = run()
        found["layer_cka"] |= {"layers": ["a", "b", "c", "d", "e"]}
        assert stage_similarity(found) is None


class TestVerdicts:
    def test_both_hold(self):
        runs = arms(b0=(0.8, 0.1, 10), b1=(0.6, 0.2, 9), b2=(0.5, 0.3, 8))
        assert verdicts(runs) == {"H2": HOLDS, "H3": HOLDS}

    def test_neither_holds(self):
        runs = arms(b0=(0.8, 0.1, 10), b1=(0.9, 0.05, 11), b2=(0.95, 0.04, 12))
        assert verdicts(runs) == {"H2": FAILS, "H3": FAILS}

    def test_lower_but_not_decreasing_with_beta(self):
        runs = arms(b0=(0.8, 0.1, 10), b1=(0.6, 0.2, 11), b2=(0.6, 0.2, 11))
        assert verdicts(runs) == {"H2": IN_PART, "H3": IN_PART}
        (cell,) = mechanism_cells(runs)
        assert "not met: lower at CKA-SR, β = 2 than at CKA-SR, β = 1" in hypotheses(cell)[0].text

    def test_too_few_pairs(self):
        runs = [r for r in arms(b0=(0.8, 0.1, 10), b1=(0.6, 0.2, 9)) if r["settings"]["seed"] < 2]
        assert verdicts(runs) == {"H2": UNDECIDED, "H3": UNDECIDED}

    def test_a_network_at_chance_is_not_tested(self):
        runs = arms(b0=(0.8, 0.1, 10, 0.01), b1=(0.6, 0.2, 9, 0.01))
        assert verdicts(runs) == {"H2": UNTESTED, "H3": UNTESTED}

    def test_an_arm_with_collapsed_accuracy_does_not_count(self):
        runs = arms(b0=(0.8, 0.1, 10, 0.5), b1=(0.85, 0.05, 11, 0.5), b2=(0.1, 0.9, 1, 0.3))
        assert verdicts(runs) == {"H2": FAILS, "H3": FAILS}
        (cell,) = mechanism_cells(runs)
        assert "excluded: CKA-SR, β = 2 (accuracy collapsed)" in hypotheses(cell)[0].text

    def test_a_placebo_is_not_cka_sr(self):
        runs = arms(b0=(0.8, 0.1, 10), b1=(0.9, 0.05, 11))
        runs += [run(0.1, 0.9, 1, seed=s, beta=1.0, term="shuffled") for s in range(3)]
        assert verdicts(runs) == {"H2": FAILS, "H3": FAILS}


class TestTableAndFigure:
    def test_a_row_for_each_arm(self):
        text = mechanism_table(mechanism_cells(arms(b0=(0.8, 0.1, 10), b1=(0.6, 0.2, 9))))
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        assert [cell.strip() for cell in rows[1].strip("|").split("|")][:3] == [
            "baseline",
            "-",
            "0.800",
        ]
        treated = [cell.strip() for cell in rows[2].strip("|").split("|")]
        assert treated[:2] == ["CKA-SR, β = 1", "3"]
        assert treated[2].startswith("-0.200 [-0.20")
        assert f"- H2: **{HOLDS}**" in text

    def test_panels_hold_the_values_of_the_runs(self):
        (cell,) = mechanism_cells(arms(b0=(0.8, 0.1, 10), b1=(0.6, 0.2, 900)))
        axes = mechanism_numbers(cell).axes
        assert len(axes) == 6
        means = [float(c.lines[0].get_ydata()[0]) for c in axes[0].containers]
        assert means == pytest.approx([0.8, 0.6], abs=1e-3)
        assert [axis.get_yscale() for axis in axes] == ["linear", "linear", "log", *["linear"] * 3]
        assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["0", "1"]

    def test_files_are_written_only_for_several_betas(self, tmp_path):
        one = arms(b0=(0.8, 0.1, 10), b1=(0.6, 0.2, 9))
        assert write_mechanism(one, tmp_path) == []
        (cell,) = mechanism_cells(one + arms(b2=(0.5, 0.3, 8)))
        assert several_betas(cell)
        written = write_mechanism(one + arms(b2=(0.5, 0.3, 8)), tmp_path)
        assert [path.suffix for path in written] == [".md", ".png", ".svg"]
        assert "mechanism" in written[1].name

    def test_a_cell_without_a_baseline_is_left_out(self):
        runs = [r for r in arms(b0=(0.8, 0.1, 10), b1=(0.6, 0.2, 9)) if r["settings"]["beta"]]
        assert mechanism_cells(runs) == []
