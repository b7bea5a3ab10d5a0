"""Notebooks as steps of a reproduction: papermill behind one small wrapper.

A notebook has one cell tagged ``parameters``, a line each, `name: type = default  # help`, and ends
by writing `<results>/<its name>.json` with `finish`. That file, not an exit code, says that it is
done: papermill reports success when a cell calls ``sys.exit`` and keeps a parameter's default when
its name is misspelt, so the wrapper checks the names, the types and the file itself.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TextIO

from ckasr import data
from ckasr.experiments import Settings, grid, plan, records
from ckasr.experiments.sweep import Costs, duration
from ckasr.names import nearest
from ckasr.storage import write_text

ROOT = Path(__file__).resolve().parents[1]
SCALARS = ("bool", "float", "int", "str")
TYPES = (*SCALARS, *(f"list[{kind}]" for kind in SCALARS))


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell; `kind` is one of `TYPES`."""

    name: str
    kind: str
    default: Any
    help: str


@dataclass(frozen=True)
class Step:
    """One notebook of a profile and the parameters it runs with."""

    notebook: Path
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Profile:
    """A file of workflow/: what it runs in which order, and the data sets it needs."""

    name: str
    about: str
    datasets: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Finished:
    """One executed notebook: where its result and its executed copy lie, seconds of wall time."""

    name: str
    result: Path
    executed: Path
    seconds: float


def resolve(path: str | Path) -> Path:
    """`path` from the repository's root: the same in JupyterLab, in a batch run and on a shell."""
    return ROOT / Path(path).expanduser()


def finish(results: str | Path, name: str, values: Mapping[str, Any]) -> Path:
    """Write `values` to `<results>/<name>.json` in one piece: a notebook's last act, its result."""
    target = resolve(results) / f"{name}.json"
    write_text(target, json.dumps(values, indent=1, allow_nan=False) + "\n")
    return target


def declared(notebook: Path) -> dict[str, Parameter]:
    """The parameters a notebook declares, by name.

    Raises FileNotFoundError for a missing notebook and ValueError for one that is no notebook, has
    not exactly one cell tagged ``parameters``, or holds another line in it than
    `name: type = default  # help`.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", ())]
    except FileNotFoundError:
        raise FileNotFoundError(f"no notebook {notebook}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{notebook} is not a notebook: it holds no JSON with cells") from None
    if len(tagged) != 1:
        raise ValueError(
            f"{notebook.name} has {len(tagged)} cells tagged 'parameters'; give it exactly one"
        )
    lines = "".join(tagged[0]["source"]).splitlines()
    found = [_parameter(line, notebook.name) for line in lines if line.strip()]
    names = [parameter.name for parameter in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{notebook.name} declares {', '.join(twice)} more than once")
    return {parameter.name: parameter for parameter in found}


def _parameter(line: str, where: str) -> Parameter:
    wrong = ValueError(
        f"{where}: {line.strip()!r} is no parameter; write one a line, "
        f"'name: type = default  # help', the type one of {', '.join(TYPES)}"
    )
    try:
        (node,) = ast.parse(line).body
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            raise wrong
        if node.value is None:
            raise wrong
        kind = ast.unparse(node.annotation)
        default = convert(ast.literal_eval(node.value), kind)
    except (SyntaxError, ValueError):
        raise wrong from None
    comment = line.encode()[node.end_col_offset :].decode().strip()
    if not comment.strip("# "):
        raise wrong
    return Parameter(node.target.id, kind, default, comment.strip("# "))


def convert(value: Any, kind: str) -> Any:
    """`value` as the plain Python `kind` (one of `TYPES`); ValueError where that would change it.

    NumPy scalars and arrays, tensors, tuples and paths become what they stand for. papermill would
    hand them to the notebook as text, silently.
    """
    plain = value.tolist() if hasattr(value, "tolist") else value
    plain = os.fspath(plain) if isinstance(plain, os.PathLike) else plain
    if kind.startswith("list[") and isinstance(plain, list | tuple):
        return [convert(item, kind[5:-1]) for item in plain]
    kinds: dict[str, tuple[type, ...]] = {
        "bool": (bool,),
        "int": (int,),
        "float": (int, float),
        "str": (str,),
    }
    fits = isinstance(plain, kinds.get(kind, ()))
    if not fits or (isinstance(plain, bool) and kind != "bool"):
        raise ValueError(f"{value!r} is no {kind}")
    return float(plain) if kind == "float" else plain


def check(notebook: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`parameters` in the notebook's own types, after a look at what they mean.

    Raises ValueError for an unknown name, a wrong type, or a value that no run could have: a
    parameter named as a setting is in that setting's range. LookupError for an unknown data set,
    model or method.
    """
    known = declared(notebook)
    checked = {}
    for name, value in parameters.items():
        if name not in known:
            raise ValueError(f"{notebook.name} has no parameter {name!r}{nearest(name, known)}")
        try:
            checked[name] = convert(value, known[name].kind)
        except ValueError as error:
            raise ValueError(f"{notebook.name}, parameter {name!r}: {error}") from None
    cells(Step(notebook, checked))
    return checked


def execute(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    result: Path | None = None,
    log: TextIO | None = None,
) -> Path:
    """Run `notebook` with `parameters`, write the executed copy to `output`, return that path.

    Relative paths count from the current directory: `output` and the parameter `results`, given or
    not, alike. The kernel is this Python, whatever kernel the notebook's metadata names.

    result: the file the notebook must have written anew when it ends. log: where what the notebook
    prints goes as it prints it, beside the executed copy (None: standard output).

    Raises ValueError for an unknown parameter or a wrong type (before anything runs),
    ModuleNotFoundError without papermill, ChildProcessError where a cell fails, the kernel dies
    or the result is not there.
    """
    checked = check(notebook, parameters)
    if results := declared(notebook).get("results"):
        folder = Path(checked.get("results", results.default))
        checked["results"] = str(folder.expanduser().absolute())
    pm, failed, config = _papermill()
    before = _stamp(result)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Sockets in a folder of their own: over TCP or in a shared folder parallel runs can meet.
    with tempfile.TemporaryDirectory(prefix="ckasr-", dir=_socket_root()) as sockets:
        try:
            pm.execute_notebook(
                str(notebook.resolve()),
                str(output.resolve()),
                parameters=checked,
                kernel_name="python3",
                kernel_manager_class=_this_python(),
                language="python",
                progress_bar=False,
                stdout_file=log or sys.stdout,
                stderr_file=log or sys.stdout,
                config=config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/k"}}),
            )
        except failed as error:
            raise ChildProcessError(
                f"{notebook.name}: {error.ename}: {error.evalue} (all of it in {output})"
            ) from None
        except RuntimeError as error:  # nbclient's DeadKernelError is one
            raise ChildProcessError(
                f"{notebook.name}: {error}: often for want of memory (what ran is in {output})"
            ) from None
    if result is not None and _stamp(result) in (None, before):
        raise ChildProcessError(f"{notebook.name} ended without writing {result} (see {output})")
    return output


def _socket_root() -> str:
    """A temporary folder whose path is short enough for sockets: TMPDIR, or else /tmp."""
    roots = [tempfile.gettempdir(), "/tmp", "/var/tmp"]
    for root in roots:
        # An address holds 103 bytes on macOS and 107 on Linux, "/ckasr-xxxxxxxx/k-5" among them.
        if len(os.fsencode(root)) <= 80 and os.access(root, os.W_OK | os.X_OK):
            return root
    raise OSError(
        f"the path of TMPDIR, {roots[0]}, is too long for the sockets of a notebook's kernel and "
        "/tmp cannot be written: set TMPDIR to a folder of at most 80 characters"
    )


def _this_python() -> type:
    """A kernel manager that knows one kernel, this interpreter.

    A kernel named python3 that the user has installed may be another Python, without ckasr.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from traitlets import default

    class ThisPython(AsyncKernelManager):
        async def _async_interrupt_kernel(self) -> None:
            # At the shutdown there is nothing to interrupt, and an idle kernel prints an error.
            if not self.shutting_down:
                await super()._async_interrupt_kernel()

        @default("kernel_spec_manager")
        def _only_native(self) -> KernelSpecManager:
            return KernelSpecManager(kernel_dirs=[])

    return ThisPython


def _papermill() -> tuple[Any, Any, Any]:
    """papermill, its error, traitlets' Config; imported here, as the rest does without Jupyter."""
    try:
        import ipykernel  # noqa: F401  (where it is missing, the kernel only seems to die)
        import papermill
        from papermill.exceptions import PapermillExecutionError
        from traitlets.config import Config
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"running notebooks needs {error.name}: pip install 'ckasr[notebooks]'", name=error.name
        ) from None
    return papermill, PapermillExecutionError, Config


def _stamp(path: Path | None) -> tuple[int, int] | None:
    if path is None or not path.is_file():
        return None
    state = path.stat()
    return state.st_mtime_ns, state.st_ino


def profiles() -> dict[str, Path]:
    """The profiles that come with the project, by name."""
    return {path.stem: path for path in sorted((ROOT / "workflow").glob("*.toml"))}


def read_profile(profile: str | Path) -> Profile:
    """The profile of that name in workflow/, or in the file of that path.

    Everything in it is checked here: that the notebooks exist and have these parameters with these
    types, and that each data set a notebook is given is on the profile's list. LookupError for an
    unknown name, ValueError for the rest.
    """
    path = Path(profile) if Path(profile).suffix == ".toml" else profiles().get(str(profile))
    if path is None or not path.is_file():
        raise LookupError(f"no profile {str(profile)!r}; there are: {', '.join(profiles())}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    if table.keys() != {"about", "datasets", "notebooks"}:
        raise ValueError(f"{path} must have about, datasets and notebooks, not {', '.join(table)}")
    steps = []
    for name, parameters in table["notebooks"].items():
        notebook = ROOT / "notebooks" / f"{name}.ipynb"
        checked = check(notebook, parameters)
        known = declared(notebook)
        if "results" in checked or "results" not in known:
            raise ValueError(f"{path}: {name} must have a parameter 'results', which the run sets")
        dataset = checked.get("dataset", known["dataset"].default if "dataset" in known else None)
        if dataset not in (None, *table["datasets"]):
            raise ValueError(f"{path}: {name} reads {dataset}; add it to the profile's datasets")
        steps.append(Step(notebook, checked))
    return Profile(path.stem, table["about"], tuple(table["datasets"]), tuple(steps))


def cells(step: Step) -> list[Settings]:
    """The runs a notebook of a grid trains with these parameters; none for another notebook.

    Raises what `Settings` raises for an impossible value, for any notebook.

    Parameters named as settings are the grid's base; `sparsities`, `seeds`, `methods`, the `betas`
    of the arms beside the baseline and, where there are some, `terms`, `precisions`,
    `order_seeds`, `sample_counts` and `intervals` (of the term) span it.
    """
    given = {p.name: p.default for p in declared(step.notebook).values()} | step.parameters
    known = {item.name for item in fields(Settings)}
    base = Settings(**{name: value for name, value in given.items() if name in known})
    if "sparsities" not in given:
        return []
    return grid(
        base,
        sparsities=given["sparsities"],
        betas=[0.0, *given["betas"]],
        seeds=given["seeds"],
        methods=given["methods"],
        terms=given.get("terms"),
        precisions=given.get("precisions"),
        order_seeds=given.get("order_seeds"),
        samples=given.get("sample_counts"),
        every=given.get("intervals"),
    )


def with_related(runs: Sequence[Settings], results: str | Path) -> list[records.Record]:
    """The records of these runs, and those in `results` to be read beside them.

    These differ from one of the runs in nothing but the seed and the settings of the term: the
    CKA-SR arm beside a placebo, or the seeds that another profile left in the same folder.
    """
    wanted = {replace(run.baseline(), seed=0).id for run in runs}
    found = records.load_all(resolve(results))
    kinds = (Settings.from_dict(record["settings"]).baseline() for record in found)
    return [
        record
        for record, kind in zip(found, kinds, strict=True)
        if replace(kind, seed=0).id in wanted
    ]


def cost(runs: Sequence[Settings], results: str | Path) -> str:
    """What a notebook of a grid says before it runs: how many runs, and about how long they take.

    The time is that of the known runs of the same data set, model and method: those in `results`,
    or else those that come with the project. A method without a run counts as random pruning.
    """
    folder = resolve(results)
    planned = plan(runs, folder)
    todo = [item for item in planned if not item.known]
    if not todo:
        return f"**Cost:** none; all {len(planned)} runs have a record in `{folder}`."
    committed = sorted((ROOT / "results").glob("*/records"))
    others = Costs(record for path in committed for record in records.load_all(path.parent))
    seconds = [
        item.seconds
        or others.expected(item.cell)
        or others.expected(replace(item.cell, method="random", method_options={}))
        for item in todo
    ]
    epochs = sum(item.cell.epochs for item in todo)
    text = f"**Cost:** {len(todo)} of {len(planned)} runs are to be trained, {epochs} epochs in all"
    known = [each for each in seconds if each is not None]
    if len(known) < len(seconds):
        return f"{text}. There is no record yet of {todo[0].cell.model} on {todo[0].cell.dataset}."
    return f"{text}: about {duration(sum(known))} one after another, by the runs on record."


def reproduce(profile: str | Path, results: Path, *, log: TextIO | None = None) -> list[Finished]:
    """Execute every notebook of `profile` in order, into `results`; stop at the first that fails.

    Nothing is written before the profile, papermill and every data set have been found good; a set
    that is missing is downloaded where there is a network. Executed copies go to
    `<results>/executed/`. log: progress lines (None: standard output).
    """
    plan = read_profile(profile)
    _papermill()
    for name in plan.datasets:
        print(f"data set {name}", file=log, flush=True)
        data.load(name, download=True)
    return run_steps(plan.steps, results, log=log)


def run_steps(steps: Sequence[Step], results: Path, *, log: TextIO | None = None) -> list[Finished]:
    """Execute each step into `results`, with a progress line before and after it."""
    results = results.resolve()
    finished = []
    for number, step in enumerate(steps, start=1):
        name, start = step.notebook.stem, time.perf_counter()
        label = f"[{number}/{len(steps)}] {name}"
        print(label, file=log, flush=True)
        result = results / f"{name}.json"
        executed = execute(
            step.notebook,
            results / "executed" / step.notebook.name,
            {**step.parameters, "results": str(results)},
            result=result,
            log=log,
        )
        seconds = time.perf_counter() - start
        print(f"{label}: done in {seconds:.0f} s", file=log, flush=True)
        finished.append(Finished(name, result, executed, seconds))
    return finished
