"""Verdicts that a notebook may print: none holds in a network that learned nothing."""

import math

import pytest
from synthetic import record

from ckasr.analysis import learned, similarity_verdict


@pytest.mark.parametrize(
    ("similarity", "accuracy", "word"),
    [
        ((0.9, 0.7), (0.97, 0.98), "holds here"),
        ((0.9, 0.7), (0.97, 0.93), "holds here"),
        ((0.9, 0.7), (0.97, 0.91), "does not hold here: accuracy collapsed"),
        ((0.9, 0.1), (0.93, 0.15), "does not hold here: accuracy collapsed"),
        ((0.9, 0.1), (0.93, math.nan), "does not hold here: accuracy collapsed"),
        ((0.9, 0.9), (0.97, 0.97), "does not hold here"),
        ((0.7, 0.9), (0.97, 0.99), "does not hold here"),
        ((0.9, math.nan), (0.97, 0.97), "does not hold here"),
        ((0.9, 0.7), (0.19, 0.19), "not tested: the network without the term is at chance"),
        ((0.9, 0.7), (math.nan, 0.97), "not tested: the network without the term is at chance"),
    ],
)
def test_less_similar_layers_count_only_in_a_network_that_works(similarity, accuracy, word):
    assert similarity_verdict(similarity, accuracy, classes=10) == word


def test_learned_is_above_chance_by_a_factor_of_two():
    """The synthetic records have 100 classes: chance is 1 %."""
    assert learned([record(0.0201)])
    assert not learned([record(0.0199)])
    assert learned([record(0.01), record(0.04, seed=1)]), "by the mean"
    assert learned([record(0.03), record(None, status="diverged", seed=1)])
    assert not learned([record(None, status="diverged")])
    assert not learned([])
