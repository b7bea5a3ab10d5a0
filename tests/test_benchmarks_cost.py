"""The memory of the term, against numbers that can be counted by hand."""

import pytest
import torch
from torch import Tensor

from benchmarks import cost
from benchmarks.scaling import OURS, PAIRWISE


def stages() -> list[list[Tensor]]:
    return [[torch.randn(8, 5, requires_grad=True)]]


def test_a_square_of_the_features_keeps_nothing_of_its_own():
    assert cost.kept_bytes(lambda s: s[0][0].square().sum(), stages()) == 0


def test_an_exponential_keeps_its_result_once():
    """exp keeps its output of 8 x 5 float32, and the square of it the same storage again."""
    assert cost.kept_bytes(lambda s: s[0][0].exp().square().sum(), stages()) == 8 * 5 * 4


@pytest.fixture(scope="module")
def rows() -> list[cost.Memory]:
    return cost.memory([9, 27], [4, 16])


def test_every_size_is_counted_for_both_implementations(rows):
    sizes = [("layers", 9), ("layers", 27), ("samples", 4), ("samples", 16)]
    assert [(r.what, r.x, r.variant) for r in rows] == [
        (*size, name) for size in sizes for name in (PAIRWISE, OURS)
    ]


def test_memory_grows_with_the_layers_and_with_their_pairs(rows):
    """Three times the layers in each stage: three times our memory, nine times the pairwise one."""
    found = {(r.what, r.x, r.variant): r.kilobytes for r in rows}
    ours = found["layers", 27, OURS] / found["layers", 9, OURS]
    pairwise = found["layers", 27, PAIRWISE] / found["layers", 9, PAIRWISE]
    assert ours == pytest.approx(3, rel=0.25)
    assert pairwise == pytest.approx(9, rel=0.25)


def test_the_table_has_the_ratio_of_each_size(rows):
    lines = cost.memory_table(rows).splitlines()[2:]
    assert len(lines) == 4
    ratio = rows[0].kilobytes / rows[1].kilobytes
    assert lines[0].split("|")[5].strip() == f"{ratio:.3g}"


def test_the_figure_shows_all_rows(rows):
    figure = cost.memory_figure(rows)
    drawn = [line.get_xdata().tolist() for axis in figure.axes for line in axis.lines]
    assert drawn == [[9, 27], [9, 27], [4, 16], [4, 16]]
