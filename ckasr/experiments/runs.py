"""One run: it takes settings and returns a record.

Notebooks, the command line and the workflow all train through this module.
"""

import math
import os
import time
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from ckasr import devices
from ckasr.data import Dataset, load
from ckasr.execution import sparse_execution, summary
from ckasr.storage import check_writable, claim
from ckasr.training import DivergedError, Engine, accuracy, memory

from . import records
from .build import build_engine, evaluation_batch
from .measure import layer_cka, sparsity_report, weight_statistics
from .progress import epoch_line, title
from .provenance import commit, environment
from .settings import Settings


class OutOfTime(Exception):  # noqa: N818 - not an error: the run resumes from its checkpoint
    """The deadline has passed. The run stopped after an epoch and resumes from its checkpoint."""


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
    """Train one network and return its record.

    If the run has a record already, the record is read and nothing is trained. If it has a
    checkpoint because it was stopped, it resumes from there.

    Args:
        settings: settings of the run.
        results: folder of ``records/`` and ``checkpoints/``.
        device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``: a GPU if there is one.
        progress: function that gets one line per epoch; None: no lines.
        deadline: value of ``time.monotonic()`` after which the run stops at the end of an epoch.
        data: folder of the data sets; None: the environment variable CKASR_DATA.
        execution: ``auto``, ``dense`` or ``sparse``; see ``ckasr.execution.choose``.

    Raises:
        OutOfTime: if the deadline has passed. The checkpoint is kept.
        ClaimedError: if another process trains the same run into the same folder.
        ValueError, LookupError, FileNotFoundError: for bad settings or missing data, and under
            torchrun with several processes, before anything is written.
    """
    epochs = run_interleaved(
        settings,
        results,
        device=device,
        progress=progress,
        deadline=deadline,
        data=data,
        execution=execution,
    )
    with devices.find(device).stream(), closing(epochs):
        while True:
            try:
                next(epochs)
            except StopIteration as end:
                return end.value


def run_interleaved(
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
    """Like ``run``, but a generator, so that several runs can share a process.

    It yields whenever it has queued steps on the device (``Engine.queued_epochs``) and returns the
    record. Each call of ``next``
    must be inside the same ``Device.stream``.

    Args:
        sharing: number of runs in this process.
        settings, results, device, progress, deadline, data, execution: as in ``run``.
    """
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(
            f"a run trains in one process, but torchrun started {processes}: start it without "
            "torchrun; examples/train_ddp.py trains in several processes"
        )
    folder = results / "checkpoints"
    if (record := records.load(results, settings.id)) is not None:
        # The checkpoint is left if the process was killed just after it wrote the record.
        (folder / f"{settings.id}.pt").unlink(missing_ok=True)
        return record
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
    """Train the run, from its checkpoint if it has one, and write its record."""
    say = progress or (lambda line: None)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    commit()  # that of the code which trains, in case the checkout changes meanwhile
    dataset = _load(settings.dataset, data)
    target = devices.find(device)
    target.check_precision(settings.precision)
    target.set_process_flags()
    if sharing == 1:
        target.reset_peak_memory()
    engine = build_engine(settings, dataset, target, execution)
    engine.say = say
    example = dataset.example_input
    memory.check(engine.context.model, example, settings.batch_size, settings.precision)
    engine.checkpoint = results / "checkpoints" / f"{settings.id}.pt"
    say(f"{settings.id}  {title(settings)}  on {target.name}")

    status = "finished"
    try:
        for entry in engine.queued_epochs():
            if entry is None:
                yield
                continue
            say(epoch_line(entry, len(engine.curves["epoch"])))
            if time.monotonic() > deadline:
                raise OutOfTime(settings.id)
    except DivergedError as error:
        status = "diverged"
        say(f"  diverged: {error}")

    counted = engine.method.counted(engine.context, engine.state.masks)
    record: records.Record = {
        "schema": records.SCHEMA,
        "id": settings.id,
        "settings": settings.to_dict(),
        "status": status,
        "curves": _finite(engine.curves),
        "validation_accuracy": None,
        "test_accuracy": None,
        "sparsity": sparsity_report(*counted, example, dataset.num_classes),
        "measured": engine.method.measured(),
        "layer_cka": None,
        "weights": None,
        **(_finite(_outcome(engine, settings, dataset)) if status == "finished" else {}),
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


def _outcome(engine: Engine, settings: Settings, dataset: Dataset) -> dict[str, Any]:
    """Return the final measurements. The test set is read here, once, and nowhere else."""
    model, masks, validation = engine.context.model, engine.state.masks, engine.validation
    size = evaluation_batch(engine.execution, engine.device)
    test = dataset.test_batches(batch_size=size, device=engine.device.place)
    last = engine.curves["execution"][-1]
    measured, name = (engine.batches, "train") if validation is None else (validation, "validation")
    with sparse_execution(model, masks) if last == "sparse" else nullcontext():
        # Not the last of the curve, because a method may prune after the last epoch.
        validated, tested = (
            None
            if one is None
            else accuracy(model, one.in_order(), settings.precision, dataset.task)
            for one in (validation, test)
        )
    return {
        "validation_accuracy": validated,
        "test_accuracy": tested,
        "layer_cka": layer_cka(model, measured.in_order(128), name),
        "weights": weight_statistics(model, masks),
    }


@lru_cache(maxsize=1)
def _load(name: str, data: Path | str | None) -> Dataset:
    """Load a data set and keep it, because the next run of a sweep mostly needs the same one."""
    return load(name, data)


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON cannot hold, by None."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _by_phase(curves: dict[str, list[Any]]) -> dict[str, str]:
    """Return the execution of each phase."""
    return dict(zip(curves["phase"], curves["execution"], strict=True))
