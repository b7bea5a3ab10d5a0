"""Time of training steps and evaluation with sparse and with dense execution.

Both use the engine's own step with the same random ERK masks, in one process with one thread and
the allocator settings of a sweep's workers. Dense execution uses channels_last. The layers of
SparseProp are measured too if it is installed.
"""

import contextlib
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ckasr import CKASR, devices
from ckasr.data import ImageBatches
from ckasr.execution import sparse_execution
from ckasr.experiments.build import evaluation_batch
from ckasr.sparsity import Masks, report
from ckasr.training.step import accuracy

from .data import IMAGES, batches
from .step import our_step, warmup
from .term import BETA
from .timing import Timing, interleaved, once
from .work import work

CELLS = {
    "resnet20": (0.8, 0.9, 0.95, 0.98, 0.995, 0.998),
    "resnet32": (0.995, 0.998),
}
"""Networks and their sparsities. The option `auto` chooses sparse execution from 0.8 on."""
DENSE, SPARSE, SPARSEPROP = "dense", "ckasr, sparse", "SparseProp"
NO_TERM, TERM = "ckasr, sparse, no term", "ckasr, sparse, CKA-SR every fifth step"
MULTIPLY_ADDS = "million multiply-adds"
HELD_OUT = 5_000
COPIED = 1 << 26  # Number of float32 values: 268 MB, larger than the caches.

Cell = tuple[str, float]


def measure(
    device: torch.device,
    rounds: int,
    cells: Mapping[str, tuple[float, ...]] = CELLS,
    term: Cell = ("resnet20", 0.995),
    evaluation: Cell = ("resnet20", 0.998),
    images: int = IMAGES,
    held_out: int = HELD_OUT,
    batch_size: int = 128,
) -> list[Timing]:
    """Time training steps in float32 with batches of 128, including augmentation.

    In each round, a variant runs one step that is not timed and four steps that are timed. The cost
    of CKA-SR is small and is measured in four times as many rounds of five steps each, because the
    term is computed on every fifth step.

    Args:
        device: device of the models, a CPU.
        rounds: number of measured rounds.
        cells: networks and their sparsities.
        term: network and sparsity for the cost of CKA-SR.
        evaluation: network and sparsity for the evaluation.
        images: number of training images.
        held_out: number of images of the evaluation.
        batch_size: batch size of training.
    """
    sparseprop = find_spec("sparseprop") is not None
    if not sparseprop:
        print("  SparseProp is not installed and not measured", file=sys.stderr, flush=True)
    data = batches(images, device, batch_size)
    timings = []
    for name, sparsities in cells.items():
        for sparsity in sparsities:
            timings += _steps((name, sparsity), data, rounds, sparseprop)

    few = {}
    for label, regularizer in {NO_TERM: None, TERM: lambda m: CKASR(m, BETA, every=5)}.items():
        few[label] = _step(term, data, sparse_execution, regularizer)[0]
    how = {"device": device, "warmup": warmup(device)}
    timings += interleaved(
        title(*term, "CKA-SR"), few, rounds=4 * rounds, calls=5, untimed=5, images=batch_size, **how
    )
    evaluations = {DENSE: _evaluation(evaluation, data, held_out, "dense")}
    evaluations[SPARSE] = _evaluation(evaluation, data, held_out, "sparse")
    how["warmup"] = 1
    return timings + interleaved(
        title(*evaluation, "evaluation"), evaluations, rounds=rounds, images=held_out, **how
    )


def title(name: str, sparsity: float, what: str = "") -> str:
    """Name of the benchmark of a network at a sparsity."""
    return f"sparse {name}, sparsity {sparsity:g}" + (f", {what}" if what else "")


def _steps(cell: Cell, data: ImageBatches, rounds: int, sparseprop: bool) -> list[Timing]:
    dense, (model, masks), _ = _step(cell, data)
    sparse, _, handle = _step(cell, data, sparse_execution)
    variants = {DENSE: dense, SPARSE: sparse}
    if sparseprop:
        variants[SPARSEPROP], *_ = _step(cell, data, partial(_use_sparseprop, data.batch_size))
    with FlopCounterMode(display=False) as counter:
        dense()
    done, known = work(handle, sparse), report(model, masks)
    timings = interleaved(
        title(*cell), variants, rounds=rounds, device=data.device, calls=4, untimed=1,
        warmup=warmup(data.device), images=data.batch_size,
    )  # fmt: skip
    speed = copy_speed(rounds, COPIED)
    floor = (done.read + done.written) / speed
    share = 1e3 * floor / timings[1].milliseconds
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
            "floor, ms": 1e3 * floor,
            "floor / time": share,
        },
    }
    found = []
    for t in timings:
        numbers = {"sparsity": cell[1]} | columns.get(t.variant, {})
        found.append(replace(t, work={k: float(f"{v:.5g}") for k, v in numbers.items()}))
    return found


def _step(
    cell: Cell,
    data: ImageBatches,
    bind: Callable[[nn.Module, Masks], object] = lambda model, masks: None,
    regularizer: Callable[[nn.Module], CKASR] | None = None,
) -> tuple[Callable[[], None], tuple[nn.Module, Masks], object]:
    """Return a training step, its model and masks, and the result of ``bind``."""
    made: list[Any] = []

    def binding(model: nn.Module, masks: Masks) -> None:
        made.extend(((model, masks), bind(model, masks)))

    name, sparsity = cell
    step = our_step(name, data, "fp32", regularizer, sparsity=sparsity, bind=binding)
    return step, *made


def _use_sparseprop(batch_size: int, model: nn.Module, masks: Masks) -> None:
    """Replace layers by those of SparseProp where SparseProp measures that they are faster.

    This is the use that its documentation describes. Its kernels need memory in the order
    (N, C, H, W), so the dense layers use this order too.
    """
    from sparseprop.utils import swap_modules_with_sparse

    model.to(memory_format=torch.contiguous_format)
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    with contextlib.redirect_stdout(io.StringIO()):  # It prints a line for every layer.
        swap_modules_with_sparse(model, (batch_size, 3, 32, 32), inplace=True)


def _evaluation(cell: Cell, data: ImageBatches, images: int, execution: str) -> Callable[[], float]:
    """Return a function that evaluates a model which was trained for two steps.

    The batch size of the evaluation is that of the engine for this execution.
    """
    bind = sparse_execution if execution == "sparse" else lambda model, masks: None
    step, (model, _), _ = _step(cell, data, bind)
    for _ in range(2):
        step()
    held_out = batches(
        images, data.device, evaluation_batch(execution, devices.of(data.device)), "none"
    )
    return lambda: accuracy(model, held_out.in_order(), "fp32")


def copy_speed(rounds: int, numbers: int) -> float:
    """Bytes read and written per second when one thread copies an array of ``numbers`` float32.

    The result is the median over ``rounds`` copies.
    """
    source, target = torch.ones(numbers), torch.zeros(numbers)
    seconds = [once(lambda: target.copy_(source), source.device) for _ in range(rounds + 1)]
    return 2 * 4 * numbers / median(seconds[1:])
