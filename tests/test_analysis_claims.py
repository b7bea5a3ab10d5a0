"""The abstract's claims beside our intervals, and the one table of all claims."""

import pytest
from synthetic import pairs, record

from ckasr.analysis import claims_table, runs_table
from ckasr.analysis.claims import AA_PROFILE, STATEMENTS, core_hours
from ckasr.analysis.paper import claim_beside
from ckasr.notebooks import profiles

LEVELS = {"levels": "0.8,0.995"}


def rows(text: str) -> list[dict[str, str]]:
    """The rows of the first table of a text, by column."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    header, *body = ([part.strip() for part in line.strip("|").split("|")] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in body]


def cell(center: float, step: float = 0.1, **settings) -> list[dict]:
    """Three pairs whose differences, in points, are center - step, center, center + step."""
    treated = [0.3 + (center + by) / 100 for by in (-step, 0, step)]
    return pairs([0.3] * 3, treated, **{"sparsity": 0.995} | settings)


class TestRowsOfTheAbstract:
    # Half widths of the t interval: 4.303 * step / sqrt(3), so 0.25 points for a step of 0.1.
    @pytest.mark.parametrize(
        ("runs", "placed", "word"),
        [
            (cell(0.1), "+4.00 (above)", "not reproduced"),
            (cell(0.9), "+4.00 (above)", "positive, smaller than the paper's"),
            (cell(4.1), "+4.00 (inside)", "reproduced"),
            (cell(5.0), "+4.00 (below)", "reproduced"),
            (cell(-5.0), "+4.00 (above)", "not reproduced"),
            (cell(2.0, 1.0), "+4.00 (inside)", "undecided"),
            (cell(5.0, sparsity=0.998), "+6.00 (above)", "positive, smaller than the paper's"),
            (cell(5.0, model="resnet32", method="snip"), "+4.00 (below)", "reproduced"),
            (cell(5.0, epochs=40), "+4.00 (below)", "not tested: short schedule"),
            (
                cell(0.1, dataset="mnist", model="lenet300", method="lth", method_options=LEVELS),
                "+4.00 (above)",
                "not tested: claimed on cifar100",
            ),
        ],
    )
    def test_claimed_gain_our_interval_and_where_it_lies(self, runs, placed, word):
        ours, claimed = rows(runs_table(runs))[1:]
        assert claimed["arm"].startswith("claim of the abstract")
        assert claimed["arm"].endswith(", and CKA-SR, β = 1e-4")
        assert claimed["test accuracy, % ± sd (n)"] == "3 pairs"
        for column in ("difference, points", "95 % interval"):
            assert claimed[column] == ours[column] != "-"
        assert (claimed["paper's difference"], claimed["verdict"]) == (placed, word)

    def test_every_arm_has_its_row(self):
        both = cell(1.0) + [run for run in cell(2.0, beta=1e-3) if run["settings"]["beta"]]
        assert [row["arm"] for row in rows(runs_table(both))[3:]] == [
            "claim of the abstract, and CKA-SR, β = 1e-4",
            "claim of the abstract, and CKA-SR, β = 1e-3",
        ]

    @pytest.mark.parametrize(
        "other",
        [
            {"sparsity": 0.95},
            {"dataset": "cifar10"},
            {"dataset": "mnist", "model": "lenet300"},
            {"dataset": "mnist", "model": "lenet300", "method": "dlth"},
            {"dataset": "mnist", "model": "lenet300", "method": "lth", "sparsity": 0.98},
        ],
    )
    def test_other_cells_have_no_claimed_gain(self, other):
        runs = cell(0.1, **other)
        assert claim_beside(runs[0]["settings"]) is None
        assert "abstract" not in runs_table(runs)

    def test_unknown_facts_are_listed_below_the_table(self):
        assert "It does not state the method and the network" in runs_table(cell(0.1))
        tickets = {"dataset": "mnist", "model": "lenet300", "method": "lth"}
        mnist = runs_table(cell(0.1, **tickets, method_options=LEVELS))
        assert "first experiment that the summary of the paper suggests" in mnist
        assert "first experiment" not in runs_table(cell(0.1))


def about(text: str, claim: str) -> list[dict[str, str]]:
    return [row for row in rows(text) if claim in row["claim"]]


class TestTableOfClaims:
    def test_without_records_every_claim_is_listed_as_not_run(self):
        text = claims_table({})
        assert [row["claim"] for row in rows(text)] == [s.text for s in STATEMENTS]
        assert {row["verdict"] for row in rows(text)} == {"not run yet"}
        assert f"not run yet (`make reproduce PROFILE={AA_PROFILE}`)" in text

    def test_every_command_is_a_profile_that_exists(self):
        named = {s.profile for s in STATEMENTS} - {None}
        assert {AA_PROFILE, *named} <= profiles().keys()

    def test_the_numbers_of_the_appendix_are_the_published_ones(self):
        numbers = {row["claim"].partition(": ")[0]: row["paper"] for row in rows(claims_table({}))}
        assert numbers["accuracy increases at 99.8 %"] == "2.95 to 3.32 % (+0.37)"
        assert numbers["accuracy increases at 95 %"] == "47.27 to 48.26 % (+0.99)"

    def test_a_full_schedule_is_tested_against_both_numbers(self):
        text = claims_table({"verdict01_resnet20_998": cell(0.3, sparsity=0.998)})
        (abstract,) = about(text, "or more at 99.8 %")
        assert (
            abstract["difference, points [95 % interval], n pairs"] == "+0.30 [+0.05, +0.55], n = 3"
        )
        assert abstract["verdict"] == (
            "positive, smaller than the paper's (the paper's +6.00 is above the interval)"
        )
        assert abstract["command"] == "`make reproduce PROFILE=verdict01_resnet20_998`"
        assert "160 epochs, sparsity 99.8 %, CKA-SR, β = 1e-4" in abstract["our runs"]
        (appendix,) = about(text, "accuracy increases at 99.8 %")
        assert appendix["verdict"] == "reproduced (the paper's +0.37 is inside the interval)"

    def test_a_short_schedule_is_stated_and_does_not_test_the_claim(self):
        short = cell(5.0, epochs=40)
        missing, row = about(claims_table({"made_up": short}), "or more at 99.5 %")
        assert missing["verdict"] == "not run yet"
        assert "40 epochs" in row["our runs"]
        assert row["verdict"] == "claim not tested: short schedule; positive"
        assert row["command"] == "-", "no profile has this name"
        full, short_too = about(claims_table({"a": short, "b": cell(0.1)}), "or more at 99.5 %")
        assert "not reproduced" in full["verdict"]
        assert "short schedule" in short_too["verdict"]

    def test_a_claim_without_a_number_states_only_the_observation(self):
        tickets = {"dataset": "mnist", "model": "lenet300", "method": "lth"}
        runs = cell(-1.0, epochs=15, **tickets, method_options=LEVELS)
        (row,) = about(claims_table({"x": runs}), "lottery tickets")
        assert row["verdict"] == "short schedule; negative"
        (beyond,) = about(claims_table({"x": cell(1, sparsity=0.9995)}), "beyond 99.8 %")
        assert beyond["verdict"] == "positive"

    def test_an_arm_without_a_published_number_is_not_compared_with_that_of_another(self):
        text = claims_table({"x": cell(5.0, sparsity=0.998, beta=1e-3)})
        (row,) = about(text, "accuracy increases at 99.8 %")
        assert row["verdict"] == "not run yet"

    def test_networks_at_chance_and_lost_pairs_are_stated(self):
        treated = [0.011, 0.012, 0.013]
        runs = pairs([0.01] * 3, treated, sparsity=0.998)
        runs += [record(status="diverged", sparsity=0.998, beta=1e-4, seed=7)]
        (row,) = about(claims_table({"x": runs}), "or more at 99.8 %")
        assert row["difference, points [95 % interval], n pairs"].endswith("n = 3, 1 diverged")
        assert row["verdict"].endswith("; accuracy is at chance")

    def test_the_aa_check_follows_the_table(self):
        aa = [
            record(0.3 + 0.01 * seed * bool(order + 1), seed=seed, order_seed=order, epochs=40)
            for seed in range(5)
            for order in (-1, 0)
        ]
        text = claims_table({"verdict00_aa": aa})
        assert "A/A check of the decision rule (CIFAR-100, ResNet20" in text
        assert "positive or negative for 1 of 1 groups of 5 pairs (100 %)" in text


@pytest.mark.parametrize(
    ("devices", "hours"),
    [
        (["Made CPU, 2 thread(s)"] * 2, "4.0"),
        (["Made GPU"] * 2, "2.0 GPU-hours"),
        (["Made CPU, 1 thread(s)", "Made GPU"], "1.0 + 1.0 GPU-hours"),
    ],
)
def test_core_hours(devices, hours):
    assert core_hours([{"seconds": 3600.0, "device": name} for name in devices]) == hours
    assert core_hours([{"seconds": 3600.0, "device": devices[0]}, {"device": devices[0]}]) == "-"
