"""The cost of the term: memory against numbers counted by hand, and figures from files alone."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks import cost, memory, scaling, store, timing
from benchmarks.memory import Memory
from benchmarks.scaling import OURS, PAIRWISE
from benchmarks.term import NO_TERM
from ckasr import devices
from ckasr.training.memory import kept_bytes

CPU = torch.device("cpu")
FEATURES = 8 * 3 * (16 * 32 * 32 + 32 * 16 * 16 + 64 * 8 * 8)  # 8 samples of 9 layers


# What is counted


def test_the_square_of_an_uncounted_tensor_keeps_no_memory():
    x = torch.randn(8, 5, requires_grad=True)
    assert kept_bytes(lambda: x.square().sum(), [x]) == 0
    assert kept_bytes(lambda: x.square().sum(), []) == 8 * 5 * 4


def test_a_storage_that_several_operations_keep_counts_once():
    """exp keeps its output of 8 x 5 float32, and the square of it the same storage again."""
    x = torch.randn(8, 5, requires_grad=True)
    assert kept_bytes(lambda: x.exp().square().sum(), [x]) == 8 * 5 * 4


def test_a_view_counts_its_whole_storage():
    x = torch.randn(8, 5, requires_grad=True)
    assert kept_bytes(lambda: x.exp()[:2].square().sum(), [x]) == 8 * 5 * 4


def test_the_largest_memory_of_a_call_is_above_that_before_it():
    class Counted(devices.Device):
        """A device with a tally of its memory: 100 bytes are in use at first."""

        used = largest = 100

        def reset_peak_memory(self) -> None:
            self.largest = self.used

        def peak_memory(self) -> int:
            return self.largest

        def take(self, size: int) -> None:
            self.used += size
            self.largest = max(self.largest, self.used)

    device = Counted(CPU)

    def call() -> None:
        device.take(30)
        device.take(-30)
        device.take(20)

    device.take(500)
    device.take(-500)
    assert memory.peak_bytes(call, device) == 30
    assert memory.peak_bytes(call, device) == 30


@pytest.mark.gpu
def test_the_peak_of_a_gpu_is_that_of_its_allocator():
    """A MiB of float32, and the sum beside it, of at most a block of the allocator."""
    device = devices.find("cuda")
    size = memory.peak_bytes(lambda: torch.ones(2**18, device="cuda").sum(), device)
    assert 2**20 < size <= 2**20 + 4096


# The term


@pytest.fixture(scope="module")
def rows() -> list[Memory]:
    return memory.alone([9, 27], [4, 8]) + memory.in_networks(CPU, ["resnet20"], [8, 16])


def by_size(rows: list[Memory]) -> dict[tuple[str, int, str], float]:
    return {(r.what, r.x, r.variant): r.megabytes for r in rows}


def test_every_combination_has_one_row(rows):
    sizes = [("layers", 9), ("layers", 27), ("samples", 4), ("samples", 8)]
    wanted = [(*size, name) for size in sizes for name in (PAIRWISE, OURS)]
    wanted += [("resnet20", b, name) for b in (8, 16) for name in (NO_TERM, PAIRWISE, OURS)]
    assert [(r.what, r.x, r.variant) for r in rows] == wanted


def test_our_term_keeps_the_centred_features_and_little_else(rows):
    """Once each, in float32; Gram matrices of 8 x 8 are the rest."""
    assert 1 <= by_size(rows)["layers", 9, OURS] / (FEATURES * 4 / 1e6) < 1.01


def test_the_pairwise_code_keeps_both_layers_of_every_ordered_pair(rows):
    """Of three layers a stage nine pairs, so each layer six times, in float64."""
    assert 1 <= by_size(rows)["layers", 9, PAIRWISE] / (FEATURES * 6 * 8 / 1e6) < 1.01


def test_memory_grows_with_the_layers_and_with_their_pairs(rows):
    """Three times the layers in each stage: three times our memory, nine times the pairwise one."""
    found = by_size(rows)
    for name, factor in ((OURS, 3), (PAIRWISE, 9)):
        grown = found["layers", 27, name] / found["layers", 9, name]
        assert grown == pytest.approx(factor, rel=0.01)


def test_a_network_of_nine_blocks_adds_what_the_term_keeps_alone(rows):
    """Whatever the batch size: its blocks have the shapes of the features, its term 8 samples."""
    found = by_size(rows)
    for name in (PAIRWISE, OURS):
        for batch in (8, 16):
            assert found["resnet20", batch, name] == found["layers", 9, name]
    bare = [found["resnet20", batch, NO_TERM] for batch in (8, 16)]
    assert bare[1] == pytest.approx(2 * bare[0], rel=0.01)


def test_time_has_one_row_for_each_combination():
    timings = scaling.measure(CPU, 1, layers=(3,), samples=(4, 8), batches=(4,))
    found = [(t.benchmark, t.x, t.variant) for t in timings]
    sizes = [("layers", 3), ("samples", 4), ("samples", 8), ("batch", 4)]
    assert found == [(f"scaling {w}", x, name) for w, x in sizes for name in (PAIRWISE, OURS)]


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: memory.in_networks(CPU, ["resnet21"], [8]), LookupError, "model 'resnet21'; near"),
        (lambda: memory.in_networks(CPU, ["resnet20"], [7]), ValueError, "batch size .* least 8"),
        (lambda: memory.in_networks(CPU, [], [8]), ValueError, "number of networks .* least 1"),
        (lambda: memory.alone([10], []), ValueError, "10 layers .* choose a multiple of 3"),
        (lambda: memory.alone([0], []), ValueError, "0 layers .* choose a multiple of 3"),
        (lambda: memory.alone([], [2]), ValueError, "at least 4 samples, got n = 2"),
        (lambda: scaling.measure(CPU, 0, (3,), (), ()), ValueError, "rounds must be at least 1"),
    ],
)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_folder_without_measurements_is_one_line(tmp_path, capsys):
    assert cost.main([str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"benchmarks.cost: no {tmp_path}/timings/memory.json: run notebook 11")
    assert said.count("\n") == 1
    assert cost.main([]) == 2


# Tables and figures


@pytest.fixture
def results(rows, tmp_path) -> Path:
    """A folder as notebook 11 leaves it, with made-up times."""
    cost.keep(rows, tmp_path)
    timings = []
    for x in (9, 18):
        seconds = {PAIRWISE: [1e-3 * x**2], OURS: [1e-3 * x]}
        timings += timing.summary("scaling layers", seconds, clock="CPU", x=x)
    store.save(
        {
            "benchmark": "scaling",
            "device": "Made Up CPU",
            "device_kind": "cpu",
            "cores": 2,
            "threads": 1,
            "date": "2026-01-02",
            "commit": "0123456789ab",
            "versions": {"torch": "2.12.1"},
            "timings": [dataclasses.asdict(t) for t in timings],
        },
        tmp_path / "timings",
    )
    return tmp_path


def test_figures_and_tables_are_drawn_again_from_the_files(results, monkeypatch, capsys):
    written = cost.write_all(results)
    assert {str(path.relative_to(results)) for path in written} == {
        f"{folder}/{name}.{kind}"
        for name in ("cost_memory", "cost_scaling_made-up-cpu")
        for folder, kind in (("figures", "png"), ("figures", "svg"), ("tables", "md"))
    }
    first = {path: path.read_bytes() for path in written}
    for path in written:
        path.unlink()
    monkeypatch.setattr(memory, "kept_bytes", None)  # nothing is measured
    monkeypatch.setattr(timing, "once", None)
    assert cost.main([str(results)]) == 0
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    assert {path: path.read_bytes() for path in written} == first


def test_figures_depend_on_the_files_only(results):
    path = results / cost.MEMORY
    kept = json.loads(path.read_text())
    kept[0]["megabytes"] *= 2
    before = (results / "tables" / "cost_memory.md", *cost.write_all(results))[0].read_text()
    path.write_text(json.dumps(kept))
    cost.write_all(results)
    after = (results / "tables" / "cost_memory.md").read_text()
    changed = [a for a, b in zip(after.splitlines(), before.splitlines(), strict=True) if a != b]
    assert len(changed) == 1
    assert f"{kept[0]['megabytes']:,.4g}" in changed[0]


def test_the_table_has_the_ratio_of_each_size(rows):
    lines = cost.table(rows).splitlines()[2:]
    assert len(lines) == 6
    assert lines[0].split("|")[-2].strip() == f"{rows[0].megabytes / rows[1].megabytes:.3g}"


def test_a_peak_that_does_not_rise_has_no_ratio():
    """On a GPU the memory of the term can be free again at the peak of the step."""
    flat = [Memory("resnet20", 64, PAIRWISE, 5.0), Memory("resnet20", 64, OURS, 0.0)]
    assert cost.ratios(flat) == {("resnet20", 64): None}
    assert "inf" not in cost.table(flat)


def test_the_figure_shows_all_rows_of_the_term(rows):
    figure = cost.figure(rows)
    drawn = [line.get_xdata().tolist() for axis in figure.axes for line in axis.lines]
    assert drawn == 2 * [[9, 27]] + 2 * [[4, 8]] + 2 * [[8, 16]]
    found = by_size(rows)
    heights = [line.get_ydata().tolist() for line in figure.axes[2].lines]
    assert heights == [[found["resnet20", b, n] for b in (8, 16)] for n in (PAIRWISE, OURS)]
