"""The command line: it parses arguments, calls functions of the other packages, and prints."""

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from ckasr import __version__, notebooks
from ckasr.execution import EXECUTIONS
from ckasr.experiments import Settings, grid, plan, records
from ckasr.experiments import run as run_settings
from ckasr.experiments import sweep as run_sweep
from ckasr.experiments.progress import title
from ckasr.experiments.sweeps import duration
from ckasr.storage import write_between, write_text

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
records_app = typer.Typer(no_args_is_help=True, help="Export and import run records as one file.")
data_app = typer.Typer(no_args_is_help=True, help="Check and download data sets.")
app.add_typer(records_app, name="records")
app.add_typer(data_app, name="data")

Results = Annotated[Path, typer.Option(help="Folder that contains records/ and checkpoints/.")]
Execution = Annotated[
    str,
    typer.Option(
        help=f"Kernels: {', '.join(EXECUTIONS)}. Sparse kernels need a CPU and fp32; auto uses "
        "them where they are faster."
    ),
]
Device = Annotated[
    str, typer.Option(help="Device: cpu, cuda, cuda:1, ...; auto uses a GPU if there is one.")
]
DEFAULT_RESULTS = Path("results/runs")
CLAIMS = Path("results/claims.md")
README = Path("README.md")
README_TABLE = "<!-- claims: make figures -->", "<!-- end of claims -->"


def _with_settings(*leave_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds one typed option per setting to a command.

    The command receives the options as the dict ``values``. Settings whose names are in
    ``leave_out`` have no option.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name != "values"
        ]
        flags = []
        for item in fields(Settings):
            if item.name in leave_out:
                continue
            kind: Any
            kind, about = get_args(item.type)
            default: Any = item.default
            flag = f"--{item.name.replace('_', '-')}"
            if item.name == "method_options":
                kind, default, flag = list[str], [], "--option"
            elif item.name == "milestones":
                about += "; repeat the option or use commas; empty: none"
                kind, default = list[str], [str(share) for share in default]
            elif kind is bool:
                flag = f"{flag}/--no-{flag[2:]}"
            option = typer.Option(flag, help=about, show_default=True)
            flags.append(
                inspect.Parameter(
                    item.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=default,
                    annotation=Annotated[kind, option],
                )
            )

        def wrapped(**arguments: Any) -> None:
            own_names = {parameter.name for parameter in own}
            values = {k: v for k, v in arguments.items() if k not in own_names}
            # The options of a method are text here; the method converts them to their types.
            values["method_options"] = _words(values["method_options"])
            texts = [text for text in values["milestones"] if text]
            values["milestones"] = [
                share for text in texts for share in _numbers("--milestones", text, float)
            ]
            command(**{k: v for k, v in arguments.items() if k in own_names}, values=values)

        wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
        keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        wrapped.__signature__ = inspect.Signature(flags + keyword_only)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in flags + keyword_only}
        return wrapped

    return decorate


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"ckasr {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_say_version)
    ] = False,
) -> None:
    """Reproduce CKA-SR (arXiv 2307.07389), a regularizer for sparse training."""


@app.command()
@_with_settings()
def run(
    values: dict[str, Any],
    results: Results = DEFAULT_RESULTS,
    device: Device = "auto",
    execution: Execution = "auto",
) -> None:
    """Train one network and write its record. A run that has a record is not trained again."""
    settings = Settings(**values)
    known = records.path_of(results, settings.id).exists()
    record = run_settings(settings, results, device=device, execution=execution)
    if known:
        print(f"{settings.id} already has a record: test accuracy {_accuracy(record)}")
    print(records.path_of(results, settings.id))


@app.command()
@_with_settings("sparsity", "beta", "term", "seed")
def sweep(
    values: dict[str, Any],
    sparsities: Annotated[
        list[str], typer.Option(help="Sparsities, separated by commas or one per option.")
    ] = ["0.95,0.98,0.995,0.998"],  # noqa: B006 - typer reads it and changes nothing
    betas: Annotated[
        list[str], typer.Option(help="Weights of the term, in the same format; 0 is the baseline.")
    ] = ["0,1e-4,1e-3"],  # noqa: B006
    terms: Annotated[
        list[str], typer.Option(help="Terms, in the same format; `ckasr terms` lists them.")
    ] = ["cka_sr"],  # noqa: B006
    seeds: Annotated[
        list[str], typer.Option(help="Seeds, in the same format; 0-4 is the range from 0 to 4.")
    ] = ["0-4"],  # noqa: B006
    minutes: Annotated[
        float,
        typer.Option(help="Time budget in minutes; a run that would exceed it is not started."),
    ] = 1e9,
    jobs: Annotated[
        int, typer.Option(help="Number of parallel runs; 0 means one per core, or 4 on a GPU.")
    ] = 0,
    lines: Annotated[
        Path | None, typer.Option(help="Also write all records to this JSON-lines file.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and stop.")] = False,
    results: Results = DEFAULT_RESULTS,
    device: Device = "auto",
    execution: Execution = "auto",
) -> None:
    """Train all runs of a grid that have no record yet, the most important first.

    A run that would exceed the time budget is not started. The default grid is the main comparison
    of results/PLAN.md.
    """
    weights = _numbers("--betas", ",".join(betas), float)
    cells = grid(
        # With beta 0, Settings would reset the settings of the term to their defaults.
        Settings(**values, beta=max(weights)),
        sparsities=_numbers("--sparsities", ",".join(sparsities), float),
        betas=weights,
        seeds=_numbers("--seeds", ",".join(seeds), int),
        terms=[name.strip() for name in ",".join(terms).split(",")],
    )
    if jobs < 0:
        raise ValueError(f"--jobs {jobs} must be 0 or more; 0: one per core, or 4 on a GPU")
    if dry_run:
        _print_plan(cells, results)
        return
    outcome = run_sweep(
        cells,
        results,
        minutes=minutes,
        jobs=jobs or None,
        device=device,
        lines=lines,
        execution=execution,
    )
    print(
        f"{len(outcome.done)} cells trained, {len(outcome.known)} already recorded, "
        f"{len(outcome.left)} left for the next sweep; the records are in {results / 'records'}"
    )


@app.command()
def methods() -> None:
    """List the sparse-training methods and their options (``--option name=value``)."""
    from ckasr.methods import METHODS

    for name, method in METHODS.items():
        print(f"{name:<12}{method.summary}")
        if options := ", ".join(f"{item.name}={item.default}" for item in fields(method)):
            print(f"{'':<12}options: {options}")


@app.command()
def terms() -> None:
    """List the terms that can be added to the loss (``--term name``)."""
    from ckasr.terms import TERMS

    for name, term in TERMS.items():
        print(f"{name:<18}{term.summary}")


@app.command()
def table(results: Results = DEFAULT_RESULTS) -> None:
    """Print the tables of all records: accuracies, paired differences and the paper's numbers."""
    from ckasr.analysis import all_tables

    print("\n".join(all_tables(_records(results)).values()))


@app.command()
def figures(
    results: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder that contains records/; by default, all such folders in results/."
        ),
    ] = None,
) -> None:
    """Rebuild every figure and table from the records. Nothing is trained.

    Without --results, the command also rebuilds results/claims.md, which is the table of the
    paper's claims, and its short form in README.md.
    """
    from ckasr import analysis

    folders = results or sorted(path.parent for path in Path("results").glob("*/records"))
    if not folders:
        raise FileNotFoundError(
            "no records in results/*/records to draw; run `make reproduce` first"
        )
    with_records = [
        f for f in folders if not (f / "information").is_dir() or any(f.glob("records/*"))
    ]
    found = {folder: _records(folder) for folder in with_records}
    for folder, runs in found.items():
        for path in analysis.write_all(runs, folder):
            print(path)
    for path in analysis.write_executions(folders):
        print(path)
    measured = results or sorted(path.parent for path in Path("results").glob("*/information"))
    for path in (path for folder in measured for path in analysis.write_information(folder)):
        print(path)
    if not results:
        by_name = {folder.name: runs for folder, runs in found.items()}
        write_text(CLAIMS, analysis.claims_table(by_name))
        print(CLAIMS)
        if README.exists():
            write_between(README, *README_TABLE, analysis.headline_table(by_name))
            print(README)


@app.command()
def reproduce(
    profile: Annotated[
        str, typer.Option(help="Name of a profile in workflow/, or a .toml file.")
    ] = "demo",
    results: Annotated[
        Path | None, typer.Option(help="Folder for results; by default results/<profile>.")
    ] = None,
) -> None:
    """Execute the notebooks of a profile, which write records, figures and tables."""
    from ckasr.analysis import all_tables

    folder = results or Path("results") / Path(profile).stem
    notebooks.reproduce(profile, folder)
    if found := records.load_all(folder):
        print("", *all_tables(found).values(), sep="\n")
    for name in ("records", "figures", "tables", "executed"):
        if (folder / name).is_dir():
            print(f"{name + ':':<10}{folder / name}")


@app.command()
def notebook(
    path: Annotated[Path, typer.Argument(help="Notebook to execute.")],
    output: Annotated[Path, typer.Option(help="File for the executed copy.")],
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            "-p",
            help="Parameter of the notebook, as name=value with a Python value.",
        ),
    ] = None,
) -> None:
    """Execute one notebook with papermill. An unknown parameter causes an error."""
    print(notebooks.execute(path, output, _options(parameter or [])))


@records_app.command("export")
def export(target: Path, results: Results = DEFAULT_RESULTS) -> None:
    """Write all records to one JSON-lines file."""
    print(f"{records.export_lines(results, target)} records in {target}")


@records_app.command("merge")
def merge(source: Path, results: Results = DEFAULT_RESULTS) -> None:
    """Add the records of a JSON-lines file. Existing records are not changed."""
    new, known = records.merge_lines(source, results)
    print(f"{new} new records in {results / 'records'}, {known} already present")


@data_app.command("check")
def check(name: str) -> None:
    """Load a data set from CKASR_DATA, verify its checksums, and print its size."""
    from ckasr.data import load

    found = load(name)
    tests = sum(len(y) for _, y in found.test_batches(batch_size=1000).in_order())
    print(
        f"{name}: {len(found.train_labels)} training and {tests} test samples "
        f"{tuple(found.example_input.shape[1:])}, {found.num_classes} classes"
    )


@data_app.command("fetch")
def fetch(name: str) -> None:
    """Download a data set with torchvision to CKASR_DATA (by default ./data)."""
    from ckasr.data import fetch as fetch_data

    for path in fetch_data(name):
        print(path)


def _records(results: Path) -> list[records.Record]:
    found = records.load_all(results)
    if not found:
        raise FileNotFoundError(f"no records in {results / 'records'}; run something first")
    return found


def _print_plan(cells: Sequence[Settings], results: Path) -> None:
    planned = plan(cells, results)
    for item in planned:
        minutes = "time unknown" if item.seconds is None else f"about {duration(item.seconds)}"
        print(f"{item.cell.id}  {'has a record' if item.known else minutes:<16}{title(item.cell)}")
    todo = [item for item in planned if not item.known]
    times = [item.seconds for item in todo if item.seconds is not None]
    parts = [f"about {duration(sum(times))} one after another"] if times or not todo else []
    if len(times) < len(todo):
        parts.append(f"{len(todo) - len(times)} of unknown time")
    print(f"{len(todo)} of {len(planned)} cells to run: {', and '.join(parts)}")


def _accuracy(record: records.Record) -> str:
    accuracy = record["test_accuracy"]
    return "none (diverged)" if accuracy is None else f"{accuracy:.2%}"


def _options(words: Sequence[str]) -> dict[str, Any]:
    """Convert ``name=value`` words to a dict; values that are Python literals are evaluated."""
    import ast

    options: dict[str, Any] = {}
    for name, text in _words(words).items():
        try:
            options[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[name] = text
    return options


def _words(words: Sequence[str]) -> dict[str, str]:
    """Convert ``name=value`` words to a dict of strings. Raises ValueError for other words."""
    options: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ValueError(f"{word!r} must be name=value")
        options[name] = text
    return options


MOST_SEEDS = 10_000
"""Largest number of seeds in a range. A longer range is probably a typing error."""


def _numbers(flag: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """Return the comma-separated numbers of a text; integers may be a range ``first-last``.

    Raises ValueError, with the name of the option, for any other text.
    """
    numbers: list[Any] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            if not (kind is int and dash and first):
                numbers.append(kind(part))
                continue
            start, stop = int(first), int(last)
        except ValueError:
            raise ValueError(f"{flag} {text!r} is not a comma-separated list of numbers") from None
        if not start <= stop < start + MOST_SEEDS:
            raise ValueError(
                f"{flag} {text!r}: a range must increase and have at most {MOST_SEEDS} numbers"
            )
        numbers += range(start, stop + 1)
    return numbers


# The exception of typer for a wrong command line; typer does not export the class.
_UsageError: Any = typer.BadParameter.__base__


def main() -> None:
    """Run the command line.

    An error that the user can correct is printed to standard error as one line, ``ckasr: ...``.
    Warnings are printed in the same way. If CKASR_DEBUG=1 is set, the traceback is printed instead.
    The exit status is 0 for success, 1 for an error, 2 for a wrong command line, and 130 after
    Ctrl-C.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            sys.exit(app(prog_name="ckasr", standalone_mode=False) or 0)
        except _UsageError as error:
            message = error.format_message()
            if "\n" in message or not message:  # the help text, if no command was given
                print(message, file=sys.stderr)
                sys.exit(error.exit_code)
            _fail(message[:1].lower() + message[1:].rstrip("."), error.exit_code)
        except (KeyError, IndexError):
            raise
        except (ValueError, LookupError, OSError, ModuleNotFoundError, MemoryError) as error:
            if os.environ.get("CKASR_DEBUG"):
                raise
            _fail(str(error) or type(error).__name__, 1)


def _fail(message: str, status: int) -> None:
    print(f"ckasr: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def _show_warning(message: Warning | str, *where: Any) -> None:
    print(f"ckasr: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    main()
