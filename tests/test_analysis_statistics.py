"""Paired statistics: who is paired with whom, and every number against an independent way."""

import itertools
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from synthetic import pairs, record

from ckasr.analysis.cells import Arm, cells, groups, percent, power_of_ten, slug, title
from ckasr.analysis.statistics import (
    holm,
    mean_and_sd,
    paired_differences,
    sign_flip_p,
    t_interval,
)
from ckasr.experiments.settings import CKA_SR_FIELDS, Settings

differences = st.lists(st.integers(-200, 200).map(lambda x: x / 10_000), min_size=1, max_size=9)
OTHER = {
    "dataset": "cifar10",
    "model": "resnet32",
    "method": "dense",
    "method_options": {"fraction": 0.5},  # of SET
    "distribution": "uniform",
    "sparsity": 0.5,
    "epochs": 30,
    "batch_size": 64,
    "learning_rate": 0.2,
    "momentum": 0.8,
    "nesterov": False,
    "weight_decay": 1e-4,
    "milestones": (0.3,),
    "decay": 0.2,
    "augment": "none",
    "validation": 0,
    "order_seed": 7,
    "label_smoothing": 0.1,
    "dropout": 0.2,
    "noise": 0.1,
    "hsic": 1e-6,
    "precision": next(name for name in ("fp32", "bf16") if name != Settings().precision),
}


class TestPairing:
    def test_every_setting_is_either_compared_or_kept_equal(self):
        assert {f.name for f in fields(Settings)} == {*OTHER, *CKA_SR_FIELDS, "seed"}

    @pytest.mark.parametrize("name", OTHER)
    def test_runs_that_differ_in_any_other_setting_are_never_paired(self, name):
        host = {"method": "set"}
        runs = [record(0.5, **host), record(0.6, **{**host, "beta": 1e-4, name: OTHER[name]})]
        assert len(cells(runs)) == 2
        (only,) = paired_differences(runs)
        assert (only.n, only.mean, only.incomplete) == (0, None, ("seed 0: no baseline",))

    def test_pairs_are_of_one_seed(self):
        runs = [record(0.1 * seed, beta=0.0, seed=seed) for seed in (3, 1, 2)]
        runs += [record(0.1 * seed + 0.01 * seed, beta=1e-4, seed=seed) for seed in (2, 3, 4)]
        (found,) = paired_differences(runs)
        assert found.seeds == (2, 3)
        assert found.differences == pytest.approx((0.02, 0.03))
        assert found.mean == pytest.approx(0.025)
        assert found.incomplete == ("seed 1: no CKA-SR, β = 1e-4", "seed 4: no baseline")

    def test_one_baseline_serves_every_arm_and_arms_are_not_mixed(self):
        runs = [record(0.5)]
        runs += [record(0.5 + beta, beta=beta) for beta in (1e-3, 1e-2)]
        runs += [record(0.52, beta=1e-3, variant="aug", samples=0, every=1)]
        found = {c.arm: c.mean for c in paired_differences(runs)}
        assert found == {
            Arm(1e-3, "official", 8, 5, ""): pytest.approx(0.001),
            Arm(1e-2, "official", 8, 5, ""): pytest.approx(0.01),
            Arm(1e-3, "aug", 0, 1, ""): pytest.approx(0.02),
        }
        assert [c.arm.beta for c in paired_differences(runs, arm={"beta": 1e-2})] == [1e-2]
        assert len(paired_differences(runs, arm={"variant": "official"})) == 2

    def test_beta_zero_is_the_baseline_for_any_other_settings_of_the_term(self):
        odd = record(0.5)
        odd["settings"] = {**odd["settings"], "samples": 16, "variant": "aug"}
        (found,) = paired_differences([odd, record(0.6, beta=1e-4)])
        assert found.n == 1

    def test_diverged_runs_are_counted_and_left_out(self):
        runs = pairs([0.5, 0.5, 0.5], [0.51, 0.53])
        runs.append(record(status="diverged", beta=1e-4, seed=2))
        runs += [record(status="diverged", seed=3), record(0.9, beta=1e-4, seed=3)]
        runs += [record(status="diverged", seed=s, beta=b) for s, b in ((4, 0), (4, 1e-4), (5, 0))]
        (found,) = paired_differences(runs)
        assert found.seeds == (0, 1)
        assert found.mean == pytest.approx(0.02)
        assert found.diverged == (
            "seed 2: CKA-SR, β = 1e-4",
            "seed 3: baseline",
            "seed 4: baseline and CKA-SR, β = 1e-4",
            "seed 5: baseline",
        )
        assert found.incomplete == ()

    def test_runs_of_different_devices_are_no_pair(self):
        runs = [*pairs([0.5], [0.6]), record(0.5, seed=1)]
        runs.append(record(0.9, beta=1e-4, seed=1, device="another"))
        (found,) = paired_differences(runs)
        assert found.seeds == (0,)
        assert found.incomplete == ("seed 1: different devices",)

    def test_runs_of_different_commits_are_no_pair(self):
        runs = pairs([0.5, 0.5], [0.6, 0.9])
        for run, commit in zip(runs, ("a", "a", "a", "a+"), strict=True):
            run["commit"] = commit
        (found,) = paired_differences(runs)
        assert found.seeds == (0,)
        assert found.incomplete == ("seed 1: different commits",)

    def test_the_same_record_twice_counts_once(self):
        runs = pairs([0.5, 0.6], [0.5, 0.6])
        assert paired_differences(runs + runs)[0].n == 2

    def test_two_records_of_one_setting_are_refused(self):
        twin = {**record(0.5), "id": "another"}
        with pytest.raises(ValueError, match="same settings and seed: remove one"):
            paired_differences([record(0.5), twin])

    def test_a_record_from_before_a_setting_existed_has_its_default(self):
        old = record(0.5)
        old["settings"] = {k: v for k, v in old["settings"].items() if k != "precision"}
        assert paired_differences([old, record(0.6, beta=1e-4)])[0].n == 1

    def test_the_outcome_can_be_chosen_and_must_be_in_the_records(self):
        runs = pairs([0.5], [0.6])
        runs[0]["validation_accuracy"], runs[1]["validation_accuracy"] = 0.1, 0.4
        (found,) = paired_differences(runs, outcome="validation_accuracy")
        assert found.mean == pytest.approx(0.3)
        del runs[0]["validation_accuracy"]
        with pytest.raises(ValueError, match="is finished but has no validation_accuracy"):
            paired_differences(runs, outcome="validation_accuracy")

    def test_groups_differ_in_more_than_sparsity(self):
        runs = [record(sparsity=s, epochs=e) for s in (0.998, 0.95) for e in (30, 160)]
        found = groups(runs)
        assert [[c.settings["sparsity"] for c in group] for group in found] == [[0.95, 0.998]] * 2
        assert [group[0].settings["schedule"] for group in found] == ["full", "short"]


class TestEstimates:
    def test_a_comparison_by_hand(self):
        (found,) = paired_differences(pairs([0.50, 0.51, 0.49], [0.51, 0.53, 0.52]))
        assert found.differences == pytest.approx((0.01, 0.02, 0.03))
        assert found.mean == pytest.approx(0.02)
        half = 4.302653 * 0.01 / 3**0.5  # Student's t at 97.5 %, two degrees of freedom
        assert found.t_interval == pytest.approx((0.02 - half, 0.02 + half), rel=1e-6)
        assert found.p == 0.25
        assert found.note == ""

    @given(differences.filter(lambda d: len(set(d)) > 1))
    def test_the_t_interval_is_that_of_the_t_test(self, values):
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert t_interval(values) == pytest.approx((expected.low, expected.high))

    @given(differences)
    def test_sign_flips_against_enumeration(self, values):
        scaled = [round(10_000 * value) for value in values]  # whole numbers: no round-off
        flips = itertools.product((-1, 1), repeat=len(scaled))
        far = [abs(np.dot(signs, scaled)) >= abs(sum(scaled)) for signs in flips]
        assert sign_flip_p(values) == pytest.approx(np.mean(far))

    def test_sign_flips_of_one_sign_reach_the_smallest_p(self):
        assert sign_flip_p([0.1, 0.2, 0.3, 0.1, 0.4]) == 2 / 32
        assert sign_flip_p([0.0, 0.0]) == 1.0
        assert sign_flip_p([]) is None

    def test_many_pairs_are_sampled_close_to_the_exact_value(self):
        rng = np.random.default_rng(3)
        values = rng.normal(0.4, 1, 24)
        sampled = sign_flip_p(values)
        assert sampled == sign_flip_p(values)
        normal = 2 * stats.norm.sf(abs(values.sum()) / np.sqrt((values**2).sum()))
        assert sampled == pytest.approx(normal, abs=0.01)
        assert sign_flip_p(np.ones(30)) > 0

    @pytest.mark.parametrize(
        ("treated", "note"),
        [
            ([], "no complete pair"),
            ([0.51], "an interval needs two pairs"),
            ([0.51, 0.52], ""),
            ([0.51, 0.51, 0.51], "all 3 differences are equal, so there is no interval"),
        ],
    )
    def test_an_estimate_that_is_not_possible_states_the_reason(self, treated, note):
        runs = [*pairs([0.5, 0.5, 0.5], treated), record(0.4, beta=0.0001, seed=9)]
        (found,) = paired_differences(runs)
        assert (found.t_interval is None) == (len(set(treated)) < 2)
        assert found.note == note

    def test_mean_and_sd(self):
        assert mean_and_sd([1.0, 3.0]) == pytest.approx((2.0, 2**0.5))
        assert mean_and_sd([1.0]) == (1.0, None)
        assert mean_and_sd([]) == (None, None)


class TestHolm:
    def test_the_textbook_example(self):
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_comparisons_without_a_p_value_are_not_counted(self):
        assert holm([None, 0.02, None, 0.04]) == [None, 0.04, None, 0.04]
        assert holm([]) == []

    @given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.999))
    def test_rejects_what_the_step_down_procedure_rejects(self, ps, level):
        rejected = set()
        for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
            if min(1, (len(ps) - rank) * ps[index]) > level:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(holm(ps)) if p <= level} == rejected


class TestNames:
    def test_arms(self):
        assert Arm(0.0, "aug", 4, 1, "all").label == "baseline"
        assert Arm(1e-4, "official", 8, 5, "").label == "CKA-SR, β = 1e-4"
        assert (
            Arm(0.1, "aug", 0, 1, "all").label
            == "CKA-SR, β = 0.1, aug, all samples every step, all pairs"
        )

    @pytest.mark.parametrize(
        ("value", "text"), [(1e-4, "1e-4"), (5e-4, "5e-4"), (0.05, "0.05"), (1.5e-5, "1.5e-5")]
    )
    def test_betas(self, value, text):
        assert power_of_ten(value) == text

    def test_percent_keeps_the_digits_that_matter(self):
        assert [percent(s) for s in (0.95, 0.995, 0.9998)] == ["95 %", "99.5 %", "99.98 %"]

    def test_titles_and_file_names_tell_groups_apart(self):
        groups_ = [{}, *({name: value} for name, value in OTHER.items() if name != "sparsity")]
        groups_ = [{"method": "set", **g} if "method_options" in g else g for g in groups_]
        settings = [record(**changed)["settings"] for changed in groups_]
        assert len({title(s) for s in settings}) == len(settings)
        assert len({slug(s) for s in settings}) == len(settings)
        assert title(settings[0]) == "CIFAR-100, ResNet20, random ERK masks, 160 epochs"
        assert slug(settings[0]) == "cifar100_resnet20_random_erk_160ep"
        for name in map(slug, settings):
            assert all(c.isalnum() or c in "_-." for c in name)
