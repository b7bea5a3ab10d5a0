"""Run the checks: `python -m theory [names] [--fast] [--seed N] [--results DIR]`.

Prints one line per check and one table; writes DIR/theory/verdicts.json and DIR/theory/<name>.png.
No verdict is an error: the exit status is 1 only if a check crashed, and 2 for an unknown name.
"""

import argparse
import sys
import traceback
from pathlib import Path

import theory
from theory.report import draw, save, table
from theory.result import VERDICTS


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m theory", description=theory.__doc__)
    parser.add_argument(
        "names", nargs="*", help=f"checks to run, by default all: {', '.join(theory.NAMES)}"
    )
    parser.add_argument(
        "--fast", action="store_true", help="small sizes: one minute for all checks"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random numbers (default 0)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of the results (default: results; with --fast results/demo, so that small "
        "sizes do not replace full ones)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    names = list(dict.fromkeys(args.names)) or list(theory.NAMES)
    folder = (args.results or Path("results/demo" if args.fast else "results")) / "theory"
    try:
        for name in names:
            theory.load(name)
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    done, crashed = [], []
    for count, name in enumerate(names, 1):
        print(f"[{count}/{len(names)}] {name} ...", end=" ", flush=True)
        try:
            result = theory.run(name, fast=args.fast, seed=args.seed)
            draw(result, folder)
        except Exception:
            print("crashed", flush=True)
            traceback.print_exc()
            crashed.append(name)
        else:
            print(f"{result.verdict} ({result.seconds:.1f} s)", flush=True)
            done.append(result)
    if done:
        suite = [r for r in save(done, folder) if r.name in names]
        counts = [(sum(r.verdict == kind for r in suite), kind) for kind in VERDICTS]
        print(f"\n{table(suite)}\n")
        print(", ".join(f"{n} {kind}" for n, kind in counts if n), end="; ")
        print(f"{sum(r.seconds for r in done):.0f} s; results and figures in {folder}")
    if crashed:
        print(f"crashed: {', '.join(crashed)}", file=sys.stderr)
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main())
