"""The benchmark of sparse execution: what it counts, what it measures, and what it draws."""

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import figures, sparse, store, targets, timing
from benchmarks import step as step_benchmark
from benchmarks.timing import Timing, summary
from benchmarks.work import work
from ckasr import CKASR, models
from ckasr.execution import SparseExecution, sparse_execution
from ckasr.sparsity import dense_masks, report

CPU = torch.device("cpu")
EXECUTIONS = tuple(sparse.EXECUTIONS)


def recording(make: Callable[..., object], made: list[object]) -> Callable[..., object]:
    def recorded(*args: object, **kwargs: object) -> object:
        made.append(make(*args, **kwargs))
        return made[-1]

    return recorded


@pytest.fixture(scope="module")
def measured() -> tuple[list[Timing], list[CKASR], list[SparseExecution]]:
    """The timings, and every term and every sparse execution that were made for them."""
    pytest.importorskip("numba")
    cell = "resnet20", 0.998
    terms, executions = [], []
    with pytest.MonkeyPatch.context() as patch:
        for module, name, made in (
            (sparse, "CKASR", terms),
            (step_benchmark, "sparse_execution", executions),
        ):
            patch.setattr(module, name, recording(getattr(module, name), made))
        patch.setattr(sparse, "warmup", lambda device: 0)
        patch.setattr(sparse, "COPIED", 1 << 10)
        timings = sparse.measure(CPU, 1, [("resnet20", 0.9), cell], cell, cell, 16, 8, 8)
    return timings, terms, executions


@pytest.fixture
def timings(measured) -> list[Timing]:
    return measured[0]


# What is counted


def test_planes_and_multiply_adds_of_one_weight_are_counted_by_hand():
    pytest.importorskip("numba")
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.BatchNorm2d(1), nn.ReLU())
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    mask[0, 0, 0, 2] = True
    x = torch.randn(4, 1, 5, 7)
    with sparse_execution(model, {"0.weight": mask}) as handle:
        done = work(handle, lambda: model(x).square().sum().backward())
    plane = 4 * (5 + 1) * (7 + 1) * 4  # bytes: images, rows and columns with their border
    # Images packed; convolution; norm and ReLU; gradient packed and gated; its sums; the weight's.
    assert done.read == (1 + 1 + 1 + 1 + 2 + 2 + 3) * plane
    assert done.written == (1 + 1 + 1 + 1 + 1) * plane
    assert done.multiply_adds == 2 * 4 * 5 * 7, "forward and weight gradient, none of the images"
    assert done.planes == 1


def test_with_all_weights_there_are_as_many_multiply_adds_as_dense():
    """As PyTorch's own counter and as the report of the masks have it."""
    pytest.importorskip("numba")
    torch.manual_seed(0)
    model = models.create("resnet20", num_classes=10)
    masks = dense_masks(model)
    x = torch.randn(2, 3, 32, 32)

    def step() -> None:
        model(x).logsumexp(1).sum().backward()

    with FlopCounterMode(display=False) as counter:
        step()
    with sparse_execution(model, masks) as handle:
        done = work(handle, step)
    assert done.multiply_adds == counter.get_total_flops() / 2
    images = model.conv1.weight.numel() * 32 * 32  # whose gradient nobody needs
    assert done.multiply_adds == 2 * (3 * report(model, masks)["macs_dense"] - images)
    assert done.planes == 16 + 2 * 3 * (16 + 32 + 64)


def test_a_network_that_runs_dense_is_not_counted():
    pytest.importorskip("numba")
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3))
    masks = dense_masks(model)
    with (
        sparse_execution(model, masks) as handle,
        pytest.raises(RuntimeError, match=r"not all .*\n(.*\n)*  as before: 2"),
    ):
        work(handle, lambda: model(torch.randn(2, 1, 8, 8)).sum().backward())


# What is measured


def test_every_cell_has_both_executions_and_the_work_of_a_step(timings):
    cells = ["", "", "", "", ", CKA-SR", ", CKA-SR", ", evaluation", ", evaluation"]
    sparsities = [0.9, 0.9, *[0.998] * 6]
    titles = [f"sparse resnet20, sparsity {s}{c}" for s, c in zip(sparsities, cells, strict=True)]
    assert [t.benchmark for t in timings if t.variant != sparse.SPARSEPROP] == titles
    assert [t.rounds for t in timings if "CKA-SR" in t.benchmark] == [4, 4]
    assert all(t.images == 8 and t.milliseconds > 0 for t in timings)
    dense, ours = (t for t in timings if t.benchmark == titles[2] and t.variant in EXECUTIONS)
    done = ours.work
    assert done[sparse.MULTIPLY_ADDS] < 0.01 * dense.work[sparse.MULTIPLY_ADDS]
    assert done["weights on a path"] < done["weights kept"]
    floor = (done["MB read"] + done["MB written"]) / done["copy, GB/s"]  # MB / (GB/s) = ms
    assert done["floor, ms"] == pytest.approx(floor, rel=1e-3)
    assert done["floor / time"] == pytest.approx(floor / ours.milliseconds, rel=1e-3)


def test_sparseprop_is_measured_beside_if_it_is_installed(monkeypatch):
    pytest.importorskip("numba")
    swapped = []

    def swap_modules_with_sparse(model, shape, inplace):
        swapped.append((next(model.parameters()).is_contiguous(), shape, inplace))

    utils = SimpleNamespace(swap_modules_with_sparse=swap_modules_with_sparse)
    monkeypatch.setitem(sys.modules, "sparseprop", SimpleNamespace(utils=utils))
    monkeypatch.setitem(sys.modules, "sparseprop.utils", utils)
    monkeypatch.setattr(sparse.sparseprop, "INSTALLED", True)
    data = sparse.batches(16, CPU, 8)
    timings = sparse._steps(("resnet20", 0.998), data, 1)
    assert [t.variant for t in timings] == [sparse.DENSE, sparse.SPARSE, sparse.SPARSEPROP]
    assert timings[2].work == {"sparsity": 0.998}
    assert swapped == [(True, (8, 3, 32, 32), True)]


def test_the_term_and_sparse_execution_are_active_in_the_variants_that_name_them(measured):
    _, terms, executions = measured
    assert [term.every for term in terms] == [5]
    # Of two steps, of a step without and one with the term, and of an evaluation.
    assert len(executions) == 5
    assert all(one.units and not one.dense for one in executions)
    assert not any(bound.plain_calls for one in executions for bound in one.units)


def test_dense_and_sparse_train_the_same_network():
    pytest.importorskip("numba")
    data = sparse.batches(16, CPU, 8)
    weights = []
    for execution in sparse.EXECUTIONS.values():
        step = step_benchmark.OurStep("resnet20", data, "fp32", sparsity=0.9, execution=execution)
        step()
        weights.append(torch.cat([p.flatten() for p in step.model.parameters()]))
        assert torch.equal(weights[-1] != 0, weights[0] != 0)
    assert (weights[1] - weights[0]).norm() < 1e-3 * weights[0].norm()


def test_copy_speed_counts_what_is_read_and_what_is_written(monkeypatch):
    monkeypatch.setattr(sparse, "once", lambda call, device: 0.5)
    assert sparse.copy_speed(1, 100) == 2 * 400 / 0.5


# Targets


def made_up(cell: str, ratio: float, variants=EXECUTIONS) -> list[Timing]:
    seconds = dict(zip(variants, ([1.0] * 4, [ratio] * 4), strict=True))
    return summary(f"sparse {cell}", seconds, clock="CPU", images=128)


@pytest.mark.parametrize(
    ("cell", "speed"),
    [
        ("resnet20, sparsity 0.8", 1),
        ("resnet20, sparsity 0.9", 2.2),
        ("resnet20, sparsity 0.95", 3),
        ("resnet20, sparsity 0.98", 4),
        ("resnet20, sparsity 0.995", 7),
        ("resnet20, sparsity 0.998", 18),
        ("resnet32, sparsity 0.995", 6),
        ("resnet32, sparsity 0.998", 14),
    ],
)
def test_speed_targets_are_met_up_to_their_limit_and_not_beyond(cell, speed):
    for kind in ("cpu", "cuda"):  # measured on the CPU whatever the device is
        (met,) = targets.targets(made_up(cell, 1 / speed), kind)
        (missed,) = targets.targets(made_up(cell, 1.01 / speed), kind)
        assert (met.met, missed.met, met.limit) == (True, False, f">= {speed:g} x")


def test_the_term_may_add_a_twentieth():
    variants = sparse.NO_TERM, sparse.TERM
    for ratio, met in ((1.05, True), (1.051, False)):
        found = targets.targets(made_up("resnet20, sparsity 0.995, CKA-SR", ratio, variants), "cpu")
        assert [(t.limit, t.met) for t in found] == [("<= +5%", met)]


def test_every_measured_step_has_its_target_and_evaluation_none(timings):
    titles = {sparse.title(*cell) for cell in sparse.CELLS}
    assert titles == set(targets.SPARSE_SPEEDS)
    found = targets.targets(timings, "cpu")
    assert len(found) == 3
    assert not any("evaluation" in t.what for t in found)


# What is kept and drawn


def test_the_figure_shows_epochs_and_the_share_of_multiply_adds(timings):
    """Seconds of 45,000 images, and the ideal that falls from dense as the multiply-adds do."""
    found = store.record("sparse", timings, CPU)
    (axis,) = figures.draw(found).axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    lines |= {c.get_label(): c[0] for c in axis.containers}
    steps = [t for t in timings if t.work]
    for label, variant in (
        ("dense execution", sparse.DENSE),
        ("sparse execution", sparse.SPARSE),
    ):
        chosen = [t for t in steps if t.variant == variant]
        x, y = lines[label].get_data()
        assert list(x) == pytest.approx([0.1, 0.002])
        assert list(y) == pytest.approx([t.milliseconds / 1e3 * 45_000 / 8 for t in chosen])
    adds = [t.work[sparse.MULTIPLY_ADDS] for t in steps if t.variant == sparse.SPARSE]
    all_adds = [t.work[sparse.MULTIPLY_ADDS] for t in steps if t.variant == sparse.DENSE]
    wanted = lines["dense execution"].get_ydata() * adds / all_adds
    ideal = lines["ideal: in proportion to the multiply-adds"].get_ydata()
    assert list(ideal) == pytest.approx(list(wanted))
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axis.get_xticklabels()] == ["90", "99.8"]


def test_the_table_says_how_work_is_counted(timings, tmp_path):
    folder = store.save(store.record("sparse", timings, CPU), tmp_path).parent
    text = store.write_table(folder).read_text()
    assert "| weights kept | weights on a path | planes | MB read |" in text
    assert store.COUNTED in text
    plain = [t for t in timings if not t.work]
    assert timing.work_table(plain) == ""


def test_no_numba_is_one_line_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    result = CliRunner().invoke(command.app, ["data", "sparse", "--rounds", "1"])
    assert result.exit_code == 2
    assert result.stderr == (
        "benchmarks: sparse execution needs numba: pip install 'ckasr[sparse]'\n"
    )


def test_sparse_execution_is_measured_on_the_cpu_even_if_there_is_a_gpu(monkeypatch):
    devices = {}

    def module(path):
        name = path.removeprefix("benchmarks.")
        return SimpleNamespace(measure=lambda device, _: devices.update({name: device.type}) or [])

    def record(name, timings, device):
        return {"benchmark": name, "device": device.type}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "import_module", module)
    monkeypatch.setattr(command.store, "record", record)
    monkeypatch.setattr(command.store, "report", lambda found: f"{len(found)} record")
    result = CliRunner().invoke(command.app, ["data", "sparse"])
    assert (result.exit_code, devices) == (0, {"data": "cuda", "sparse": "cpu"})
    assert result.stdout.split() == ["1", "record"] * 2, "a report for each device"
