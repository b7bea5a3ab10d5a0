"""Densities and counts: the target is met exactly, and the rules are the published ones."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckasr.sparsity import DISTRIBUTIONS, allocate, layer_densities

dims = st.lists(st.integers(1, 40), min_size=2, max_size=5).map(tuple)
networks = st.lists(dims, min_size=1, max_size=8).map(
    lambda shapes: {f"layer{i}.weight": shape for i, shape in enumerate(shapes)}
)
shares = st.floats(0, 1, exclude_min=True)


def kept(densities: dict[str, float], shapes: dict[str, tuple[int, ...]]) -> float:
    return math.fsum(densities[name] * math.prod(shape) for name, shape in shapes.items())


def total(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


@given(networks, shares, st.sampled_from(DISTRIBUTIONS))
def test_the_weighted_sum_is_the_target(shapes, density, distribution):
    densities = layer_densities(shapes, density, distribution)
    assert list(densities) == list(shapes)
    assert all(0 <= share <= 1 for share in densities.values())
    assert kept(densities, shapes) == pytest.approx(density * total(shapes), rel=1e-12)


@given(networks, shares, st.sampled_from(["er", "erk"]))
def test_layers_that_are_not_full_keep_the_proportions_of_the_rule(shapes, density, distribution):
    densities = layer_densities(shapes, density, distribution)
    scales, full = [], []
    for name, shape in shapes.items():
        used = shape if distribution == "erk" else shape[:2]
        rule = sum(used) / math.prod(used)
        (full if densities[name] == 1 else scales).append((densities[name] / rule, rule))
    if scales:
        scale = scales[0][0]
        assert all(other == pytest.approx(scale, rel=1e-9) for other, _ in scales)
        # A full layer is full because the rule asks for at least all of it.
        assert all(scale * rule >= 1 - 1e-9 for _, rule in full)


def test_erk_by_hand_without_a_full_layer():
    shapes = {"conv": (4, 2, 3, 3), "fc": (10, 4)}  # 72 and 40 weights, rules 12/72 and 14/40
    densities = layer_densities(shapes, 0.25, "erk")  # 28 weights over 12 + 14 parts
    assert densities["conv"] == pytest.approx(28 / 26 * 12 / 72)
    assert densities["fc"] == pytest.approx(28 / 26 * 14 / 40)


def test_er_ignores_the_kernel():
    shapes = {"conv": (4, 2, 3, 3), "fc": (10, 4)}  # rules 6/8 and 14/40
    densities = layer_densities(shapes, 0.25, "er")
    scale = 28 / (72 * 6 / 8 + 14)
    assert densities["conv"] == pytest.approx(scale * 6 / 8)
    assert densities["fc"] == pytest.approx(scale * 14 / 40)


def test_erk_fills_one_layer_after_the_other():
    # Rules 2, 12/36 and 15/50. Asked for 50 of 87 weights the first is full at once, and sharing
    # the other 49 among 27 parts leaves no one else full. Asked for 84, the second fills too, but
    # only in the second round.
    shapes = {"tiny": (1, 1), "small": (6, 6), "large": (5, 10)}
    half = layer_densities(shapes, 50 / 87, "erk")
    assert half == pytest.approx({"tiny": 1.0, "small": 49 / 27 / 3, "large": 49 / 27 * 0.3})
    most = layer_densities(shapes, 84 / 87, "erk")
    assert most == pytest.approx({"tiny": 1.0, "small": 1.0, "large": 47 / 50})


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("density", [0, 1])
def test_densities_of_0_and_1(density, distribution):
    shapes = {"tiny": (1, 1), "conv": (64, 64, 3, 3)}
    assert layer_densities(shapes, density, distribution) == {"tiny": density, "conv": density}


def test_uniform_gives_every_layer_the_same():
    shapes = {"a": (3, 5), "b": (7, 2, 3, 3)}
    assert layer_densities(shapes, 0.3, "uniform") == {"a": 0.3, "b": 0.3}


@pytest.mark.parametrize(
    ("shapes", "density", "distribution", "message"),
    [
        ({"a": (2, 2)}, -0.1, "erk", "density is -0.1: it must lie between 0 and 1"),
        ({"a": (2, 2)}, 1.5, "uniform", "density is 1.5"),
        ({"a": (2, 2)}, math.nan, "er", "density is nan"),
        ({"a": (2, 2)}, 0.5, "ERK", r"unknown distribution 'ERK' \(all: uniform, er, erk\)"),
        ({}, 0.5, "erk", "no layers"),
        ({"bias": (2,)}, 0.5, "erk", r"layer 'bias' is \(2,\)"),
        ({"a": (0, 2)}, 0.5, "erk", r"layer 'a' is \(0, 2\)"),
    ],
)
def test_bad_input_gets_one_clear_line(shapes, density, distribution, message):
    with pytest.raises(ValueError, match=message) as caught:
        layer_densities(shapes, density, distribution)
    assert "\n" not in str(caught.value)


@given(networks, shares, st.sampled_from(DISTRIBUTIONS))
def test_counts_sum_to_the_rounded_target_and_stay_within_one(shapes, density, distribution):
    densities = layer_densities(shapes, density, distribution)
    counts = allocate(densities, shapes)
    target = density * total(shapes)
    assert abs(sum(counts.values()) - target) <= 0.5 + 1e-6
    for name, shape in shapes.items():
        share = densities[name] * math.prod(shape)
        assert 0 <= counts[name] <= math.prod(shape)
        assert abs(counts[name] - share) < 1


@given(networks, st.integers(0, 1000), st.sampled_from(DISTRIBUTIONS))
def test_counts_sum_to_round_of_the_target(shapes, permille, distribution):
    density = permille / 1000
    counts = allocate(layer_densities(shapes, density, distribution), shapes)
    assert sum(counts.values()) == round(density * total(shapes))


def test_equal_remainders_go_to_the_first_layers():
    shapes = {"z": (2, 2), "a": (2, 2), "m": (2, 2)}
    assert allocate(dict.fromkeys(shapes, 0.4), shapes) == {"z": 2, "a": 2, "m": 1}


def test_the_largest_remainder_goes_first():
    shapes = {"a": (1, 10), "b": (1, 10)}
    assert allocate({"a": 0.14, "b": 0.26}, shapes) == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("densities", "message"),
    [({}, "no density for layer 'a'"), ({"a": 1.1}, "density of layer 'a' is 1.1")],
)
def test_allocation_refuses_what_it_cannot_place(densities, message):
    with pytest.raises(ValueError, match=message):
        allocate(densities, {"a": (2, 2)})
