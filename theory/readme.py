"""Writes the table of verdicts in theory/README.md from results/theory/verdicts.json.

    python -m theory.readme

The texts and verdicts come from the stored results, and the notebook of a check is the one that
runs it. No part of the table is written by hand.
"""

from collections.abc import Sequence
from pathlib import Path

from ckasr.storage import write_text
from theory.report import stored
from theory.result import OPEN, Result

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "theory" / "README.md"
BEGIN, END = "<!-- table: python -m theory.readme -->", "<!-- end of table -->"
HEAD = (
    "check: the paper's claim",
    "verdict on the statement",
    "consequence for the claim",
    "reason",
    "notebook",
    "command",
)


def notebook_of(name: str) -> Path | None:
    """The notebook that runs the check ``name``; None if there is none."""
    call = f'theory.run(\\"{name}\\"'
    found = (
        p for p in sorted((ROOT / "notebooks").glob("theory_*.ipynb")) if call in p.read_text()
    )
    return next(found, None)


def line(cells: Sequence[str]) -> str:
    """The cells as one line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def row(result: Result) -> str:
    """The line of one check."""
    notebook = notebook_of(result.name)
    link = f"[{notebook.stem.split('_')[1]}](../notebooks/{notebook.name})" if notebook else ""
    cells = [
        f"[{result.name}]({result.name}.py): {result.claim}",
        f"**{result.verdict}**",
        result.consequence if result.consequence == OPEN else f"{result.consequence} it",
        result.reason,
        link,
        f"`python -m theory {result.name}`",
    ]
    return line(cells)


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    return "\n".join([line(HEAD), "|" + "---|" * len(HEAD), *map(row, results)])


def with_table(text: str, results: Sequence[Result]) -> str:
    """Replace the table in the text of the README.

    Raises:
        ValueError: if `BEGIN` and `END` do not occur exactly once each.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{README.name} must contain the lines {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}"


def main() -> None:
    results = stored(ROOT / "results" / "theory")
    if not results:
        raise SystemExit("no results/theory/verdicts.json; run `python -m theory` first")
    write_text(README, with_table(README.read_text(), results))
    print(f"{len(results)} results in {README.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
