"""Time of training steps and evaluation with sparse and with dense execution.

Both use the engine's own step with the same random ERK masks, in one process with one thread and
the allocator settings of a sweep's workers. Dense execution uses channels_last. The layers of
SparseProp are measured too if it is installed.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from ckasr import CKASR, devices
from ckasr.data import ImageBatches
from ckasr.experiments.build import evaluation_batch
from ckasr.sparsity import report
from ckasr.training.step import accuracy

from . import sparseprop
from .data import IMAGES, batches
from .step import MakeTerm, OurStep, warmup
from .term import BETA
from .timing import Timing, interleaved, once
from .work import work

Cell = tuple[str, float]  # network and sparsity
# The option `auto` chooses sparse execution from 0.8 on.
CELLS = [("resnet20", sparsity) for sparsity in (0.8, 0.9, 0.95, 0.98, 0.995, 0.998)]
CELLS += [("resnet32", sparsity) for sparsity in (0.995, 0.998)]
DENSE, SPARSE, SPARSEPROP = "dense", "ckasr, sparse", "SparseProp"
EXECUTIONS = {DENSE: "dense", SPARSE: "sparse"}
NO_TERM, TERM = "ckasr, sparse, no term", "ckasr, sparse, CKA-SR every fifth step"
MULTIPLY_ADDS = "million multiply-adds"
COPIED = 1 << 26  # Number of float32 values: 268 MB, larger than the caches.


def measure(
    device: torch.device,
    rounds: int,
    cells: Sequence[Cell] = CELLS,
    term: Cell = ("resnet20", 0.995),
    evaluation: Cell = ("resnet20", 0.998),
    images: int = IMAGES,
    held_out: int = 5_000,
    batch_size: int = 128,
) -> list[Timing]:
    """Time training steps in float32 with augmentation, the cost of CKA-SR, and an evaluation.

    In each round, a variant runs one step that is not timed and four steps that are timed. The cost
    of CKA-SR is small and is measured in four times as many rounds of five steps each, because the
    term is computed on every fifth step.

    ``term`` and ``evaluation`` are the cells for the cost of CKA-SR and for the evaluation;
    ``images`` and ``held_out`` are the numbers of images of training and evaluation.
    """
    if not sparseprop.INSTALLED:
        print("  SparseProp is not installed and not measured", file=sys.stderr, flush=True)
    data = batches(images, device, batch_size)
    timings = [timing for cell in cells for timing in _steps(cell, data, rounds)]
    terms = {NO_TERM: None, TERM: lambda model: CKASR(model, BETA, every=5)}
    steps = {key: _step(term, data, "sparse", make) for key, make in terms.items()}
    timings += interleaved(
        title(*term, "CKA-SR"), steps, rounds=4 * rounds, device=device, calls=5, untimed=5,
        warmup=warmup(device), images=batch_size,
    )  # fmt: skip
    evaluations = {
        key: _evaluation(evaluation, data, held_out, how) for key, how in EXECUTIONS.items()
    }
    return timings + interleaved(
        title(*evaluation, "evaluation"), evaluations, rounds=rounds, device=device, warmup=1,
        images=held_out,
    )  # fmt: skip


def title(name: str, sparsity: float, what: str = "") -> str:
    """Name of the benchmark of a network at a sparsity."""
    return f"sparse {name}, sparsity {sparsity:g}" + (f", {what}" if what else "")


def _step(cell: Cell, data: ImageBatches, execution: str, term: MakeTerm = None) -> OurStep:
    name, sparsity = cell
    return OurStep(name, data, "fp32", term, sparsity, execution)


def _steps(cell: Cell, data: ImageBatches, rounds: int) -> list[Timing]:
    """Time a step with both executions, and count the operations and bytes of both."""
    steps = {key: _step(cell, data, execution) for key, execution in EXECUTIONS.items()}
    dense, ours = steps.values()
    if sparseprop.INSTALLED:
        steps[SPARSEPROP] = _step(cell, data, "sparseprop")
    with FlopCounterMode(display=False) as counter:
        dense()
    done, known = work(ours.sparse, ours), report(dense.model, dense.masks)
    timings = interleaved(
        title(*cell), steps, rounds=rounds, device=data.device, calls=4, untimed=1,
        warmup=warmup(data.device), images=data.batch_size,
    )  # fmt: skip
    speed = copy_speed(rounds, COPIED)
    floor = 1e3 * (done.read + done.written) / speed
    columns: dict[str, dict[str, float]] = {
        DENSE: {MULTIPLY_ADDS: counter.get_total_flops() / 2e6},
        SPARSE: {
            MULTIPLY_ADDS: done.multiply_adds / 1e6,
            "weights kept": known["kept"],
            "weights on a path": known["effective_kept"],
            "planes": done.planes,
            "MB read": done.read / 1e6,
            "MB written": done.written / 1e6,
            "copy, GB/s": speed / 1e9,
            "floor, ms": floor,
            "floor / time": floor / timings[1].milliseconds,
        },
    }
    counted = ({"sparsity": cell[1]} | columns.get(t.variant, {}) for t in timings)
    rounded = ({key: float(f"{v:.5g}") for key, v in numbers.items()} for numbers in counted)
    return [replace(t, work=numbers) for t, numbers in zip(timings, rounded, strict=True)]


def _evaluation(cell: Cell, data: ImageBatches, images: int, execution: str) -> Callable[[], float]:
    """Return a function that evaluates a model which was trained for two steps.

    The batch size of the evaluation is that of the engine for this execution.
    """
    step = _step(cell, data, execution)
    for _ in range(2):
        step()
    size = evaluation_batch(execution, devices.of(data.device))
    held_out = batches(images, data.device, size, "none")
    return lambda: accuracy(step.model, held_out.in_order(), "fp32")


def copy_speed(rounds: int, numbers: int) -> float:
    """Bytes read and written per second when one thread copies an array of ``numbers`` float32.

    The result is the median over ``rounds`` copies.
    """
    source, target = torch.ones(numbers), torch.zeros(numbers)
    seconds = [once(lambda: target.copy_(source), source.device) for _ in range(rounds + 1)]
    return 2 * 4 * numbers / median(seconds[1:])
