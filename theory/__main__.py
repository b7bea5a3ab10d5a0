"""Run the checks: `python -m theory [names] [--fast] [--seed N] [--results DIR]`.

The command prints one line per check and one table. It writes DIR/theory/verdicts.json and the
figures DIR/theory/<name>.png and .svg. The exit status is 0 for every verdict, 1 if a check
crashed, and 2 for an unknown name.
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
        "names", nargs="*", help=f"names of the checks (default: all): {', '.join(theory.NAMES)}"
    )
    parser.add_argument(
        "--fast", action="store_true", help="use small sizes; all checks take one minute"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random numbers (default 0)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of the results (default: results; with --fast results/demo, so that results "
        "with small sizes do not replace those with full sizes)",
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
