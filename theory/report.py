"""Files, figures and tables of the results, for the command line and the notebooks.

    python -m theory.report

draws the figures of all stored results again.
"""

import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import theory
from ckasr.analysis import tables
from ckasr.analysis.style import save as write_figure
from ckasr.analysis.style import style
from ckasr.storage import write_text
from theory.result import Result, as_json, corrected

HEAD = ("check", "verdict", "the claim", "s", "reason")


def draw(result: Result, folder: Path) -> list[Path]:
    """Write ``<folder>/<name>.png`` and ``.svg``. Equal results give equal bytes.

    Returns:
        The written files; an empty list if the check has no figure for this result.
    """
    with style():
        figure = theory.load(result.name).figure(result)
    return [] if figure is None else write_figure(figure, folder / f"{result.name}.png")


def redraw(folder: Path) -> list[Path]:
    """Draw the figures of all results stored in ``folder`` and return the written files."""
    return [path for result in stored(folder) for path in draw(result, folder)]


def stored(folder: Path) -> list[Result]:
    """The results of ``<folder>/verdicts.json``; empty if there is no such file."""
    path = folder / "verdicts.json"
    return [Result.from_json(r) for r in json.loads(path.read_text())] if path.is_file() else []


def save(results: Sequence[Result], folder: Path) -> list[Result]:
    """Add results to those stored in ``folder`` and correct all p-values together.

    A result replaces the stored result of the same name, except if the two differ in their wall
    time only. Then the file does not change.

    Returns:
        All stored results, in the order of `theory.NAMES`.
    """
    before = {r.name: r for r in stored(folder)}
    known = before | {r.name: r for r in results}
    suite = corrected([known[name] for name in theory.NAMES if name in known])
    suite = [_with_known_time(result, before.get(result.name)) for result in suite]
    write_text(folder / "verdicts.json", as_json(suite))
    return suite


def _with_known_time(result: Result, old: Result | None) -> Result:
    if old is None:
        return result
    same = replace(result, seconds=old.seconds)
    return same if as_json([same]) == as_json([old]) else result


def cells(result: Result) -> tuple[str, ...]:
    """The cells of one result, in the order of `HEAD`."""
    seconds = f"{result.seconds:.1f}"
    return result.name, result.verdict, result.consequence, seconds, result.reason


def markdown(results: Sequence[Result]) -> str:
    """The results as a Markdown table, for a notebook."""
    rows = [[cell.replace("|", r"\|") for cell in cells(result)] for result in results]
    return "\n".join(tables.markdown(HEAD, rows))


def table(results: Sequence[Result]) -> str:
    """The results as plain text, with one row per check.

    The reason is wrapped to the width of the terminal, which counts as 100 to 160 columns.
    """
    width = max(100, min(160, shutil.get_terminal_size((120, 24)).columns))
    form = "{:<25}{:<23}{:<11}{:>6}  {}"
    indent = len(form.format("", "", "", "", ""))
    lines = [form.format(*HEAD), "-" * width]
    for result in results:
        *first, reason = cells(result)
        start, *more = textwrap.wrap(reason, width - indent) or [""]
        lines.append(form.format(*first, start))
        lines += [" " * indent + line for line in more]
    return "\n".join(lines)


if __name__ == "__main__":
    for written in redraw(Path("results/theory")):
        print(written)
