"""The benchmarks: they run, they compute ratios and targets rightly, and figures are repeatable."""

import copy
import dataclasses
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from typer.testing import CliRunner

from benchmarks import MODULES, NAMES, WHAT, figures, pairwise, store, targets, timing, workers
from benchmarks import data as data_benchmark
from benchmarks import epoch as epoch_benchmark
from benchmarks import imports as import_benchmark
from benchmarks import plain as plain_loop
from benchmarks import scaling as scaling_benchmark
from benchmarks import step as step_benchmark
from benchmarks import term as term_benchmark
from benchmarks.__main__ import app
from benchmarks.timing import Timing, in_turn, interleaved, summary
from benchmarks.workers import Variant
from ckasr import CKASR, cka_sr_loss, find_stages, models

CPU = torch.device("cpu")
SMALL = {"name": "resnet20", "device": "cpu", "images": 16}
LABELS = {
    "term resnet20": [
        term_benchmark.NO_TERM,
        term_benchmark.EVERY_STEP,
        term_benchmark.EVERY_FIFTH,
        term_benchmark.CONVOLUTIONS,
    ],
    "term resnet20, whole batch": [
        term_benchmark.NO_TERM,
        term_benchmark.WHOLE_BATCH,
        term_benchmark.AUTHORS,
        term_benchmark.AUTHORS_FLOAT32,
    ],
    "step resnet20": ["plain loop, fp32", "ckasr, bf16"],
    "epoch resnet20": ["plain loop, fp32", "ckasr, bf16"],
    "import": [import_benchmark.TORCH, import_benchmark.BOTH],
}


def made_up(benchmark: str, ratios: list[float], **values: object) -> list[Timing]:
    """Timings of a reference of a second, and of the others at these ratios to it."""
    seconds = {
        label: [ratio] * 4 for label, ratio in zip(LABELS[benchmark], [1.0, *ratios], strict=False)
    }
    return summary(benchmark, seconds, clock="CPU", **values)


def record(name: str, timings: list[Timing], date: str = "2026-01-02") -> store.Record:
    return {
        "benchmark": name,
        "device": "Made(R) Up CPU",
        "device_kind": "cpu",
        "cores": 2,
        "threads": 1,
        "date": date,
        "commit": "0123456789ab",
        "versions": {"torch": "2.12.1"},
        "timings": [dataclasses.asdict(t) for t in timings],
    }


# Each benchmark, at its smallest


def test_every_benchmark_has_its_module():
    for name in NAMES:
        assert callable(import_module(f"benchmarks.{MODULES.get(name, name)}").measure)
    assert {"term", "step", "data", "epoch", "import", "scaling"} <= set(NAMES)


def test_term_runs_ours_and_the_authors_way(monkeypatch):
    monkeypatch.setattr(term_benchmark, "warmup", lambda device: 0)
    timings = term_benchmark.measure(CPU, 1, ("resnet20",), images=8, batch_size=8)
    title = "term resnet20, batch 8"
    assert {t.benchmark for t in timings} == {title, f"{title}, whole batch"}
    assert len(targets.targets(timings, "cpu")) == 5, "a target has lost its variant"
    assert all(t.milliseconds > 0 for t in timings)


def test_data_runs():
    plain, ours = data_benchmark.measure(CPU, 1, images=256)
    assert (plain.images, ours.images, ours.variant) == (128, 128, "ckasr")


def test_scaling_runs_over_layers_samples_and_batches():
    timings = scaling_benchmark.measure(CPU, 1, layers=(9, 18), samples=(4,), batches=(8, 16))
    points = [(t.benchmark, t.x) for t in timings if t.variant == scaling_benchmark.OURS]
    assert points == [
        ("scaling layers", 9),
        ("scaling layers", 18),
        ("scaling samples", 4),
        ("scaling batch", 8),
        ("scaling batch", 16),
    ]


def test_import_runs_in_fresh_processes():
    timings = import_benchmark.measure(CPU, 1, warmup=0)
    assert [t.clock for t in timings] == ["wall", "wall"]
    assert targets.targets(timings, "cpu")[0].limit == "<= 0.3 s"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_step_and_epoch_train(precision):
    """What the workers of these benchmarks call, without the workers."""
    sums: list[float] = []

    def note(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        weights = [p.detach().double().sum() for p in optimizer.param_groups[0]["params"]]
        sums.append(torch.stack(weights).sum().item())

    handle = register_optimizer_step_post_hook(note)
    try:
        for call in (
            plain_loop.step(**SMALL, batch_size=8),
            step_benchmark.step(**SMALL, batch_size=8, precision=precision),
        ):
            sums.clear()
            for _ in range(3):  # past the end of an epoch of two batches
                call()
            assert len(set(sums)) == len(sums) == 3, "each call takes one step"
    finally:
        handle.remove()


@pytest.mark.parametrize("terms", [term_benchmark.FEW_SAMPLES, term_benchmark.ALL_SAMPLES])
def test_no_variant_of_the_term_waits_for_the_device(terms):
    """On a GPU they are captured, and a capture fails where the host reads a number."""
    data = data_benchmark.batches(32, CPU, 8)
    for name, term in terms.items():
        call = step_benchmark.OurStep("resnet20", data, "fp32", term)
        call()
        with torch.profiler.profile(acc_events=True) as profile:
            call()
        ran = {event.key for event in profile.key_averages()}
        assert "aten::convolution" in ran
        assert not ran & {"aten::item", "aten::_local_scalar_dense", "aten::nonzero"}, name


def test_plain_and_our_epoch_count_the_same_images(monkeypatch):
    seen = []
    forward = models.create("resnet20", num_classes=2).__class__.forward

    def counting(self, x):
        seen.append((self.training, len(x)))
        return forward(self, x)

    monkeypatch.setattr(models.create("resnet20", num_classes=2).__class__, "forward", counting)
    small = {"name": "resnet20", "device": "cpu", "images": 130, "test": 8}
    plain_loop.epoch(**small)()
    plain, seen = seen, []
    epoch_benchmark.epoch(**small, precision="fp32")()
    assert plain == seen == [(True, 128), (False, 8)]
    seen = []
    epoch_benchmark.epoch(**small, precision="fp32", models=2)()
    assert seen == 2 * plain


def settings_of_process(device: str) -> Callable[[], None]:
    """A callable of a worker that takes a second of wall time and little of the CPU."""
    assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == (3, "3")
    assert not workers.ALLOCATOR.keys() & os.environ.keys()
    return partial(time.sleep, 1)


def test_workers_compute_on_request_and_exit(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    ours = Variant(partial(step_benchmark.step, precision="fp32"))
    small = {**SMALL, "images": 8, "batch_size": 8}
    asleep = Variant(settings_of_process, processes=2, threads=3, models=4, allocator=False)
    how = {"rounds": 1, "warmup": 0, "clock": "CPU", "per_call": 8}
    (timing,) = workers.measure(
        "step", {"ours": ours}, lambda found: found[0].start().result(), **how, **small
    )
    assert (timing.images, timing.ratio) == (8, 1)
    assert timing.milliseconds > 0
    both = {"asleep": asleep}
    (timing,) = workers.measure("epoch", both, workers.together, **how, device="cpu")
    assert 1000 / 8 <= timing.milliseconds < 3000 / 8, "wall time per model"
    assert not multiprocessing.active_children()
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=0"


def test_a_worker_that_fails_says_so():
    nothing = Variant(partial(step_benchmark.step, precision="fp32"))
    small = {**SMALL, "name": "nothing", "batch_size": 8}
    how = {"rounds": 1, "warmup": 0, "clock": "CPU", "per_call": 8}
    with pytest.raises(LookupError, match="model 'nothing'"):
        workers.measure(
            "step", {"ours": nothing}, lambda found: found[0].start().result(), **how, **small
        )


@pytest.mark.slow
@pytest.mark.parametrize("benchmark_of", [step_benchmark, epoch_benchmark])
def test_whole_step_and_epoch_benchmarks(benchmark_of):
    timings = benchmark_of.measure(CPU, 1, ("resnet20",), images=128)
    assert timings[0].ratio == 1
    assert len(targets.targets(timings, "cpu")) == 2


# The plain reference is the same term


@pytest.mark.parametrize("samples", [8, 16])
def test_ours_equals_the_authors_way_in_value_and_gradient(samples):
    """Within 1e-5 in float32, through the network, of the reference in float64."""
    torch.manual_seed(0)
    model = models.create("resnet20", num_classes=10)
    x = torch.randn(16, 3, 32, 32)
    for stages in (find_stages(model), term_benchmark.convolutions(model)):
        plain = copy.deepcopy(model)
        reference = pairwise.PairwiseTerm(plain, 1.0, stages, samples)
        plain(x)
        expected = reference()
        expected.backward()
        ours = copy.deepcopy(model)
        with CKASR(ours, 1.0, stages=stages, samples=samples) as reg:
            ours(x)
            value = reg()
            value.backward()
        assert abs(value.item() / expected.item() - 1) < 1e-5
        wanted, got = (
            torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None])
            for m in (plain, ours)
        )
        assert (got - wanted).norm() / wanted.norm() < 1e-5


def test_pairwise_float32_is_the_float64_term():
    torch.manual_seed(0)
    stages = [[torch.randn(8, 4, 5, 5) for _ in range(3)], [torch.randn(8, 9)]]
    exact = pairwise.pairwise_term(stages)
    assert exact.dtype == torch.float64
    single = pairwise.pairwise_term(stages, torch.float32)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(exact.item(), rel=1e-5)
    doubles = [[x.double() for x in stage] for stage in stages]
    assert cka_sr_loss(doubles).item() == pytest.approx(exact.item(), rel=1e-12)


# Ratios


def test_ratios_pair_the_rounds_and_times_follow_from_them():
    """Medians of the rounds' ratios, not a ratio of medians: here the two differ."""
    reference, other = summary("b", {"a": [1, 2, 4, 8], "b": [3, 4, 4, 4]}, clock="CPU")
    assert (reference.ratio, reference.milliseconds) == (1, 3000)
    assert (other.ratio, other.ratio_low, other.ratio_high) == (1.5, 1, 3)
    assert (other.milliseconds, other.lowest, other.highest) == (4500, 3000, 4500)


def test_every_row_of_a_committed_table_has_one_estimator():
    """Also where the record is older than this rule."""
    paths = sorted(store.FOLDER.glob("*/*.json"))
    assert paths
    for path in paths:
        references: dict[object, float] = {}
        for t in store.timings_of(json.loads(path.read_text())):
            reference = references.setdefault((t.benchmark, t.x), t.milliseconds)
            assert t.milliseconds == pytest.approx(t.ratio * reference, rel=1e-4)
            assert t.lowest <= t.milliseconds <= t.highest


def test_the_committed_tables_are_those_of_the_committed_records(tmp_path):
    folders = sorted({path.parent for path in store.FOLDER.glob("*/*.json")})
    assert folders
    for folder in folders:
        copy_of = tmp_path / folder.name
        shutil.copytree(folder, copy_of)
        assert store.write_table(copy_of).read_text() == (folder / "table.md").read_text()


def test_the_table_of_a_scaling_has_the_ends_of_each_curve():
    kept = store.ends(store.timings_of(lines()))
    assert sorted({t.x for t in kept}) == [9, 36]
    assert len(kept) == 3 * 2 * 2


def test_images_per_second():
    (plain,) = summary("step", {"a": [0.5]}, clock="CPU", images=128)
    assert plain.images_per_second == 256
    assert "| 256 " in timing.table([plain])


def test_variants_take_turns_and_warm_up_does_not_count():
    made = []
    calls = {name: lambda name=name: made.append(name) for name in "abc"}
    seconds = in_turn(calls, 2, lambda call: call() or len(made), warmup=1)
    assert "".join(made) == "abccbaabc", "every second round goes backwards"
    assert seconds == {"a": [6, 7], "b": [5, 8], "c": [4, 9]}


def test_twice_the_work_takes_twice_the_time(monkeypatch):
    monkeypatch.setattr(timing.time, "process_time", lambda: spent)
    spent = 0

    def work(amount):
        nonlocal spent
        spent += amount

    variants = {"once": lambda: work(1), "twice": lambda: work(2)}
    once, twice = interleaved("work", variants, rounds=5, device=CPU, calls=5)
    assert (once.milliseconds, twice.milliseconds) == (1000, 2000), "of one call, not of five"
    assert (twice.ratio, twice.rounds) == (2, 5)


# Targets


@pytest.mark.parametrize(
    ("benchmark", "below", "above"),
    [
        ("term resnet20", [1.05, 1.02, 1.10], [1.051, 1.021, 1.101]),
        ("term resnet20, whole batch", [1.2, 2.0, 2.0], [1.2, 1.99, 1.99]),
        ("step resnet20", [1 / 2.41], [1 / 2.39]),
        ("epoch resnet20", [1 / 2.41], [1 / 2.39]),
        ("import", [1.3], [1.301]),
    ],
)
def test_targets_are_met_up_to_their_limit_and_not_beyond(benchmark, below, above):
    assert all(t.met for t in targets.targets(made_up(benchmark, below), "cpu"))
    missed = targets.targets(made_up(benchmark, above), "cpu")
    assert [t.met for t in missed] == [False] * len(missed)
    assert len(missed) == {"term resnet20": 3, "term resnet20, whole batch": 2}.get(benchmark, 1)
    assert targets.table(missed).count("not met") == len(missed)


def test_targets_of_a_gpu():
    overheads = targets.targets(made_up("term resnet20", [1.05, 1.02, 1.06]), "cuda")
    assert [t.met for t in overheads] == [True, True, False], "convolutions: 5 % on a GPU"
    assert not targets.targets(made_up("step resnet20", [0.1]), "cuda")
    for ratio, met in ((0.0895, True), (0.0897, False)):  # 0.35 s for 50,000 of 12,800 a second
        found = targets.targets(made_up("epoch resnet20", [ratio], images=12_800), "cuda")
        assert [t.met for t in found] == [met]


def test_a_term_whose_cost_is_below_the_noise_has_an_infinite_ratio():
    found = targets.targets(made_up("term resnet20, whole batch", [0.99, 2.0, 2.0]), "cpu")
    assert {(t.measured, t.met) for t in found} == {("inf x", True)}


# What is kept


def bars(name: str = "term") -> store.Record:
    return record(name, made_up("term resnet20", [1.04, 1.01, 1.2]))


def lines() -> store.Record:
    variants = {scaling_benchmark.PAIRWISE: 2, scaling_benchmark.OURS: 1}
    timings = []
    for what in ("layers", "samples", "batch"):
        for x in (9, 18, 36):
            seconds = {name: [1e-3 * x**power] * 2 for name, power in variants.items()}
            timings += summary(f"scaling {what}", seconds, clock="CPU", x=x)
    return record("scaling", timings)


@pytest.mark.parametrize("make", [bars, lines])
def test_figures_are_the_same_bytes_again(tmp_path, make):
    folder = store.save(make(), tmp_path).parent
    first = {path.name: path.read_bytes() for path in figures.write_all(folder)}
    assert sorted(p.rpartition(".")[2] for p in first) == ["md", "png", "svg"]
    assert {path.name: path.read_bytes() for path in figures.write_all(folder)} == first


def test_scaling_figure_names_the_growth():
    figure = figures.draw(lines())
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["authors' way: exponent 2.0", "ckasr: exponent 1.0"]


def test_bars_show_the_added_time_or_the_whole_time_if_much_is_saved():
    axis = figures.draw(bars()).axes[0]
    assert [bar.get_x() for bar in axis.patches] == [1] * 4
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([0, 0.04, 0.01, 0.2])
    axis = figures.draw(record("step", made_up("step resnet20", [0.4], images=128))).axes[0]
    assert [bar.get_x() for bar in axis.patches] == [0, 0]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([1, 0.4])
    assert [text.get_text() for text in axis.texts] == [
        "reference: 128 images/s",
        "2.5 x as fast; 320 images/s",
    ]


def test_figures_state_date_and_device():
    assert figures.draw(bars())._supxlabel.get_text() == (
        "Made(R) Up CPU, 2 cores, threads unless stated otherwise: 1; torch 2.12.1; 2026-01-02; "
        "commit 0123456789ab"
    )


def test_a_record_overwrites_its_own_file_only(tmp_path):
    folder = store.save(bars(), tmp_path).parent
    assert folder.name == "made-up-cpu"
    store.save(record("import", made_up("import", [1.2])), tmp_path)
    store.save(record("import", made_up("import", [1.5]), date="2026-01-03"), tmp_path)
    assert [found["date"] for found in store.load(folder)] == ["2026-01-02", "2026-01-03"]
    text = store.write_table(folder).read_text()
    words = " ".join(text.split())
    assert "term resnet20: ckasr, blocks, every step | <= +5% | +4.0%" in words
    assert "| 0.50 s | not met |" in words
    assert WHAT["import"] in text
    assert text.index("## term") < text.index("## import")


def test_command_line_keeps_what_it_measured(tmp_path):
    arguments = ["data", "--rounds", "1", "--device", "cpu", "--save", "--folder", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (path,) = Path(tmp_path).glob("*/data.json")
    kept = json.loads(path.read_text())
    assert [t["variant"] for t in kept["timings"]] == ["torchvision on PIL images", "ckasr"]
    assert result.stdout.strip() == (path.parent / "table.md").read_text().strip()
    assert {p.name for p in path.parent.iterdir()} == {
        "data.json",
        "data.png",
        "data.svg",
        "table.md",
    }
    assert "![data](data.png)" in (path.parent / "table.md").read_text()
    assert kept["threads"] == 1
    assert {"torch", "python"} <= kept["versions"].keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tern"], "benchmarks: unknown benchmark 'tern'; nearest: term (all: term, step, data"),
        (["data", "--device", "tpu"], "benchmarks: device 'tpu' is not supported: use cpu, cuda"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_no_results_to_draw_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert figures.main() == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_every_network_measured_has_the_layers_that_the_issue_counts():
    counts = {"resnet20": (9, 18), "resnet32": (15, 30)}
    for name, (blocks, convolutions) in counts.items():
        model: nn.Module = models.create(name, num_classes=100)
        assert sum(map(len, find_stages(model))) == blocks
        assert sum(map(len, term_benchmark.convolutions(model))) == convolutions
