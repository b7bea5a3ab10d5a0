"""Sweeps: the missing cells of a grid, in order of priority, inside a budget of time."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from ckasr.execution import EXECUTIONS
from ckasr.storage import check_writable

from . import records
from .pools import default_jobs, pool_of
from .settings import Settings


def grid(
    base: Settings,
    *,
    sparsities: Sequence[float],
    betas: Sequence[float],
    seeds: Sequence[int],
    methods: Sequence[str] | None = None,
    terms: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    order_seeds: Sequence[int] | None = None,
    samples: Sequence[int] | None = None,
    every: Sequence[int] | None = None,
) -> list[Settings]:
    """Cells in the order in which they are worth having, each once.

    Seeds go slowest, betas, terms, precisions, order seeds, samples and intervals fastest: whenever
    a sweep stops, it leaves complete pairs, and every sparsity once before any twice.

    base: the other settings. Where its beta is 0, those of the term are the defaults.
    methods: names, each with its options behind it: ``"l0 finetune=0.5"``; ``{sparsity}`` in one
    stands for the cell's own: ``"lth levels=0.8,{sparsity}"``. ``dense`` has sparsity 0 whatever
    is asked for. terms: names of ``ckasr.terms.TERMS``, each with every beta; with beta 0 they are
    one run, the baseline. samples, every: of the term, each with every beta. methods, terms,
    precisions, order_seeds, samples, every: None: that of ``base``. Raises ValueError for an
    option that is not name=value, LookupError for a method, a term or an option that does not
    exist.
    """
    cells = [
        replace(
            base,
            seed=seed,
            beta=beta,
            term=term,
            precision=precision,
            order_seed=order_seed,
            samples=count,
            every=steps,
            **_method(base, method, sparsity),
        )
        for seed, method, sparsity, beta, term, precision, order_seed, count, steps in (
            itertools.product(
                seeds,
                methods or [base.method],
                sparsities,
                betas,
                terms or [base.term],
                precisions or [base.precision],
                order_seeds or [base.order_seed],
                samples or [base.samples],
                every or [base.every],
            )
        )
    ]
    return list({cell.id: cell for cell in cells}.values())


def _method(base: Settings, text: str, sparsity: float) -> dict[str, Any]:
    """The settings that ``name option=value ...`` stands for at this sparsity."""
    name, *words = text.split() or [""]
    options = dict(base.method_options)
    for word in words:
        option, equals, value = word.partition("=")
        if not (option and equals):
            raise ValueError(f"method {text!r}: {word!r} must be name=value")
        options[option] = value.replace("{sparsity}", str(sparsity))
    # Dense training refuses a sparsity, and would be the same run at each.
    return {
        "method": name,
        "method_options": options,
        "sparsity": 0.0 if name == "dense" else sparsity,
    }


@dataclass
class Outcome:
    """What a sweep did: ids of runs finished now, finished before, and left for the next sweep.

    What another sweep finished meanwhile counts as finished before.
    """

    done: list[str]
    known: list[str]
    left: list[str]


@dataclass(frozen=True)
class Planned:
    """A cell of a sweep before it begins.

    known: whether it has a record. seconds: expected time of the run; None: no run of its data set,
    model and method is known.
    """

    cell: Settings
    known: bool
    seconds: float | None


def duration(seconds: float) -> str:
    """Seconds in words: 40 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def plan(cells: Iterable[Settings], results: Path) -> list[Planned]:
    """What `sweep` would do with these cells; nothing is written or trained."""
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
    """Run every cell that has no record yet, and that no other process is running.

    The arms of one seed, sparsity and method are a group: they start together, side by side where
    ``jobs`` is more than 1, so that no pair is torn apart. Another group starts where all of it
    finds room, or once nothing else runs.

    minutes: budget; no group starts that is not expected to end inside it (by the time an epoch of
    its kind took so far), and a cell past it stops after an epoch, with its checkpoint kept.
    jobs: runs side by side (``pools.py``): on a CPU processes of one thread each, on a GPU CUDA
    streams of one process; None: one a core on a CPU, 4 on a GPU.
    lines: a JSON-lines file that gets all records of ``results`` whenever a cell is done.
    execution: ``auto``, ``dense`` or ``sparse``, as for ``run``.
    Raises ValueError for a budget or a number of jobs that is none, OSError where the results
    cannot be written, before anything is trained.
    """
    if not minutes >= 0:
        raise ValueError(f"minutes={minutes} must be a number, not below 0")
    if execution not in EXECUTIONS:
        raise ValueError(f"execution {execution!r} is unknown: choose {', '.join(EXECUTIONS)}")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs={jobs} must be at least 1")
    start = time.monotonic()
    deadline = start + 60 * minutes
    unique = {cell.id: cell for cell in cells}
    known = records.load_all(results)
    have = {record["id"] for record in known}
    outcome = Outcome([], [i for i in unique if i in have], [i for i in unique if i not in have])
    # A file that is no valid record is not written over: it may be somebody's work.
    damaged = [i for i in outcome.left if records.path_of(results, i).exists()]
    todo = [unique[i] for i in outcome.left if i not in damaged]
    progress(f"{len(todo)} of {len(unique)} cells to run, {len(outcome.known)} have a record")
    for run_id in damaged:
        path = records.path_of(results, run_id)
        progress(f"{run_id} is not run: {path} is no valid record; delete it to run the cell")
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
    queue: list[Settings] = []  # cells of groups that have begun, where there was no room yet
    width = max([jobs, *map(len, waiting)]) if jobs > 1 else 1
    with pool_of(width, results, device, data, progress, execution) as pool:
        while waiting or queue or pool.running:
            while waiting and not queue:
                if pool.running and pool.running + len(waiting[0]) > jobs:
                    break
                group = waiting.pop(0)
                # Another sweep may have finished some of it.
                group = [c for c in group if not records.path_of(results, c.id).exists()]
                queue = group if costs.fit(group, deadline, jobs) else []
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
    """Cells that differ in the term's settings or the order of the images alone, together.

    The groups are in the order of their first cells.
    """
    found: dict[str, list[Settings]] = {}
    for cell in cells:
        shared = replace(cell.baseline(), order_seed=Settings.order_seed)
        found.setdefault(shared.id, []).append(cell)
    return list(found.values())


class Costs:
    """Expected seconds of a cell, from finished runs of its data set, model, method and sparsity.

    Per epoch of the settings, so that a method of several trainings counts them all. Where no run
    of its sparsity is known, the slowest of the others counts: sparse execution takes the longer,
    the more weights are kept.
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
        """Seconds of a cell; None where no run of its kind is known."""
        kind = self.seconds.get(tuple(getattr(cell, name) for name in self.KIND))
        if not kind:
            return None
        if cell.sparsity in kind:
            return median(kind[cell.sparsity]) * cell.epochs
        return max(map(median, kind.values())) * cell.epochs

    def fit(self, cells: Sequence[Settings], deadline: float, jobs: int) -> bool:
        """Whether cells that start together are expected to end before the deadline.

        A cell of unknown cost is tried.
        """
        each = [self.expected(cell) or 0 for cell in cells]
        longest = max(max(each, default=0), sum(each) / jobs)
        return longest <= deadline - time.monotonic() > 0
