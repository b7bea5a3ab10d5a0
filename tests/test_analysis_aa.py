"""The A/A check: pairs by the order of the images alone, groups of five, numbers by hand."""

import random

import pytest
from synthetic import record

from ckasr.analysis import aa_checks, aa_table, all_tables

# Points by which the reordered run of each seed is better. First five: mean 2, deviation 0.7071, so
# the t interval is 2 -+ 2.7764 * 0.7071 / sqrt(5) = 2 -+ 0.878. Next five: mean 0, deviation 1.
POINTS = [1, 2, 3, 2, 2, -1, 1, 0, -1, 1, 0, 0]
HOST = {"sparsity": 0.998, "epochs": 40}


def runs(points=POINTS, **settings) -> list[dict]:
    """A baseline of 50 % for each seed, and its twin with the images in another order."""
    settings = HOST | settings
    first = [record(0.5, seed=seed, **settings) for seed in range(len(points))]
    return first + [
        record(0.5 + by / 100, seed=seed, order_seed=0, **settings)
        for seed, by in enumerate(points)
    ]


def test_groups_spread_and_smallest_difference_equal_values_by_hand():
    (check,) = aa_checks(runs())
    assert [group.seeds for group in check.groups] == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]
    assert check.groups[0].mean == pytest.approx(0.02)
    assert check.groups[0].t_interval == pytest.approx((0.01122, 0.02878), abs=1e-5)
    assert check.called == 1
    assert check.left_over == 2
    # Sum 10, sum of squares 26: the variance is (26 - 100 / 12) / 11 = 1.60606.
    assert check.spread == pytest.approx(0.0126731, rel=1e-5)
    assert check.smallest_difference() == pytest.approx(2.776445 * 0.0126731 / 5**0.5, rel=1e-5)
    assert check.text.startswith(
        "the verdict is positive or negative for 1 of 2 groups of 5 pairs (50 %); 5 % are expected "
        "by chance, and 10 % of such checks have at least one such group"
    )
    assert "standard deviation of 1.27 points" in check.text
    assert check.text.endswith("that 5 pairs can show is 1.57 points")


def test_groups_with_a_negative_verdict_are_counted():
    (check,) = aa_checks(runs([-by for by in POINTS]))
    assert check.called == 1


def test_groups_do_not_depend_on_the_order_of_the_records():
    mixed = runs()
    random.Random(3).shuffle(mixed)
    assert aa_table(mixed) == aa_table(runs())


@pytest.mark.parametrize(
    "other",
    [{"sparsity": 0.995}, {"epochs": 30}, {"beta": 1e-4}, {"weight_decay": 1e-4}],
)
def test_runs_that_differ_in_another_setting_do_not_form_a_pair(other):
    first = [record(0.5, seed=seed, **HOST) for seed in range(5)]
    second = [record(0.6, seed=seed, order_seed=0, **{**HOST, **other}) for seed in range(5)]
    assert aa_checks(first + second) == []
    assert aa_table(first + second) == "There are no A/A pairs yet.\n"
    assert "aa" not in all_tables(first + second)


def test_excluded_pairs_are_listed_and_groups_skip_their_seeds():
    made = runs()
    made[1]["commit"], made[13]["commit"] = "a", "b"  # both runs of seed 1
    made[14] = record(status="diverged", seed=2, order_seed=0, **HOST)
    (check,) = aa_checks(made)
    assert check.groups[0].seeds == (0, 3, 4, 5, 6)
    text = aa_table(made)
    assert "- Excluded incomplete pairs: seed 1: different commits" in text
    assert "- Excluded pairs with a diverged run: seed 2: run of order_seed 0" in text
    assert "| 0, 3, 4, 5, 6 " in text


def test_table_has_a_row_for_each_group_and_one_for_all_pairs():
    text = all_tables(runs())["aa"]
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
    table = [line for line in lines if len(line) == 5]
    assert table[2:] == [
        ["0 to 4", "5", "+2.00", "[+1.12, +2.88]", "positive"],
        ["5 to 9", "5", "+0.00", "[-1.24, +1.24]", "no difference shown"],
        ["0 to 11", "12", "+0.83", "[+0.03, +1.64]", "-"],
    ]
    assert "- Pairs after the last complete group: 2" in text


def test_text_with_fewer_than_five_pairs_states_how_many_are_needed():
    (check,) = aa_checks(runs([1, 2]))
    assert check.groups == ()
    assert check.text == "there are 2 complete pairs; the first group needs 5"


def test_equal_runs_have_no_positive_or_negative_group():
    (check,) = aa_checks(runs([0] * 5))
    assert (check.called, check.spread, check.smallest_difference()) == (0, 0.0, 0.0)
