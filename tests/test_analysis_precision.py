"""bf16 against fp32: what is paired, the words of the rule, and what is written."""

import io
import itertools

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from synthetic import pairs, record

from ckasr.analysis import write_all
from ckasr.analysis.cells import BASELINE
from ckasr.analysis.precision import COLUMNS, chosen_precision, precision_rows, precision_table
from ckasr.analysis.precision_figure import precision_differences

FP32 = ([0.90, 0.91, 0.92], [0.92, 0.93, 0.94])  # baseline, CKA-SR
BF16 = ([0.901, 0.911, 0.921], [0.92, 0.931, 0.942])


def both(fp32=FP32, bf16=BF16, **settings) -> list[dict]:
    settings = {"sparsity": 0.95} | settings
    return [
        *pairs(*fp32, precision="fp32", **settings),
        *pairs(*bf16, precision="bf16", **settings),
    ]


def shifted(points: float, spread: float = 0.1, effect: float = 0.0) -> list[dict]:
    """Three pairs an arm whose mean difference is so many points; CKA-SR gains `effect` more."""
    steps = np.array([-spread, 0, spread])
    treated = [0.9 + (points + steps) / 100, 0.9 + (points + effect + steps[[1, 2, 0]]) / 100]
    return both(fp32=([0.9] * 3, [0.9] * 3), bf16=[side.tolist() for side in treated])


def words(runs: list[dict]) -> list[str]:
    (rows,) = precision_rows(runs)
    return [row.verdict for row in rows]


class TestPairing:
    def test_bf16_minus_fp32_seed_by_seed_within_an_arm_and_the_change_of_the_effect(self):
        (rows,) = precision_rows(both()[::-1])
        without, with_term, effect = (row.comparison for row in rows)
        assert [row.quantity for row in rows] == [
            "accuracy, baseline",
            "accuracy, CKA-SR, β = 1e-4",
            "effect of CKA-SR, β = 1e-4",
        ]
        assert without.arm == BASELINE
        assert without.differences == pytest.approx((0.001, 0.001, 0.001))
        assert with_term.differences == pytest.approx((0, 0.001, 0.002))
        assert effect.baseline == pytest.approx((0.02, 0.02, 0.02))
        assert effect.treated == pytest.approx((0.019, 0.02, 0.021))
        assert effect.differences == pytest.approx((-0.001, 0, 0.001))
        assert effect.t_interval == pytest.approx((-0.00248, 0.00248), abs=1e-5)

    @pytest.mark.parametrize("other", [{"sparsity": 0.9}, {"epochs": 30}, {"momentum": 0.8}])
    def test_runs_that_differ_in_anything_else_are_no_pair(self, other):
        fp32 = pairs(*FP32, **{"precision": "fp32", "sparsity": 0.95})
        bf16 = pairs(*BF16, **{"precision": "bf16", "sparsity": 0.95} | other)
        assert precision_rows(fp32 + bf16) == []
        assert precision_rows(fp32) == precision_rows([]) == []

    def test_sparsities_are_one_group_and_recipes_are_not(self):
        runs = both() + both(sparsity=0.995) + both(epochs=30)
        found = precision_rows(runs)
        assert [[row.sparsity for row in rows] for rows in found] == [
            [0.95] * 3 + [0.995] * 3,
            [0.95] * 3,
        ]

    def test_lost_pairs_are_named_and_the_effect_needs_all_four_runs(self):
        common = {"sparsity": 0.95, "beta": 1e-4}
        runs = both()
        runs += [record(status="diverged", precision="bf16", seed=3, **common)]
        runs += [record(0.9, precision="fp32", seed=s, **common) for s in (3, 4)]
        runs += [record(status="diverged", precision="fp32", sparsity=0.95, seed=3)]
        runs += [record(0.9, precision=p, sparsity=0.95, seed=4) for p in ("fp32", "bf16")]
        (rows,) = precision_rows(runs)
        without, with_term, effect = (row.comparison for row in rows)
        assert (without.n, with_term.n, effect.n) == (4, 3, 3)
        assert with_term.diverged == ("seed 3: bf16",)
        assert with_term.incomplete == effect.incomplete == ("seed 4: no bf16",)
        assert effect.diverged == ("seed 3: fp32, bf16",)

    def test_an_arm_in_one_precision_only_is_named(self):
        runs = [*both(), record(0.9, beta=1e-3, sparsity=0.95, precision="fp32")]
        (rows,) = precision_rows(runs)
        lonely = [row for row in rows if row.arm.beta == 1e-3]
        assert [row.comparison.incomplete for row in lonely] == [("seed 0: no bf16",)] * 2
        assert chosen_precision(rows) == "fp32"


class TestRule:
    # Three pairs in steps of d: the half width of the interval is 4.303 d / sqrt(3), here 0.25.
    @pytest.mark.parametrize(
        ("points", "word"),
        [
            (0.0, "same"),
            (0.7, "same"),  # [0.45, 0.95]: excludes 0, and is inside the margin all the same
            (0.8, "higher"),  # [0.55, 1.05]
            (-0.8, "lower"),
            (3.0, "higher"),
        ],
    )
    def test_the_words(self, points, word):
        assert words(shifted(points))[:2] == [word, word]

    def test_an_interval_that_holds_0_and_leaves_the_margin(self):
        assert words(shifted(0.0, spread=0.5))[:2] == ["undecided", "undecided"]

    def test_too_little_to_decide(self):
        two = ([0.900, 0.901], [0.900, 0.902])
        assert words(both(two, ([0.900, 0.902], [0.901, 0.902]))) == ["undecided"] * 3
        assert words(both(([0.9] * 3,) * 2, ([0.9] * 3,) * 2)) == ["undecided"] * 3

    def test_divergence_of_more_than_one_pair_in_five(self):
        lost = [record(status="diverged", precision="bf16", sparsity=0.95, seed=9)]
        assert words(shifted(0) + lost)[0] == "undecided"
        assert words(shifted(0) + lost)[1] == "same"

    def test_bf16_only_if_every_accuracy_is_the_same_and_no_effect_has_moved(self):
        def chosen(runs):
            return chosen_precision(precision_rows(runs)[0])

        assert chosen(shifted(0.0)) == "bf16"
        assert chosen(shifted(-0.8)) == chosen(shifted(0.8)) == "fp32"
        assert chosen(shifted(0.0, spread=0.5)) == "fp32"  # undecided
        # Both accuracies within the margin, on opposite sides of it.
        moved = shifted(-0.7, spread=0.05, effect=1.4)
        assert words(moved) == ["same", "same", "higher"]
        assert chosen(moved) == "fp32"
        # The effect may be undecided: its interval is wider by nature.
        vague = shifted(-0.3, spread=0.2, effect=0.6)
        assert words(vague) == ["same", "same", "undecided"]
        assert chosen(vague) == "bf16"

    def test_bf16_only_with_all_pairs_of_the_plan(self):
        """On digits, 20; a row that looks the same with fewer counts against bf16, not for it."""

        def chosen(count):
            accuracies = [0.9 + 0.0001 * seed for seed in range(count)]
            moved = [a + 0.001 * (-1) ** seed for seed, a in enumerate(accuracies)]
            runs = both((accuracies, accuracies), (moved, moved), dataset="digits")
            assert words(runs) == ["same", "same", "undecided"]
            return chosen_precision(precision_rows(runs)[0])

        assert (chosen(19), chosen(20)) == ("fp32", "bf16")

    def test_without_a_comparison_bf16_is_not_recommended(self):
        assert chosen_precision([]) == "fp32"


class TestTable:
    def test_a_table_by_hand(self):
        text = precision_table(shifted(0.4))
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        header, first, _, effect = [[c.strip() for c in r.strip("|").split("|")] for r in rows]
        assert header == list(COLUMNS)
        cells = dict(zip(header, first, strict=True))
        assert cells["sparsity"] == "95 %"
        assert (cells["fp32, %"], cells["bf16, %"], cells["pairs"]) == ("90.00", "90.40", "3")
        assert cells["difference, points"] == "+0.40"
        assert cells["95 % interval"] == "[+0.15, +0.65]"
        assert cells["verdict"] == "same"
        assert effect[1:4] == ["effect of CKA-SR, β = 1e-4", "+0.00", "+0.00"]
        assert "### bf16 and fp32: CIFAR-100, ResNet20, random ERK masks, 160 epochs" in text
        assert "**bf16**" in text

    def test_left_out_runs_are_named(self):
        runs = [*both(), record(0.9, sparsity=0.95, precision="fp32", seed=7)]
        text = precision_table(runs)
        assert "95 % accuracy, baseline: excluded incomplete pairs: seed 7: no bf16" in text
        assert "all 3 differences are equal, so there is no interval" in text

    def test_nothing_to_compare(self):
        assert precision_table(pairs(*FP32)) == "There are no runs in both precisions yet.\n"


def dots(axis) -> list[np.ndarray]:
    """Places and values of the seeds, an array of shape (seeds, 2) for each swarm."""
    swarms = [c for c in axis.collections if isinstance(c, PathCollection)]
    return [np.asarray(swarm.get_offsets()) for swarm in swarms]


class TestFigure:
    def test_dots_means_intervals_and_words(self):
        left, right = precision_differences(
            *precision_rows(shifted(0.4) + both(sparsity=0.995))
        ).axes
        assert list(dots(left)[0][:, 1]) == pytest.approx([0.3, 0.4, 0.5])
        means = [float(c.lines[0].get_ydata()[0]) for c in left.containers]
        assert means == pytest.approx([0.4, 0.4, 0.1, 0.1])
        (segment,) = left.containers[0].lines[2][0].get_segments()
        assert segment[:, 1] == pytest.approx([0.1516, 0.6484], abs=1e-4)
        assert [text.get_text() for text in left.texts] == ["same", "same", "undecided", "same"]
        assert len(right.containers) == 2
        ticks = [tick.get_text() for tick in right.get_xticklabels()]
        assert ticks == ["95 %\nn = 3", "99.5 %\nn = 3"]

    def test_equal_differences_lie_side_by_side(self):
        figure = precision_differences(*precision_rows(both()))
        axis = figure.axes[0]
        figure.savefig(io.BytesIO())  # The swarm is arranged when the figure is drawn.
        places, values = dots(axis)[0].T
        assert list(values) == pytest.approx([0.1, 0.1, 0.1])
        assert min(b - a for a, b in itertools.pairwise(sorted(places))) > 0.01

    def test_without_cka_sr_there_is_one_panel(self):
        runs = [run for run in both() if run["settings"]["beta"] == 0]
        assert len(precision_differences(*precision_rows(runs)).axes) == 1

    def test_nothing_to_draw(self):
        with pytest.raises(ValueError, match="no runs in both precisions"):
            precision_differences([])


class TestWriteAll:
    def test_files_are_written_only_if_both_precisions_were_run(self, tmp_path):
        alone = {p.name for p in write_all(pairs(*FP32, sparsity=0.95), tmp_path / "one")}
        assert not any("precision" in name for name in alone)
        names = {path.name for path in write_all(both(), tmp_path / "two")}
        stem = "cifar100_resnet20_random_erk_160ep_precision"
        assert {"precision.md", f"{stem}.png", f"{stem}.svg"} <= names
        assert alone < names
