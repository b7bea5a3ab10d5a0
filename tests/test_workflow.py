"""The Snakemake workflow: the cells of a profile, and the records that any other run leaves."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ckasr import notebooks
from ckasr.experiments import Settings, records, run
from ckasr.notebooks import ROOT, read_profile

pytest.importorskip("snakemake", reason="needs snakemake: pip install 'ckasr[sweep]'")


def snakemake(results: Path, *options: str) -> str:
    """What a run of workflow/Snakefile with the smoke profile prints."""
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "workflow" / "Snakefile")]
    config = ["--cores", "2", "--config", "profile=smoke", f"results={results}"]
    done = subprocess.run([*command, *config, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_dry_run_finds_the_cells_of_the_profile(tmp_path):
    """The cells of notebooks 02 to 09 and 12, each once, and the figures."""
    results = tmp_path / "it's a folder of $HOME"
    text = snakemake(results, "--dry-run", "--printshellcmds")
    cells = {
        cell.id: cell for step in read_profile("smoke").steps for cell in notebooks.cells(step)
    }
    # 05 to 07 share what 04 has in fp32, and their baselines. The last three numbers are those of
    # 12, of 08 (two networks, each without and with the term), and of 09: five hosts, each without
    # and with the term, with two seeds.
    assert len(cells) == 16 + 4 + 4 + 4 + 20
    assert f"cell          {len(cells)}" in text
    assert "figures        1" in text
    commands = [
        shlex.split(line.removeprefix("Shell command: "))
        for line in text.splitlines()
        if line.startswith("Shell command: ")
    ]
    assert len(commands) == len(cells) + 1
    assert {command[-1] for command in commands} == {str(results)}
    wanted = {("-m", "ckasr", "run", *cell.flags(), "--results") for cell in cells.values()}
    assert {tuple(command[1:-1]) for command in commands if "run" in command} == wanted


@pytest.mark.slow
def test_cells_write_the_same_records_as_the_command_line(tmp_path):
    text = snakemake(tmp_path / "results")
    assert "45 of 45 steps" in text
    made = records.load_all(tmp_path / "results")
    assert {record["status"] for record in made} == {"finished"}
    cells = [cell for step in read_profile("smoke").steps for cell in notebooks.cells(step)]
    assert {record["id"] for record in made} == {cell.id for cell in cells}
    settings = Settings.from_dict(made[0]["settings"])
    again = run(settings, tmp_path / "again", progress=None)
    assert again["id"] == made[0]["id"]
