"""What is done with verdicts: the file, the figures, the table."""

import json
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

import theory
from ckasr.analysis import tables
from ckasr.analysis.style import save as write_figure
from ckasr.analysis.style import style
from ckasr.storage import write_text
from theory.verdict import Verdict, as_json, corrected


def draw(verdict: Verdict, folder: Path) -> list[Path]:
    """Write `<folder>/<name>.png` and `.svg`; the same verdict gives the same bytes.

    Returns the files; none if the check has nothing to draw.
    """
    with style():
        figure = theory.load(verdict.name).figure(verdict)
    return [] if figure is None else write_figure(figure, folder / f"{verdict.name}.png")


def stored(folder: Path) -> list[Verdict]:
    """The verdicts of `<folder>/verdicts.json`; none if there is no such file."""
    path = folder / "verdicts.json"
    return [Verdict.from_json(v) for v in json.loads(path.read_text())] if path.is_file() else []


def save(verdicts: Sequence[Verdict], folder: Path) -> list[Verdict]:
    """Put verdicts among those stored in `folder`, p-values corrected over all; return these."""
    known = {v.name: v for v in [*stored(folder), *verdicts]}
    suite = corrected([known[name] for name in theory.NAMES if name in known])
    write_text(folder / "verdicts.json", as_json(suite))
    return suite


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a Markdown table, for a notebook."""
    head = ("check", "verdict", "the claim", "s", "reason")
    rows = [(v.name, v.verdict, v.bearing, f"{v.seconds:.1f}", v.reason) for v in verdicts]
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return "\n".join(tables.markdown(head, escaped))


def table(verdicts: Sequence[Verdict]) -> str:
    """One row a check, the reason wrapped to the width of the terminal."""
    width = max(100, min(160, shutil.get_terminal_size((120, 24)).columns))
    form = "{:<24}{:<23}{:<11}{:>6}  {}"
    lead = len(form.format("", "", "", "", ""))
    lines = [form.format("check", "verdict", "the claim", "s", "reason"), "-" * width]
    for v in verdicts:
        first, *more = textwrap.wrap(v.reason, width - lead) or [""]
        lines.append(form.format(v.name, v.verdict, v.bearing, f"{v.seconds:.1f}", first))
        lines += [" " * lead + line for line in more]
    return "\n".join(lines)
