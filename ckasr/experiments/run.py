"""The one door: settings in, record out. Notebooks, command line and workflow all enter here."""

import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ckasr import __version__, methods, models, terms
from ckasr.data import Batches, Dataset, keyed_generator, load, split
from ckasr.execution import sparse_execution, summary
from ckasr.sparsity import report
from ckasr.storage import check_writable, claim
from ckasr.training import DivergedError, Engine, Recipe, accuracy, memory

from . import records
from .measure import layer_cka, weight_statistics
from .settings import Settings

EVALUATION_BATCH = 1000
SPARSE_EVALUATION_BATCH = 125
"""Sparse execution gains nothing from larger batches, and its buffers grow with them."""


class OutOfTime(Exception):  # noqa: N818 - no error: the checkpoint is kept, the run goes on later
    """The deadline passed; the run stopped after an epoch and resumes from its checkpoint."""


def run(
    settings: Settings,
    results: Path,
    *,
    device: str = "auto",
    progress: Callable[[str], None] | None = print,
    deadline: float = math.inf,
    data: Path | str | None = None,
    execution: str = "auto",
) -> records.Record:
    """Train one network and return its record; a finished run is read, not trained again.

    results: folder of ``records/`` and ``checkpoints/``. A killed run resumes from its checkpoint.
    progress: gets one line an epoch; None: silence. deadline: of ``time.monotonic()``; past it the
    run stops after the epoch at hand with OutOfTime. data: root of the data sets; None:
    ``CKASR_DATA``. execution: ``auto``, ``dense`` or ``sparse``; see ``ckasr.execution.choose``.
    Raises what bad settings or missing data raise, before anything is written, and ClaimedError
    while another process trains the same run into the same folder.
    """
    turn = turns(
        settings,
        results,
        device=device,
        progress=progress,
        deadline=deadline,
        data=data,
        execution=execution,
    )
    with own_stream(device), closing(turn):
        while True:
            try:
                next(turn)
            except StopIteration as end:
                return end.value


def on_gpu(device: str) -> bool:
    """Whether a device's name means a GPU here."""
    return torch.device(_device(device)).type == "cuda"


def own_stream(device: str) -> AbstractContextManager[Any]:
    """A CUDA stream to train on, as CUDA graphs cannot be captured on the default one.

    From then on fp32 means fp32 in this process: by torch's default, convolutions would be in TF32.
    """
    if not on_gpu(device):
        return nullcontext()
    torch.backends.cudnn.allow_tf32 = False
    # Every batch has the same shape, so it pays to time cuDNN's kernels once and take the fastest.
    torch.backends.cudnn.benchmark = True
    return torch.cuda.stream(torch.cuda.Stream(torch.device(_device(device))))


def turns(
    settings: Settings,
    results: Path,
    *,
    device: str = "auto",
    progress: Callable[[str], None] | None = print,
    deadline: float = math.inf,
    data: Path | str | None = None,
    sharing: int = 1,
    execution: str = "auto",
) -> Generator[None, None, records.Record]:
    """``run`` in turns, for several runs in one process: it yields once an epoch is queued on the
    device, and what it returns is the record. sharing: how many runs there are.
    """
    kept = results / "checkpoints" / f"{settings.id}.pt"
    if (record := records.load(results, settings.id)) is not None:
        kept.unlink(missing_ok=True)  # killed after the record was written
        return record
    folder = results / "checkpoints"
    check_writable(results / "records")
    with claim(folder / f"{settings.id}.lock"):
        # Another process may have finished the run before we claimed it.
        if (record := records.load(results, settings.id)) is not None:
            return record
        for part in folder.glob(f"{settings.id}.pt.*.part"):  # of a process that was killed
            part.unlink()
        return (
            yield from _train(
                settings, results, device, progress, deadline, data, sharing, execution
            )
        )


def _train(
    settings: Settings,
    results: Path,
    device: str,
    progress: Callable[[str], None] | None,
    deadline: float,
    data: Path | str | None,
    sharing: int,
    execution: str,
) -> Generator[None, None, records.Record]:
    """The run itself, from its checkpoint if there is one."""
    say = progress or (lambda line: None)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    _commit()
    method = methods.create(settings.method, settings.method_options)
    dataset = _load(settings.dataset, data)
    target = torch.device(_device(device))
    if settings.precision == "tf32" and target.type != "cuda":
        raise ValueError(f"precision tf32 needs a GPU, and this run is on {target}; choose fp32")
    if target.type == "cuda" and sharing == 1:
        torch.cuda.reset_peak_memory_stats(target)
    engine, validation = _build(settings, method, dataset, target, execution)
    engine.say = say
    batch = (settings.batch_size, *dataset.input_shape)
    memory.check(engine.context.model, batch, settings.precision)
    engine.checkpoint = results / "checkpoints" / f"{settings.id}.pt"
    say(f"{settings.id}  {title(settings)}  on {device_name(target)}")

    status = "finished"
    try:
        for entry in engine.interleaved():
            if entry is None:
                yield
                continue
            say(_line(entry, len(engine.curves["epoch"])))
            if time.monotonic() > deadline:
                raise OutOfTime(settings.id)
    except DivergedError as error:
        status = "diverged"
        say(f"  diverged: {error}")

    record: records.Record = {
        "schema": records.SCHEMA,
        "id": settings.id,
        "settings": settings.to_dict(),
        "status": status,
        "curves": _finite(engine.curves),
        "validation_accuracy": None,
        "test_accuracy": None,
        "sparsity": report(
            *method.counted(engine.context, engine.state.masks), dataset.input_shape
        ),
        "measured": method.measured(),
        "layer_cka": None,
        "weights": None,
        **_finite(_results(engine, settings, dataset, validation, status)),
        "seconds": sum(engine.curves["seconds"]),
        "execution": summary(_by_phase(engine.curves)),
        "started": started,
        **environment(target),
        "runs_in_process": sharing,
    }
    records.save(record, results)
    engine.checkpoint.unlink(missing_ok=True)
    if status == "finished":
        count = len(engine.curves["epoch"])
        say(f"  test accuracy {record['test_accuracy']:.2%} after {count} epochs")
    return record


def _build(
    settings: Settings,
    method: methods.Method,
    dataset: Dataset,
    device: torch.device,
    execution: str = "dense",
) -> tuple[Engine, Batches | None]:
    # Drawn on the CPU, so that a seed means the same weights on every device.
    torch.manual_seed(keyed_generator("weights", settings.seed).initial_seed())
    model = models.create(
        settings.model, num_classes=dataset.num_classes, input_shape=dataset.input_shape
    ).to(device, memory_format=torch.channels_last)
    train, held_out = split(dataset.train_labels, settings.validation, settings.seed)

    def batches(index: torch.Tensor, size: int, augment: str) -> Batches:
        return Batches(
            dataset.train_images[index],
            dataset.train_labels[index],
            mean=dataset.mean,
            std=dataset.std,
            batch_size=size,
            augment=augment,
            seed=settings.seed,
            order_seed=settings.order_seed,
            device=device,
        )

    augment = dataset.augment if settings.augment == "default" else settings.augment
    training = batches(train, settings.batch_size, augment)
    size = evaluation_batch(execution, device)
    validation = batches(held_out, size, "none") if len(held_out) else None
    context = methods.Context(
        model=model,
        sparsity=settings.sparsity,
        distribution=settings.distribution,
        seed=settings.seed,
        num_classes=dataset.num_classes,
        samples=training.in_order,
        steps_per_epoch=len(training),
    )
    recipe = Recipe(
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        milestones=settings.milestones,
        decay=settings.decay,
        precision=settings.precision,
    )
    regularizer = _term(settings) if settings.beta > 0 else None
    engine = Engine(
        context,
        method,
        recipe,
        training,
        settings.seed,
        validation,
        regularizer,
        execution=execution,
    )
    engine.owner = settings.id
    return engine, validation


def _term(settings: Settings) -> Callable[[torch.nn.Module], terms.Term]:
    return lambda model: terms.create(
        settings.term,
        model,
        settings.beta,
        seed=settings.seed,
        variant=settings.variant,
        samples=settings.samples or None,
        every=settings.every,
        pairs=settings.pairs or None,
    )


def _results(
    engine: Engine, settings: Settings, dataset: Dataset, validation: Batches | None, status: str
) -> dict[str, Any]:
    """The final measurements; the test set is read here and nowhere else, once."""
    if status != "finished":
        return {}
    model = engine.context.model
    test = Batches(
        dataset.test_images,
        dataset.test_labels,
        mean=dataset.mean,
        std=dataset.std,
        batch_size=evaluation_batch(engine.execution, engine.device),
        device=engine.device,
    )
    last = engine.curves["execution"][-1]
    execution = sparse_execution(model, engine.state.masks) if last == "sparse" else nullcontext()
    held_out = validation is not None
    measured, name = (validation, "validation") if held_out else (engine.batches, "train")
    with execution:
        # Not the curve's last: a method may prune after the last epoch.
        validated = accuracy(model, validation.in_order(), settings.precision) if held_out else None
        tested = accuracy(model, test.in_order(), settings.precision)
    return {
        "validation_accuracy": validated,
        "test_accuracy": tested,
        "layer_cka": layer_cka(model, measured.in_order(128), name),
        "weights": weight_statistics(model, engine.state.masks),
    }


def evaluation_batch(execution: str, device: torch.device) -> int:
    """Images of a batch that is only measured."""
    sparse = execution != "dense" and device.type == "cpu"
    return SPARSE_EVALUATION_BATCH if sparse else EVALUATION_BATCH


@lru_cache(maxsize=1)
def _load(name: str, data: Path | str | None) -> Dataset:
    """Kept for the next cell of a sweep, which mostly wants the same set."""
    return load(name, data)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    number = re.fullmatch(r"cuda(?::(\d{1,3}))?", name)
    if number is None:
        raise ValueError(f"device {name!r} is not supported: use cpu, cuda, cuda:1 or auto")
    if not torch.cuda.is_available():
        raise ValueError(f"device {name!r} asked for, but torch sees no CUDA device; use cpu")
    if 0 < (count := torch.cuda.device_count()) <= int(number[1] or 0):
        raise ValueError(f"device {name!r} asked for, but the last of {count} is cuda:{count - 1}")
    return name


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} thread(s)"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment(device: torch.device) -> dict[str, Any]:
    """Where and with what something was measured: device, versions, commit, peak memory."""
    import resource
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version(), "ckasr": __version__}
    for package in ("torch", "torchvision", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        scale = 1 if platform.system() == "Darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": peak,
        "versions": versions,
        "commit": _commit(),
    }


@lru_cache
def _commit() -> str:
    """The checkout's commit when this process began to train, ``+`` behind it if ckasr differed.

    CKASR_COMMIT where there is no git.
    """
    if given := os.environ.get("CKASR_COMMIT"):
        return given
    folder = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(folder))
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _finite(value: Any) -> Any:
    """The value with null for every number that JSON cannot hold: NaN and the infinities."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def title(s: Settings) -> str:
    """The run in words, for a progress line."""
    term = f"{terms.find(s.term).label} {s.variant} beta {s.beta:g}" if s.beta else "baseline"
    order = f" order {s.order_seed}" if s.order_seed >= 0 else ""
    return (
        f"{s.dataset} {s.model} {s.method} sparsity {s.sparsity:g} {term} seed {s.seed}{order}, "
        f"{s.epochs} epochs"
    )


def _line(entry: dict[str, Any], count: int) -> str:
    parts = [f"  {entry['phase']} epoch {count:>3}", f"loss {entry['loss']:.4f}"]
    if entry["term"] is not None:
        parts.append(f"term {entry['term']:.3f} (gradient x {entry['gradient_ratio']:.2g})")
    if entry["validation_accuracy"] is not None:
        parts.append(f"validation {entry['validation_accuracy']:.2%}")
    return "  ".join([*parts, f"{entry['seconds']:.1f} s"])


def _by_phase(curves: dict[str, list[Any]]) -> dict[str, str]:
    """Execution of each phase."""
    return dict(zip(curves["phase"], curves["execution"], strict=True))
