"""The verdict table of theory/README.md says what results/theory/verdicts.json says."""

import pytest

import theory
from theory.readme import BEGIN, END, README, ROOT, notebook_of, row, table, with_table
from theory.report import stored
from theory.result import at_most, judge, sections

STORED = ROOT / "results" / "theory"
DOC = "Claim: |w| is small.\n\nStatement: s.\n\nAssumptions: none.\n"


def verdict(value: float = 0):
    words = {"verdict": "proved", "reason": "||W|| | X", "consequence": "refutes"}
    return judge("theory.renyi2", DOC, [at_most("a", value, 1)], **words)


def test_the_committed_table_is_that_of_the_committed_verdicts():
    text = README.read_text()
    assert text == with_table(text, stored(STORED)), "run python -m theory.readme"


def test_the_committed_suite_is_whole_full_size_and_has_its_figures():
    suite = stored(STORED)
    assert [v.name for v in suite] == list(theory.NAMES)
    assert not any(v.fast for v in suite), "small sizes must not replace full ones"
    for v in suite:
        drawn = theory.load(v.name).figure(v) is not None
        assert (STORED / f"{v.name}.png").is_file() == drawn
        assert (STORED / f"{v.name}.svg").is_file() == drawn


def test_the_committed_texts_are_those_of_the_docstrings():
    for v in stored(STORED):
        words = sections(theory.load(v.name).__doc__)
        texts = [words[label] for label in ("claim", "statement", "assumptions")]
        assert [v.claim, v.statement, v.assumptions] == texts, f"run python -m theory {v.name}"


@pytest.mark.parametrize("name", theory.NAMES)
def test_every_check_has_its_notebook(name):
    assert notebook_of(name)


def test_a_row_keeps_its_columns_and_follows_its_verdict():
    assert row(verdict()).replace(r"\|", "").count("|") == 7
    assert "**proved** | refutes it |" in row(verdict())
    assert "**inconclusive** | open |" in row(verdict(2))


def test_only_the_table_is_replaced():
    text = with_table(f"before\n{BEGIN}\nold\n{END}\nafter\n", [verdict()])
    assert text == f"before\n{BEGIN}\n{table([verdict()])}\n{END}\nafter\n"
    assert with_table(text, [verdict()]) == text
    with pytest.raises(ValueError, match="once each"):
        with_table("no table here", [])
