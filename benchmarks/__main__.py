"""``python -m benchmarks [names]``: compare the times of this package and of plain references."""

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

from . import MODULES, NAMES, figures, store
from .store import FOLDER

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Benchmarks (default: all): {', '.join(NAMES)}.")
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Save results and draw figures.")] = False,
    folder: Annotated[Path, typer.Option(help="Folder for saved results.")] = FOLDER,
    device: Annotated[
        str, typer.Option(help="cpu, cuda or auto; auto uses a GPU if there is one.")
    ] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Number of measured rounds.")] = 11,
) -> None:
    """Run benchmarks on one thread of the CPU or on a GPU, and print their tables.

    Ratios compare variants within one run. Times depend on the machine and its load.
    """
    chosen = list(dict.fromkeys(names or NAMES))
    for name in chosen:
        if name not in NAMES:
            _stop(f"unknown benchmark {name!r}{nearest(name, NAMES)}")
    try:
        found_device = devices.find(device)
    except ValueError as error:
        _stop(str(error))
    if "sparse" in chosen and find_spec("numba") is None:
        _stop("sparse execution needs numba: pip install 'ckasr[sparse]'")
    torch.set_num_threads(1)
    found: dict[str, list[store.Record]] = {}
    places = {}
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        # Sparse execution has kernels for the CPU only.
        target = torch.device("cpu") if name == "sparse" else found_device.place
        module = import_module(f"benchmarks.{MODULES.get(name, name)}")
        record = store.record(name, module.measure(target, rounds), target)
        found.setdefault(record["device"], []).append(record)
        if save:
            path = store.save(record, folder)
            places[path.parent] = None
            print(path, file=sys.stderr, flush=True)
    for records in found.values():
        print(f"\n{store.report(records)}")
    for place in places:
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
