"""Partners of the term: hosts that differ in the strength of one regularizer only."""

from dataclasses import replace

import pytest

from ckasr.experiments import Settings, grid
from ckasr.experiments.partners import PARTNERS, hosts

BASE = Settings(dataset="digits", sparsity=0.9, epochs=4)


@pytest.mark.parametrize("name", PARTNERS)
def test_the_hosts_of_a_partner_differ_in_its_strength_alone(name):
    partner = PARTNERS[name]
    off, on = hosts(BASE, [f"{name}=0.25"])
    assert partner.strength(off) == partner.off
    assert partner.strength(on) == 0.25
    before, after = off.to_dict(), on.to_dict()
    if partner.method:
        assert off.method == on.method == partner.method
        before, after = before["method_options"], after["method_options"]
        assert replace(on, method_options={}) == replace(off, method_options={})
    changed = {field for field in before if before[field] != after[field]}
    assert changed == {partner.field}


def test_a_partner_without_a_strength_has_its_usual_one():
    assert hosts(BASE, ["dropout"]) == [BASE, replace(BASE, dropout=0.2)]
    assert PARTNERS["l1"].strength(BASE) is None


def test_each_host_is_listed_once():
    found = hosts(BASE, ["dropout=0.2", "label_smoothing=0.1", "weight_decay=5e-4"])
    assert found == [
        BASE,
        replace(BASE, dropout=0.2),
        replace(BASE, label_smoothing=0.1),
        replace(BASE, weight_decay=0.0),
    ]


def test_a_grid_has_every_host_with_and_without_the_term():
    cells = grid(BASE, sparsities=[0.9], betas=[0, 0.1], seeds=[0, 1], partners=["l1", "hsic"])
    assert len(cells) == 2 * 2 * 4
    assert {cell.baseline().id for cell in cells} == {cell.id for cell in cells if not cell.beta}
    # One seed of all factorials comes before the next.
    assert [cell.seed for cell in cells] == [0] * 8 + [1] * 8


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("droput=0.2", LookupError, "unknown partner 'droput'; nearest: dropout"),
        ("dropout=much", ValueError, "partner 'dropout=much' must be name=strength"),
        ("dropout=0", ValueError, "partner 'dropout=0' has no effect at this strength"),
        ("l0=1e-9", ValueError, "partner 'l0=1e-9' has no effect at this strength"),
        ("dropout=1", ValueError, "setting dropout = 1.0 must be"),
    ],
)
def test_wrong_partners_are_refused_in_one_line(text, error, message):
    with pytest.raises(error, match=f"^{message}") as caught:
        hosts(BASE, [text])
    assert "\n" not in str(caught.value)
