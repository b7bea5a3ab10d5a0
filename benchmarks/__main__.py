"""``python -m benchmarks [names]``: time ours beside the plain reference, print a table."""

import json
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch
import typer

from ckasr.experiments.records import write_text
from ckasr.experiments.run import device_name

from . import NAMES
from .timing import table


def main(
    names: Annotated[list[str] | None, typer.Argument(help=", ".join(NAMES))] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write results here.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto: a GPU if there is one.")] = "auto",
    rounds: Annotated[int, typer.Option(help="Rounds that count; more are steadier.")] = 11,
    threads: Annotated[int, typer.Option(help="CPU threads; the sweep uses 1 a process.")] = 1,
) -> None:
    """Ratios compare within one run; absolute times are of this machine on this day."""
    for name in names or ():
        if name not in NAMES:
            raise typer.BadParameter(f"unknown benchmark {name!r}; there are {', '.join(NAMES)}")
    torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    target = torch.device(device)
    timings = []
    for name in names or NAMES:
        print(f"{name} ...", flush=True)
        timings += import_module(f"benchmarks.{name}").measure(target, rounds)
    print(f"\n{device_name(target)}, torch {torch.__version__}\n\n{table(timings)}")
    if json_file is not None:
        result = {
            "device": device_name(target),
            "date": datetime.now(UTC).date().isoformat(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "timings": [asdict(timing) for timing in timings],
        }
        write_text(json_file, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
