"""The runner: what it writes, what it prints, and how it fails."""

import json
import sys
import types
from dataclasses import replace

import pytest

import theory
from theory.__main__ import main
from theory.report import draw, redraw, save, stored, table
from theory.result import ALPHA, INCONCLUSIVE, PROVED, at_most, judge, rejects

DOC = "Claim: c.\n\nStatement: s.\n\nAssumptions: none.\n"
NAME = "one_sided_bound"  # a check that takes milliseconds


def verdict(name: str, p: float):
    words = {"verdict": PROVED, "reason": "so it is", "consequence": "refutes"}
    return judge(f"theory.{name}", DOC, [at_most("a", 0, 1), rejects("b", p)], **words)


def test_run_writes_verdict_and_figure_and_prints_a_table(tmp_path, capsys):
    assert main([NAME, "--fast", "--seed", "3", "--results", str(tmp_path)]) == 0
    (entry,) = json.loads((tmp_path / "theory" / "verdicts.json").read_text())
    assert (entry["name"], entry["verdict"], entry["fast"], entry["seed"]) == (
        NAME,
        PROVED,
        True,
        3,
    )
    assert entry["seconds"] > 0
    assert (tmp_path / "theory" / f"{NAME}.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in (tmp_path / "theory").iterdir()} == {
        "verdicts.json",
        f"{NAME}.png",
        f"{NAME}.svg",
    }
    progress, *rest = capsys.readouterr().out.splitlines()
    assert progress.startswith(f"[1/1] {NAME} ... proved (")
    assert rest[-1].startswith("1 proved; ")


def test_a_later_run_joins_the_earlier_ones_in_the_order_of_the_suite(tmp_path):
    save([verdict("renyi2", 0.0), verdict("estimators", 0.0)], tmp_path)
    suite = save([verdict("zero_set", 0.0)], tmp_path)
    assert [v.name for v in suite] == ["estimators", "zero_set", "renyi2"]
    assert suite == stored(tmp_path)


def test_only_another_time_does_not_change_the_file(tmp_path):
    save([replace(verdict("zero_set", 0.0), seconds=0.3)], tmp_path)
    before = (tmp_path / "verdicts.json").read_bytes()
    save([replace(verdict("zero_set", 0.0), seconds=1.0)], tmp_path)
    assert (tmp_path / "verdicts.json").read_bytes() == before
    save([replace(verdict("zero_set", 0.5), seconds=1.0)], tmp_path)
    (new,) = stored(tmp_path)
    assert (new.seconds, new.verdict) == (1.0, INCONCLUSIVE)


def test_each_joining_test_is_corrected_for(tmp_path):
    (alone,) = save([verdict("zero_set", 0.6 * ALPHA)], tmp_path)
    first, second = save([verdict("renyi2", 0.6 * ALPHA)], tmp_path)
    assert alone.verdict == PROVED
    assert (first.verdict, second.verdict) == (INCONCLUSIVE, INCONCLUSIVE)
    assert [c.adjusted for c in first.conditions if c.p] == pytest.approx([1.2 * ALPHA])


def test_unknown_name_is_one_line_and_runs_nothing(tmp_path, capsys):
    assert main([NAME, "rank_one_minimun", "--results", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "nearest: rank_one_minimum" in err
    assert list(tmp_path.iterdir()) == []


def test_a_crash_is_named_and_spares_the_others(tmp_path, capsys, monkeypatch):
    def crash(**_):
        raise ZeroDivisionError("by design")

    monkeypatch.setitem(sys.modules, "theory.zero_set", types.SimpleNamespace(check=crash))
    assert main(["zero_set", NAME, "--fast", "--results", str(tmp_path)]) == 1
    assert "crashed: zero_set" in capsys.readouterr().err
    assert [v.name for v in stored(tmp_path / "theory")] == [NAME]


def test_every_check_is_a_module_that_opens_with_its_claim():
    from theory.result import sections

    for name in theory.NAMES:
        module = theory.load(name)
        assert {"claim", "statement", "assumptions", "verdict"} <= sections(module.__doc__).keys()
        assert callable(module.check)
        assert callable(module.figure)


def test_figures_are_redrawn_from_the_stored_results(tmp_path):
    result = theory.run(NAME, fast=True)
    save([result], tmp_path)
    wanted = draw(result, tmp_path / "of the check")
    found = redraw(tmp_path)
    assert [path.name for path in found] == [f"{NAME}.png", f"{NAME}.svg"]
    assert [path.read_bytes() for path in found] == [path.read_bytes() for path in wanted]


def test_table_keeps_within_its_width():
    text = table([verdict("zero_set", 0.0), verdict("renyi2", 1.0)])
    assert max(map(len, text.splitlines())) <= 160
    assert "b: 1 not <= 0.001" in text
