"""``python -m benchmarks [names]``: compare the times of this package and of plain references."""

import json
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
import typer

from ckasr import devices
from ckasr.experiments.pools import ALLOCATOR
from ckasr.names import nearest

from . import COUNTED, MODULES, NAMES, ON_CPU, figures, store, targets
from .store import FOLDER
from .timing import table, work_table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Benchmarks (default: all): {', '.join(NAMES)}.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    save: Annotated[bool, typer.Option("--save", help="Save results and draw figures.")] = False,
    folder: Annotated[Path, typer.Option(help="Folder for saved results.")] = FOLDER,
    device: Annotated[
        str, typer.Option(help="cpu, cuda or auto; auto uses a GPU if there is one.")
    ] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Number of measured rounds.")] = 11,
    threads: Annotated[
        int, typer.Option(min=1, help="Number of CPU threads, unless a variant sets its own.")
    ] = 1,
) -> None:
    """Run benchmarks and print their tables.

    Ratios compare variants within one run. Times depend on the machine and its load.
    """
    for name in names or ():
        if name not in NAMES:
            _stop(f"unknown benchmark {name!r}{nearest(name, NAMES)}")
    try:
        found_device = devices.find(device)
    except ValueError as error:
        _stop(str(error))
    chosen = list(dict.fromkeys(names or NAMES))
    if "sparse" in chosen and find_spec("numba") is None:
        _stop("sparse execution needs numba: pip install 'ckasr[sparse]'")
    torch.set_num_threads(threads)
    found = []
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        target = torch.device("cpu") if name in ON_CPU else found_device.place
        module = import_module(f"benchmarks.{MODULES.get(name, name)}")
        found.append(store.record(name, module.measure(target, rounds), target))
        if save:
            print(store.save(found[-1], folder), file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        timings = [t for each in found for t in store.timings_of(each)]
        print(f"\n{store.where(found[0])}\n\n{table(store.ends(timings))}")
        if counted := work_table(timings):
            print(f"\n{counted}\n\n{COUNTED}")
        if met := targets.targets(timings, found_device.kind):
            print(f"\n{targets.table(met)}")
    if save:
        for place in sorted({folder / store.slug(each["device"]) for each in found}):
            for path in figures.write_all(place):
                print(path, file=sys.stderr)


def _stop(message: str) -> None:
    print(f"benchmarks: {message}", file=sys.stderr)
    raise typer.Exit(2)


if __name__ == "__main__":
    # The package is measured with the allocator settings of a sweep's workers. The allocator reads
    # the environment only when the process starts.
    if not ALLOCATOR.items() <= os.environ.items():
        arguments = [sys.executable, "-m", "benchmarks", *sys.argv[1:]]
        os.execve(sys.executable, arguments, os.environ | ALLOCATOR)
    app(prog_name="python -m benchmarks")
