"""Run the checks: `python -m theory [names] [--fast] [--seed N] [--results DIR]`.

Prints a line a check and one table, writes DIR/theory/verdicts.json and DIR/theory/<name>.png.
Verdicts are results, not errors: the exit status is 1 only if a check crashed, 2 for a wrong name.
"""

import argparse
import json
import os
import shutil
import sys
import textwrap
import traceback
from pathlib import Path

import theory
from theory.verdict import INCONCLUSIVE, Verdict, as_json, corrected


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m theory", description=theory.__doc__)
    parser.add_argument("names", nargs="*", help=f"checks to run; all if none: {theory.NAMES}")
    parser.add_argument("--fast", action="store_true", help="small sizes: two minutes for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of the results (default: results; with --fast results/demo, so that small "
        "sizes never replace full ones)",
    )
    return parser.parse_args(argv)


def write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def draw(verdict: Verdict, folder: Path) -> None:
    path = folder / f"{verdict.name}.png"
    part = path.with_suffix(".part.png")
    folder.mkdir(parents=True, exist_ok=True)
    theory.load(verdict.name).figure(verdict).savefig(part)
    os.replace(part, path)


def merged(new: list[Verdict], path: Path) -> list[Verdict]:
    """The new verdicts among those of earlier runs, p-values corrected over all of them."""
    old = (
        [Verdict.from_json(entry) for entry in json.loads(path.read_text())]
        if path.is_file()
        else []
    )
    known = {v.name: v for v in [*old, *new]}
    return corrected([known[name] for name in theory.NAMES if name in known])


def table(verdicts: list[Verdict]) -> str:
    """One row a check; the reason wraps to the width of the terminal."""
    width = max(100, min(160, shutil.get_terminal_size((120, 24)).columns))
    form = "{:<24}{:<23}{:<11}{:>6}  {}"
    lead = len(form.format("", "", "", "", ""))
    lines = [form.format("check", "verdict", "the claim", "s", "reason"), "-" * width]
    for v in verdicts:
        first, *more = textwrap.wrap(v.reason, width - lead) or [""]
        lines.append(form.format(v.name, v.verdict, v.bearing, f"{v.seconds:.1f}", first))
        lines += [" " * lead + line for line in more]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    names = args.names or list(theory.NAMES)
    folder = (args.results or Path("results/demo" if args.fast else "results")) / "theory"
    try:
        for name in names:
            theory.load(name)
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    done, crashed = [], []
    for count, name in enumerate(dict.fromkeys(names), 1):
        print(f"[{count}/{len(names)}] {name} ...", end=" ", flush=True)
        try:
            verdict = theory.run(name, fast=args.fast, seed=args.seed)
            draw(verdict, folder)
        except Exception:
            traceback.print_exc()
            crashed.append(name)
            print("crashed", flush=True)
        else:
            done.append(verdict)
            print(f"{verdict.verdict} ({verdict.seconds:.1f} s)", flush=True)
    suite = merged(done, folder / "verdicts.json")
    write(folder / "verdicts.json", as_json(suite).encode())
    print(f"\n{table([v for v in suite if v.name in names])}\n")
    inconclusive = [v.name for v in suite if v.verdict == INCONCLUSIVE]
    print(f"{sum(v.seconds for v in done):.0f} s; verdicts and figures in {folder}", end="")
    print(f"; inconclusive: {', '.join(inconclusive)}" if inconclusive else "")
    if crashed:
        print(f"crashed: {', '.join(crashed)}", file=sys.stderr)
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main())
