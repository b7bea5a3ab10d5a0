"""Run notebooks with papermill, with checks of their parameters and of their results.

A notebook has one cell with the tag ``parameters``. Each line of this cell declares one parameter:
``name: type = default  # help``. The last cell calls `finish`, which writes the result of the
notebook to ``<results>/<notebook name>.json``. A notebook counts as finished only if it has written
this file, because papermill also reports success when a cell calls ``sys.exit``. Papermill ignores
a misspelt parameter name and uses the default, so this module checks the names and the types.
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
from ckasr.experiments.sweeps import Costs, duration
from ckasr.names import nearest
from ckasr.storage import write_text

ROOT = Path(__file__).resolve().parents[1]
SCALARS = ("bool", "float", "int", "str")
TYPES = (*SCALARS, *(f"list[{kind}]" for kind in SCALARS))


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook.

    Args:
        name: name of the parameter.
        kind: type of the parameter, one of `TYPES`.
        default: default value.
        help: description of the parameter.
    """

    name: str
    kind: str
    default: Any
    help: str


@dataclass(frozen=True)
class Step:
    """One notebook of a profile.

    Args:
        notebook: path of the notebook.
        parameters: parameters that differ from the defaults of the notebook.
    """

    notebook: Path
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Profile:
    """The content of a profile, a TOML file in ``workflow/``.

    Args:
        name: name of the profile.
        about: description in one line.
        datasets: names of the data sets that the notebooks read.
        steps: notebooks in the order of execution.
    """

    name: str
    about: str
    datasets: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Finished:
    """One executed notebook.

    Args:
        name: name of the notebook, without suffix.
        result: path of the result, a JSON file.
        executed: path of the executed copy.
        seconds: wall time in seconds.
    """

    name: str
    result: Path
    executed: Path
    seconds: float


def resolve(path: str | Path) -> Path:
    """Return an absolute path. A relative path is relative to the root of the repository.

    The result does not depend on the current directory, which differs between JupyterLab, papermill
    and a shell.
    """
    return ROOT / Path(path).expanduser()


def finish(results: str | Path, name: str, values: Mapping[str, Any]) -> Path:
    """Write the result of a notebook to ``<results>/<name>.json``, and return this path.

    The file is written completely or not at all. A notebook calls this function in its last cell.

    Args:
        results: folder of the results; a relative path is relative to the root of the repository.
        name: name of the notebook.
        values: the result, as JSON values.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
        OSError: if the file cannot be written.
    """
    target = resolve(results) / f"{name}.json"
    write_text(target, json.dumps(values, indent=1, allow_nan=False) + "\n")
    return target


def declared(notebook: Path) -> dict[str, Parameter]:
    """Return the parameters that a notebook declares, by name.

    Args:
        notebook: path of the notebook.

    Raises:
        FileNotFoundError: if the notebook does not exist.
        ValueError: if the file is not a notebook, if it does not have exactly one cell with the tag
            ``parameters``, or if a line of this cell is not ``name: type = default  # help``.
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
        f"{where}: {line.strip()!r} is not a parameter; write one per line as "
        f"'name: type = default  # help', with one of the types {', '.join(TYPES)}"
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
    """Convert a value to a plain Python type.

    NumPy scalars and arrays, tensors, tuples and paths are converted to numbers, lists and strings.
    Without the conversion, papermill would pass them to the notebook as text.

    Args:
        value: the value.
        kind: the type, one of `TYPES`.

    Raises:
        ValueError: if the conversion would change the value.
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
        raise ValueError(f"{value!r} is not of type {kind}")
    return float(plain) if kind == "float" else plain


def check(notebook: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Check the parameters of a notebook, and return them with the types that it declares.

    A parameter with the name of a setting of `Settings` must have a valid value of that setting.

    Args:
        notebook: path of the notebook.
        parameters: values by name.

    Raises:
        ValueError: for an unknown name, a wrong type, or an invalid value.
        LookupError: for an unknown data set, model or method.
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
    """Execute a notebook, write the executed copy, and return the path of this copy.

    The kernel is the Python interpreter of this process. The kernel that the metadata of the
    notebook names is ignored.

    Args:
        notebook: path of the notebook.
        output: path of the executed copy, relative to the current directory.
        parameters: values by name. If the notebook has a parameter ``results``, its value or its
            default is relative to the current directory.
        result: file that the notebook must write; None: no file is expected.
        log: stream to which the output of the notebook is also written; None: standard output.

    Raises:
        ValueError: for an unknown parameter, a wrong type or an invalid value, before anything
            runs.
        LookupError: for an unknown data set, model or method.
        ModuleNotFoundError: if papermill is not installed.
        ChildProcessError: if a cell fails, if the kernel dies, or if ``result`` was not written.
    """
    checked = check(notebook, parameters)
    if results := declared(notebook).get("results"):
        folder = Path(checked.get("results", results.default))
        checked["results"] = str(folder.expanduser().absolute())
    pm, failed, config = _papermill()
    before = _stamp(result)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Each run has its own folder of sockets. With TCP ports or a shared folder, kernels of runs in
    # parallel could use the same addresses.
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
                f"{notebook.name}: {error.ename}: {error.evalue} (traceback in {output})"
            ) from None
        except RuntimeError as error:  # nbclient's DeadKernelError is one
            raise ChildProcessError(
                f"{notebook.name}: {error}; the cause is often a lack of memory (executed cells "
                f"are in {output})"
            ) from None
    if result is not None and _stamp(result) in (None, before):
        raise ChildProcessError(f"{notebook.name} ended without writing {result} (see {output})")
    return output


def _socket_root() -> str:
    """Return a temporary folder whose path is short enough for sockets: TMPDIR, or else /tmp.

    Raises OSError if there is none.
    """
    roots = [tempfile.gettempdir(), "/tmp", "/var/tmp"]
    for root in roots:
        # The path of a socket may have 103 bytes on macOS and 107 on Linux. It ends in
        # "/ckasr-xxxxxxxx/k-5".
        if len(os.fsencode(root)) <= 80 and os.access(root, os.W_OK | os.X_OK):
            return root
    raise OSError(
        f"the path of TMPDIR, {roots[0]}, is too long for the sockets of a notebook's kernel and "
        "/tmp cannot be written: set TMPDIR to a folder of at most 80 characters"
    )


def _this_python() -> type:
    """Return the class of a kernel manager whose only kernel is the interpreter of this process.

    A kernel named ``python3`` that the user has installed can be another interpreter, which may not
    have ckasr.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from traitlets import default

    class ThisPython(AsyncKernelManager):
        async def _async_interrupt_kernel(self) -> None:
            # An idle kernel that is interrupted during shutdown prints an error message.
            if not self.shutting_down:
                await super()._async_interrupt_kernel()

        @default("kernel_spec_manager")
        def _only_native(self) -> KernelSpecManager:
            return KernelSpecManager(kernel_dirs=[])

    return ThisPython


def _papermill() -> tuple[Any, Any, Any]:
    """Return papermill, its exception class, and the Config class of traitlets.

    They are imported here because the rest of this module does not need Jupyter. Raises
    ModuleNotFoundError if one of them is not installed.
    """
    try:
        import ipykernel  # noqa: F401  (without it, papermill reports a dead kernel)
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
    """Return the paths of the profiles in ``workflow/``, by name."""
    return {path.stem: path for path in sorted((ROOT / "workflow").glob("*.toml"))}


def read_profile(profile: str | Path) -> Profile:
    """Read and check a profile.

    The notebooks must exist and have the given parameters with the right types. Every data set that
    a notebook reads must be in the list ``datasets`` of the profile.

    Args:
        profile: name of a profile in ``workflow/``, or path of a ``.toml`` file.

    Raises:
        LookupError: for an unknown profile, data set, model or method.
        FileNotFoundError: for a missing notebook.
        ValueError: for any other error in the file.
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
    """Return the settings of all runs that a notebook trains.

    The list is empty for a notebook without the parameter ``sparsities``, which trains no grid of
    runs. Parameters with the names of settings are common to all runs. The grid is the product of
    ``sparsities``, ``seeds``, ``betas`` (with 0 for the baseline) and, if the notebook has them,
    ``models``, ``methods``, ``partners``, ``terms``, ``precisions``, ``order_seeds``,
    ``sample_counts`` and ``intervals``.

    Raises:
        ValueError: for a value that `Settings` does not allow.
        LookupError: for an unknown data set, model or method.
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
        models=given.get("models"),
        methods=given.get("methods"),
        partners=given.get("partners"),
        terms=given.get("terms"),
        precisions=given.get("precisions"),
        order_seeds=given.get("order_seeds"),
        samples=given.get("sample_counts"),
        every=given.get("intervals"),
    )


def with_related(runs: Sequence[Settings], results: str | Path) -> list[records.Record]:
    """Return the records of these runs, and of related runs in the same folder.

    A run is related if it differs from one of the given runs only in the seed and in the settings
    of the term. Examples are the runs with CKA-SR for a placebo, and the runs of another profile
    with other seeds.

    Args:
        runs: settings of the runs.
        results: folder of the results.
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
    """Return one line of Markdown: how many runs are to be trained, and an estimate of the time.

    The estimate is based on finished runs of the same data set, model and method: those in
    ``results``, or else those in the repository. A method without a finished run is estimated as
    random pruning.

    Args:
        runs: settings of the runs.
        results: folder of the results.
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
    if None in seconds:
        first = todo[seconds.index(None)].cell
        return f"{text}. There is no record yet of {first.model} on {first.dataset}."
    return (
        f"{text}: about {duration(sum(known))} one after another, estimated from the recorded runs."
    )


def reproduce(profile: str | Path, results: Path, *, log: TextIO | None = None) -> list[Finished]:
    """Execute every notebook of a profile in order, and stop at the first one that fails.

    The profile, the import of papermill and all data sets are checked before anything is written.
    A missing data set is downloaded. Executed copies are written to ``<results>/executed/``.

    Args:
        profile: name of a profile in ``workflow/``, or path of a ``.toml`` file.
        results: folder of the results.
        log: stream for progress lines; None: standard output.

    Raises:
        ConnectionError: if a data set cannot be downloaded.
        ChildProcessError: if a notebook fails.
        LookupError, ValueError, FileNotFoundError, ModuleNotFoundError: see `read_profile` and
            `execute`.
    """
    plan = read_profile(profile)
    _papermill()
    for name in plan.datasets:
        print(f"data set {name}", file=log, flush=True)
        data.load(name, download=True)
    return run_steps(plan.steps, results, log=log)


def run_steps(steps: Sequence[Step], results: Path, *, log: TextIO | None = None) -> list[Finished]:
    """Execute notebooks, and print a progress line before and after each of them.

    Args:
        steps: notebooks and their parameters.
        results: folder of the results.
        log: stream for progress lines; None: standard output.

    Raises:
        ChildProcessError: if a notebook fails; the notebooks after it are not executed.
    """
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
