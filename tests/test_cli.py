"""The command line, as a user types it: from a plain checkout, errors in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ckasr import __version__, cli
from ckasr.experiments import Settings, records
from ckasr.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
DIGITS = "--dataset digits --model resmlp --validation 200 --epochs 1"


def ckasr(line: str, results: Path | None = None) -> str:
    """Run a command in this process; returns what it printed, raises what it raised."""
    words = line.split() + ([] if results is None else ["--results", str(results)])
    outcome = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def test_methods_are_listed_with_their_options():
    text = ckasr("methods")
    for name, method in METHODS.items():
        assert f"{name:<12}{method.summary}" in text
    assert "options: begin=0.0, end=0.75, every=100" in text


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "results"
    ckasr(f"sweep {DIGITS} --sparsities 0.9 --betas 0,1e-3 --seeds 0-1 --jobs 1", folder)
    return folder


def test_sweep_runs_the_grid_that_was_asked_for(results):
    found = [Settings.from_dict(record["settings"]) for record in records.load_all(results)]
    assert [(s.sparsity, s.beta, s.seed) for s in found] == [
        (0.9, 0.0, 0),
        (0.9, 0.0, 1),
        (0.9, 0.001, 0),
        (0.9, 0.001, 1),
    ]


def test_a_list_may_be_given_in_one_option_or_in_several(tmp_path):
    once = ckasr(f"sweep {DIGITS} --sparsities 0.9,0.8 --betas 0,1e-3 --seeds 0-2 --dry-run")
    several = ckasr(
        f"sweep {DIGITS} --sparsities 0.9 --sparsities 0.8 --betas 0 --betas 1e-3 --seeds 0 "
        "--seeds 1-2 --dry-run"
    )
    assert once == several
    assert len([line for line in once.splitlines() if "seed" in line]) == 2 * 2 * 3


def test_run_names_its_record_and_does_not_train_twice(results):
    line = f"run {DIGITS} --sparsity 0.9 --beta 1e-3 --seed 1"
    output = ckasr(line, results)
    assert "already has a record" in output
    path = Path(output.splitlines()[-1])
    assert json.loads(path.read_text())["settings"]["seed"] == 1


def test_every_setting_is_a_flag(results):
    line = (
        f"run {DIGITS} --sparsity 0.5 --beta 0.1 --variant paper --samples 4 --every 2 --pairs all "
        "--batch-size 64 --learning-rate 0.05 --momentum 0.8 --no-nesterov --weight-decay 1e-4 "
        "--milestones 0.3 --milestones 0.6 --decay 0.2 --augment none --precision bf16 --seed 9 "
        "--distribution uniform"
    )
    path = Path(ckasr(line, results).splitlines()[-1])
    settings = json.loads(path.read_text())["settings"]
    assert settings["milestones"] == [0.3, 0.6]
    assert settings["nesterov"] is False
    assert (settings["variant"], settings["samples"], settings["every"]) == ("paper", 4, 2)
    assert (settings["distribution"], settings["precision"]) == ("uniform", "bf16")


def test_table_and_figures_come_from_records(results, tmp_path):
    assert "CKA-SR, β = 0.001" in ckasr("table", results) or "1e-3" in ckasr("table", results)
    written = [Path(line) for line in ckasr("figures", results).splitlines()]
    assert {path.suffix for path in written} == {".md", ".png", ".svg"}
    assert all(path.is_file() for path in written)


def test_figures_of_all_folders_write_the_table_of_claims(results, tmp_path, monkeypatch):
    """From every folder under results/; one folder alone leaves the table as it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine").symlink_to(results)
    ckasr("figures", results)
    assert not Path("results/claims.md").exists()
    Path("README.md").write_text(
        "Top\n<!-- claims: make figures -->\nold\n<!-- end of claims -->\n"
    )
    assert ckasr("figures").splitlines()[-2:] == ["results/claims.md", "README.md"]
    assert "not run yet" in Path("results/claims.md").read_text()
    readme = Path("README.md").read_text()
    assert "old" not in readme
    assert "| CIFAR-100 at 99.8 %: 6 % or more (abstract) " in readme


def test_records_can_be_exported_and_merged(results, tmp_path):
    lines = tmp_path / "all.jsonl"
    ckasr(f"records export {lines}", results)
    count = len(records.load_all(results))
    assert f"{count} new records" in ckasr(f"records merge {lines}", tmp_path / "elsewhere")


def test_data_check():
    assert "10 classes" in ckasr("data check digits")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run --sparsity 1", "setting sparsity = 1.0 must be in [0, 1)"),
        ("run --method randon", "unknown method 'randon'; nearest: random"),
        ("run --dataset cifar100", "cifar-100-python"),
        ("run --dataset digits --option levels", "'levels' must be name=value"),
        ("run --dataset digits --device cuda:99", "torch sees no CUDA device"),
        ("run --dataset digits --device gpu", "device 'gpu' is not supported"),
        ("run --dataset movies", "unknown data set 'movies' (all: "),
        ("run --model resnet-20", "unknown model 'resnet-20'; nearest: resnet20"),
        ("run --learning-rate inf", "setting learning_rate = inf must be finite"),
        ("run --seed -1", "setting seed = -1 must be not negative"),
        (f"run --seed {10**30}", "setting seed is too large"),
        ("run --milestones 0.5,x", "--milestones '0.5,x' is not a comma-separated list"),
        ("sweep --dataset digits --minutes nan", "minutes=nan must be a number"),
        ("sweep --seeds 4-0", "--seeds '4-0': a range must increase"),
        ("sweep --seeds 0-99999999999", "must increase and have at most 10000 numbers"),
        ("sweep --seeds 0-", "--seeds '0-' is not a comma-separated list"),
        ("sweep --jobs -2", "--jobs -2 must be 0 or more"),
        ("sweep --seeds 1,x", "--seeds '1,x' is not a comma-separated list"),
        ("table --results nowhere", "no records in nowhere/records"),
        ("records merge nowhere.jsonl", "no file nowhere.jsonl"),
        ("data check mnits", "unknown data set 'mnits'"),
        ("reproduce --profile dmeo", "no profile 'dmeo'"),
        ("reproduce --profile cpu --results nowhere", "cifar-100-python"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(line, message, capsys, monkeypatch, tmp_path):
    if "cuda" in line:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("CKASR_DATA", str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ckasr", *line.split()])
    monkeypatch.setattr("ckasr.data.registry.fetch", _no_network)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("ckasr: ")
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run --sparsty 0.9", "ckasr: no such option: --sparsty"),
        ("run --epochs 1.5", "ckasr: invalid value for '--epochs'"),
        ("rn", "ckasr: no such command 'rn'"),
        ("notebook a.ipynb", "ckasr: missing option '--output'"),
    ],
)
def test_a_wrong_command_line_is_one_line_too(line, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ckasr", *line.split()])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(message)
    assert "\n" not in error


def test_help_version_and_success_leave_by_status_0(capsys, monkeypatch):
    for line, said in (("--version", f"ckasr {__version__}\n"), ("methods", "dense")):
        monkeypatch.setattr(sys, "argv", ["ckasr", line])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
        assert capsys.readouterr().out.startswith(said)
    monkeypatch.setattr(sys, "argv", ["ckasr"])
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr()
    assert "Commands" in printed.out + printed.err


def test_a_warning_is_one_line(results, capsys, monkeypatch, tmp_path):
    (record,) = records.load_all(results)[:1]
    path = records.save(record, tmp_path)
    path.with_name("notes.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["ckasr", "table", "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ckasr: warning: left out: {path.with_name('notes.json')} is not a run")


def test_dry_run_lists_the_cells_and_writes_nothing(results, tmp_path):
    line = f"sweep {DIGITS} --sparsities 0.9 --betas 0 --seeds 0-1,7 --dry-run"
    *cells, total = ckasr(line, results).splitlines()
    assert [cell.split()[1] for cell in cells] == ["has", "has", "about"]
    assert cells[2].endswith("digits resmlp random sparsity 0.9 baseline seed 7, 1 epochs")
    assert total.startswith("1 of 3 cells to run: about 0 s one after another")
    elsewhere = ckasr(line, tmp_path / "none").splitlines()
    assert "time unknown" in elsewhere[0]
    assert elsewhere[-1] == "3 of 3 cells to run: 3 of unknown time"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"milestones": ()},
        {"milestones": (0.25, 0.5, 0.9), "decay": 0.3},
        {"nesterov": False, "momentum": 0.0},
        {"sparsity": 0.1 + 0.2, "weight_decay": 1e-320},
        {"beta": 1e-4, "variant": "paper", "samples": 0, "pairs": "adjacent", "seed": 2**63 - 1},
        {"method": "lth", "method_options": {"levels": "0.50,0.8", "rewind": 3}},
        {"method": "grasp", "method_options": {"train_mode": True}},
        {"method": "structured", "method_options": {"term": "pretrain"}},
    ],
)
def test_flags_of_settings_give_the_same_settings(changes, monkeypatch):
    """What the workflow hands to `ckasr run` must train the cell it is for."""
    settings, got = Settings(**{"dataset": "digits", "model": "resmlp"} | changes), []
    monkeypatch.setattr(
        cli, "run_settings", lambda s, *a, **k: got.append(s) or {"test_accuracy": 0.5}
    )
    assert CliRunner().invoke(cli.app, ["run", *settings.flags()]).exit_code == 0
    assert got == [settings]


def _no_network(name: str, *args: object, **kwargs: object) -> None:
    raise ConnectionError(f"{name}: cifar-100-python cannot be downloaded: no network")


def test_module_runs_from_a_plain_checkout_without_extras(tmp_path):
    """As on a borrowed GPU machine: no install, none of papermill, Jupyter, pandas."""
    for name in ("papermill", "nbformat", "IPython", "ipykernel", "pandas"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name} is not here')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = f"run {DIGITS} --sparsity 0.9 --results {tmp_path / 'results'}".split()
    done = subprocess.run(
        [sys.executable, "-m", "ckasr", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(records.load_all(tmp_path / "results")) == 1
