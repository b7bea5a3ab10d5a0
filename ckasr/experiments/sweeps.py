"""Sweeps: train the missing cells of a grid, in order of priority, within a time budget."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from ckasr.choices import check_choice
from ckasr.execution.choice import Execution
from ckasr.storage import check_writable

from . import records
from .partners import hosts
from .pools import default_jobs, pool_of
from .settings import Settings


def grid(
    base: Settings,
    *,
    sparsities: Sequence[float],
    betas: Sequence[float],
    seeds: Sequence[int],
    models: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    partners: Sequence[str] | None = None,
    terms: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    order_seeds: Sequence[int] | None = None,
    samples: Sequence[int] | None = None,
    every: Sequence[int] | None = None,
) -> list[Settings]:
    """Return the cells of a grid in order of priority, each once.

    Seeds change slowest, and the settings of the term fastest. So a sweep that
    stops early leaves complete pairs, and one seed of every sparsity before the second of any.

    Args:
        base: the other settings. If its beta is 0, the settings of the term are the defaults.
        sparsities, betas, seeds: values of these settings.
        models: names of models (``ckasr.models``).
        methods: names of methods, each followed by its options, such as ``"l0 finetune=0.5"``.
            ``{sparsity}`` in an option is replaced by that of the cell:
            ``"lth levels=0.8,{sparsity}"``. Method ``dense`` always has sparsity 0.
        partners: names of regularizers with their strengths, such as ``"dropout=0.2"``
            (``partners.py``): every run without and with each of them. A partner that is an option
            of a method takes the place of the method.
        terms: names of ``ckasr.terms.TERMS``, each with every beta. With beta 0 they are all the
            same run, the baseline.
        precisions, order_seeds, samples, every: values of these settings; the last two are of the
            term. For these, models, methods and terms, None means the value of ``base``.

    Raises:
        ValueError: for an option or a partner that is not name=value.
        LookupError: for a model, a method, a partner, a term or an option that does not exist.
    """
    cells = [
        replace(
            host,
            seed=seed,
            beta=beta,
            term=term,
            precision=precision,
            order_seed=order_seed,
            samples=count,
            every=steps,
        )
        for seed, model, method, sparsity in itertools.product(
            seeds, models or [base.model], methods or [base.method], sparsities
        )
        for host in _hosts(replace(base, model=model, **_method(base, method, sparsity)), partners)
        for beta, term, precision, order_seed, count, steps in itertools.product(
            betas,
            terms or [base.term],
            precisions or [base.precision],
            order_seeds or [base.order_seed],
            samples or [base.samples],
            every or [base.every],
        )
    ]
    return list({cell.id: cell for cell in cells}.values())


def _hosts(base: Settings, partners: Sequence[str] | None) -> list[Settings]:
    return hosts(base, partners) if partners else [base]


def _method(base: Settings, text: str, sparsity: float) -> dict[str, Any]:
    """Return the settings of ``name option=value ...`` at this sparsity."""
    name, *words = text.split() or [""]
    options = dict(base.method_options)
    for word in words:
        option, equals, value = word.partition("=")
        if not (option and equals):
            raise ValueError(f"method {text!r}: {word!r} must be name=value")
        options[option] = value.replace("{sparsity}", str(sparsity))
    # Dense training raises an error for a sparsity, and is the same run for each.
    return {
        "method": name,
        "method_options": options,
        "sparsity": 0.0 if name == "dense" else sparsity,
    }


@dataclass
class Outcome:
    """The result of a sweep.

    Args:
        done: ids of the runs that this sweep finished.
        known: ids of the runs that had a record before, or that another sweep finished meanwhile.
        left: ids of the runs that are left for the next sweep.
    """

    done: list[str]
    known: list[str]
    left: list[str]


@dataclass(frozen=True)
class Planned:
    """A cell of a sweep that has not started.

    Args:
        cell: its settings.
        known: whether it has a record.
        seconds: expected time of the run; None if no record of its data set, model and method is
            known.
    """

    cell: Settings
    known: bool
    seconds: float | None


def duration(seconds: float) -> str:
    """Return seconds in words: 40 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def plan(cells: Iterable[Settings], results: Path) -> list[Planned]:
    """Return what ``sweep`` would do with these cells, without training or writing anything."""
    records_there = records.load_all(results)
    have, costs = {record["id"] for record in records_there}, Costs(records_there)
    unique = {cell.id: cell for cell in cells}
    return [Planned(cell, i in have, costs.expected(cell)) for i, cell in unique.items()]


def sweep(
    cells: Iterable[Settings],
    results: Path,
    *,
    minutes: float = math.inf,
    jobs: int | None = None,
    device: str = "auto",
    progress: Callable[[str], None] = print,
    data: Path | str | None = None,
    lines: Path | None = None,
    execution: str = "auto",
) -> Outcome:
    """Run every cell that has no record yet and that no other process is running.

    The arms of one seed, sparsity and method are a group. They start together, and side by side if
    ``jobs`` is more than 1, so that a sweep that stops leaves no half of a pair. Another group
    starts if there is room for all of it, or if nothing else runs.

    Args:
        cells: the cells.
        results: folder of ``records/`` and ``checkpoints/``.
        minutes: time budget. A group starts only if it is expected to end within the budget. A cell
            that exceeds the budget stops after an epoch and keeps its checkpoint.
        jobs: number of runs side by side (``pools.py``): on a CPU, processes of one thread each; on
            a GPU, CUDA streams of one process. None: one per core on a CPU, 4 on a GPU.
        device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``: a GPU if there is one.
        progress: function that gets the lines of progress.
        data: folder of the data sets; None: the environment variable CKASR_DATA.
        lines: a JSON-lines file to which all records of ``results`` are written after each cell.
        execution: ``auto``, ``dense`` or ``sparse``; see ``ckasr.execution.choose``.

    Raises:
        ValueError: for a negative budget, less than one job, or an unknown execution.
        OSError: if the results cannot be written. Nothing is trained then.
    """
    if not minutes >= 0:
        raise ValueError(f"minutes={minutes} must be a number of at least 0")
    check_choice("execution", execution, Execution)
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs={jobs} must be at least 1")
    start = time.monotonic()
    deadline = start + 60 * minutes
    unique = {cell.id: cell for cell in cells}
    known = records.load_all(results)
    have = {record["id"] for record in known}
    outcome = Outcome([], [i for i in unique if i in have], [i for i in unique if i not in have])
    # A file that is not a valid record is not overwritten, because it may be somebody's work.
    damaged = [i for i in outcome.left if records.path_of(results, i).exists()]
    todo = [unique[i] for i in outcome.left if i not in damaged]
    progress(f"{len(todo)} of {len(unique)} cells to run, {len(outcome.known)} have a record")
    for run_id in damaged:
        path = records.path_of(results, run_id)
        progress(f"{run_id} is not run: {path} is not a valid record; delete it to run the cell")
    if todo:
        check_writable(results / "records")
        if lines is not None:
            check_writable(lines.parent)
    jobs = min(jobs or default_jobs(device), max(1, len(todo)))
    costs = Costs(known)

    def finish(cell: Settings, record: records.Record) -> None:
        outcome.done.append(cell.id)
        outcome.left.remove(cell.id)
        costs.add(record)
        if lines is not None:
            records.export_lines(results, lines)
        elapsed = (time.monotonic() - start) / 60
        progress(f"{len(outcome.done)}/{len(todo)} cells done, {elapsed:.1f} min")

    waiting = groups(todo)
    queue: list[Settings] = []  # cells of groups that have started, waiting for room
    width = max([jobs, *map(len, waiting)]) if jobs > 1 else 1
    with pool_of(width, results, device, data, progress, execution) as pool:
        while waiting or queue or pool.running:
            while waiting and not queue:
                if pool.running and pool.running + len(waiting[0]) > jobs:
                    break
                group = waiting.pop(0)
                # Another sweep may have finished some of it.
                group = [c for c in group if not records.path_of(results, c.id).exists()]
                queue = group if costs.within(group, deadline, jobs) else []
                while queue and pool.running < width:
                    pool.start(queue.pop(0), deadline)
            while queue and pool.running < width:
                pool.start(queue.pop(0), deadline)
            for cell, record in pool.ended():
                if record is not None:
                    finish(cell, record)
    for run_id in [i for i in outcome.left if i not in damaged]:
        if records.path_of(results, run_id).exists():
            outcome.left.remove(run_id)
            outcome.known.append(run_id)
    return outcome


def groups(cells: Sequence[Settings]) -> list[list[Settings]]:
    """Group the cells that differ only in the settings of the term or the order of the samples.

    The groups are in the order of their first cells.
    """
    found: dict[str, list[Settings]] = {}
    for cell in cells:
        shared = replace(cell.baseline(), order_seed=Settings.order_seed)
        found.setdefault(shared.id, []).append(cell)
    return list(found.values())


class Costs:
    """Expected time of a cell, from finished runs of its data set, model, method and sparsity.

    Times are per epoch of the settings, so all phases of a method count. If no run of the sparsity
    is known, the slowest of the other sparsities is used, because sparse execution is slower with
    more weights.
    """

    KIND = ("dataset", "model", "method")

    def __init__(self, known: Iterable[records.Record]) -> None:
        self.seconds: dict[tuple[Any, ...], dict[float, list[float]]] = {}
        for record in known:
            self.add(record)

    def add(self, record: records.Record) -> None:
        if "seconds" not in record:
            return
        settings = record["settings"]
        kind = self.seconds.setdefault(tuple(settings[name] for name in self.KIND), {})
        seconds = record["seconds"] / settings["epochs"]
        kind.setdefault(settings["sparsity"], []).append(seconds)

    def expected(self, cell: Settings) -> float | None:
        """Return the expected seconds of a cell, or None if no run of its kind is known."""
        kind = self.seconds.get(tuple(getattr(cell, name) for name in self.KIND))
        if not kind:
            return None
        if cell.sparsity in kind:
            return median(kind[cell.sparsity]) * cell.epochs
        return max(map(median, kind.values())) * cell.epochs

    def within(self, cells: Sequence[Settings], deadline: float, jobs: int) -> bool:
        """Return whether cells that start together are expected to end before the deadline.

        A cell of unknown cost counts as no time, so it is tried.
        """
        each = [self.expected(cell) or 0 for cell in cells]
        longest = max(max(each, default=0), sum(each) / jobs)
        return longest <= deadline - time.monotonic() > 0
