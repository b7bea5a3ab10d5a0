"""The command line. It parses, calls and prints; what it calls lives in the packages below."""

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
from ckasr.experiments import Settings, grid, plan, records
from ckasr.experiments import run as run_settings
from ckasr.experiments import sweep as run_sweep
from ckasr.experiments.progress import title
from ckasr.experiments.sweep import duration
from ckasr.storage import write_text

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
records_app = typer.Typer(no_args_is_help=True, help="Carry run records about as one file.")
data_app = typer.Typer(no_args_is_help=True, help="Check and fetch data sets.")
app.add_typer(records_app, name="records")
app.add_typer(data_app, name="data")

Results = Annotated[Path, typer.Option(help="Folder of records/ and checkpoints/.")]
Execution = Annotated[str, typer.Option(help="auto, dense or sparse kernels (CPU, fp32).")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto: a GPU if there is one.")]
DEFAULT_RESULTS = Path("results/runs")
CLAIMS = Path("results/claims.md")


def _with_settings(*leave_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command one typed flag for each setting; it gets them as ``values``."""

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
            (kind, about), default = get_args(item.type), item.default
            flag = f"--{item.name.replace('_', '-')}"
            if item.name == "method_options":
                kind, default, flag = list[str], [], "--option"
            elif item.name == "milestones":
                about += "; one flag each, or with commas; empty: none"
                kind, default = list[str], [str(share) for share in item.default]
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
            # As text: the method reads its options by their types.
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
    """CKA-SR (arXiv 2307.07389): sparse training that anyone can rerun, check and trust."""


@app.command()
@_with_settings()
def run(
    values: dict[str, Any],
    results: Results = DEFAULT_RESULTS,
    device: Device = "auto",
    execution: Execution = "auto",
) -> None:
    """Train one network and write its record; a finished run is not trained again."""
    settings = Settings(**values)
    known = records.path_of(results, settings.id).exists()
    record = run_settings(settings, results, device=device, execution=execution)
    if known:
        print(f"{settings.id} has a record already: test accuracy {_accuracy(record)}")
    print(records.path_of(results, settings.id))


@app.command()
@_with_settings("sparsity", "beta", "term", "seed")
def sweep(
    values: dict[str, Any],
    sparsities: Annotated[str, typer.Option(help="Comma-separated.")] = "0.95,0.98,0.995,0.998",
    betas: Annotated[str, typer.Option(help="Comma-separated.")] = "0,1e-4,1e-3",
    terms: Annotated[str, typer.Option(help="Comma-separated; see ckasr terms.")] = "cka_sr",
    seeds: Annotated[str, typer.Option(help="Comma-separated; 0-4: from 0 to 4.")] = "0-4",
    minutes: Annotated[float, typer.Option(help="Budget; no cell starts that won't fit.")] = 1e9,
    jobs: Annotated[int, typer.Option(help="Runs side by side; 0: one a core, 4 on a GPU.")] = 0,
    lines: Annotated[Path | None, typer.Option(help="JSON-lines file for all records.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the cells.")] = False,
    results: Results = DEFAULT_RESULTS,
    device: Device = "auto",
    execution: Execution = "auto",
) -> None:
    """Run the missing cells of a grid, most wanted first, and stop inside a budget of minutes.

    The default grid is the headline comparison of results/PLAN.md.
    """
    weights = _numbers("--betas", betas, float)
    cells = grid(
        # With beta 0 the settings of the term would be set to their defaults.
        Settings(**values, beta=max(weights)),
        sparsities=_numbers("--sparsities", sparsities, float),
        betas=weights,
        seeds=_numbers("--seeds", seeds, int),
        terms=[name.strip() for name in terms.split(",")],
    )
    if jobs < 0:
        raise ValueError(f"--jobs {jobs} must be 0 or more; 0: one a core, 4 on a GPU")
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
        f"{len(outcome.done)} cells done, {len(outcome.known)} known before, "
        f"{len(outcome.left)} left for the next sweep; records in {results / 'records'}"
    )


@app.command()
def methods() -> None:
    """List the sparse-training methods, with their options (``--option name=value``)."""
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
    """Print what there is: accuracy of both arms, paired differences, the paper's numbers."""
    from ckasr.analysis import all_tables

    print("\n".join(all_tables(_records(results)).values()))


@app.command()
def figures(
    results: Annotated[
        list[Path] | None, typer.Option(help="Folder(s) with records/; default: all in results/.")
    ] = None,
) -> None:
    """Rebuild every figure and table from the records alone; nothing is trained.

    For all folders in results/, also the table of the paper's claims, results/claims.md.
    """
    from ckasr import analysis

    folders = results or sorted(path.parent for path in Path("results").glob("*/records"))
    if not folders:
        raise FileNotFoundError("no results/*/records to draw; run `make reproduce` first")
    found = {folder: _records(folder) for folder in folders}
    for folder, runs in found.items():
        for path in analysis.write_all(runs, folder):
            print(path)
    for path in analysis.write_executions(folders):
        print(path)
    if not results:
        table = analysis.claims_table({folder.name: runs for folder, runs in found.items()})
        write_text(CLAIMS, table)
        print(CLAIMS)


@app.command()
def reproduce(
    profile: Annotated[str, typer.Option(help="A name in workflow/, or a .toml file.")] = "demo",
    results: Annotated[Path | None, typer.Option(help="Default: results/<profile>.")] = None,
) -> None:
    """Execute the notebooks of a profile; figures, tables and records go to the results folder."""
    from ckasr.analysis import all_tables

    folder = results or Path("results") / Path(profile).stem
    notebooks.reproduce(profile, folder)
    print("", *all_tables(_records(folder)).values(), sep="\n")
    for name in ("records", "figures", "tables", "executed"):
        if (folder / name).is_dir():
            print(f"{name + ':':<10}{folder / name}")


@app.command()
def notebook(
    path: Annotated[Path, typer.Argument(help="The notebook.")],
    output: Annotated[Path, typer.Option(help="Where the executed copy goes.")],
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="name=value, value as in Python.")
    ] = None,
) -> None:
    """Execute one notebook with papermill; an unknown parameter is an error, not a warning."""
    print(notebooks.execute(path, output, _options(parameter or [])))


@records_app.command("export")
def export(target: Path, results: Results = DEFAULT_RESULTS) -> None:
    """Write all records into one JSON-lines file."""
    print(f"{records.export_lines(results, target)} records in {target}")


@records_app.command("merge")
def merge(source: Path, results: Results = DEFAULT_RESULTS) -> None:
    """Take the records of a JSON-lines file in; those already there stay as they are."""
    new, known = records.merge_lines(source, results)
    print(f"{new} new records in {results / 'records'}, {known} were there")


@data_app.command("check")
def check(name: str) -> None:
    """Load a data set from CKASR_DATA, checksums and all, and say what it holds."""
    from ckasr.data import load

    found = load(name)
    tests = sum(len(y) for _, y in found.test_batches(batch_size=1000).in_order())
    print(
        f"{name}: {len(found.train_labels)} training and {tests} test samples "
        f"{tuple(found.example_input.shape[1:])}, {found.num_classes} classes"
    )


@data_app.command("fetch")
def fetch(name: str) -> None:
    """Download a data set through torchvision into CKASR_DATA (or ./data)."""
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
    unknown = f", and {len(todo) - len(times)} of unknown time" if len(times) < len(todo) else ""
    print(
        f"{len(todo)} of {len(planned)} cells to run: about {duration(sum(times))} one after "
        f"another{unknown}"
    )


def _accuracy(record: records.Record) -> str:
    accuracy = record["test_accuracy"]
    return "none (diverged)" if accuracy is None else f"{accuracy:.2%}"


def _options(words: Sequence[str]) -> dict[str, Any]:
    """``name=value`` words as a dict, values read as Python literals where they are such."""
    import ast

    options: dict[str, Any] = {}
    for name, text in _words(words).items():
        try:
            options[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[name] = text
    return options


def _words(words: Sequence[str]) -> dict[str, str]:
    """``name=value`` words as a dict of texts."""
    options: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ValueError(f"{word!r} must be name=value")
        options[name] = text
    return options


MOST_SEEDS = 10_000
"""In a range on the command line: a longer one is a slip, and would fill the memory."""


def _numbers(flag: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """The numbers of a comma-separated text; an integer may be a range, ``first-last``."""
    numbers: list[Any] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            if not (kind is int and dash and first):
                numbers.append(kind(part))
                continue
            start, stop = int(first), int(last)
        except ValueError:
            raise ValueError(f"{flag} {text!r} is no comma-separated list of numbers") from None
        if not start <= stop < start + MOST_SEEDS:
            raise ValueError(
                f"{flag} {text!r}: a range must go up, with at most {MOST_SEEDS} numbers"
            )
        numbers += range(start, stop + 1)
    return numbers


# What typer raises for a wrong command line; it does not export the class by name.
_UsageError: Any = typer.BadParameter.__base__


def main() -> None:
    """Run the command line. An error of the user's is one line, ``ckasr: ...``, on standard error.

    The exit status is 0, 1 for an error, 2 for a wrong command line, 130 after Ctrl-C. Warnings are
    lines of the same form. CKASR_DEBUG=1 shows the traceback.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            sys.exit(app(prog_name="ckasr", standalone_mode=False) or 0)
        except _UsageError as error:
            message = error.format_message()
            if "\n" in message or not message:  # the help, where no command was given
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
