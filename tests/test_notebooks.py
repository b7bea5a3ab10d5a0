"""The wrapper around papermill, and every notebook held to the project's conventions."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import record
from typer.testing import CliRunner

from ckasr import cli, notebooks
from ckasr.experiments import Settings, records
from ckasr.experiments.sweeps import Outcome
from ckasr.methods import METHODS
from ckasr.notebooks import ROOT, Parameter, declared, execute, read_profile

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def write_notebook(path: Path, *cells: str, tagged: int | None = 0) -> Path:
    """A notebook of these code cells; the one numbered `tagged` holds the parameters."""
    code = [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": f"cell-{number}",
            "metadata": {"tags": ["parameters"]} if number == tagged else {},
            "outputs": [],
            "source": source.splitlines(keepends=True),
        }
        for number, source in enumerate(cells)
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": code, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(whole))
    return path


# What a notebook declares


def test_declared_reads_name_type_default_and_help(tmp_path):
    cell = "beta: float = 1e-4  # weight of the term\nseeds: list[int] = [0, 1]  # « paired »\n"
    assert declared(write_notebook(tmp_path / "a.ipynb", cell)) == {
        "beta": Parameter("beta", "float", 1e-4, "weight of the term"),
        "seeds": Parameter("seeds", "list[int]", [0, 1], "« paired »"),
    }


def test_declared_finds_the_help_after_a_default_that_holds_a_hash_sign(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "colour: str = 'é#fff'  # of the line")
    assert declared(path)["colour"] == Parameter("colour", "str", "é#fff", "of the line")


@pytest.mark.parametrize(
    "line",
    [
        "beta = 1e-4  # no type",
        "beta: float = 1e-4",
        "beta: float = 1e-4  #",
        "beta: float  # no default",
        "beta: Path = 'x'  # another type",
        "beta: int = 0.5  # a default of another type",
        "beta: float = 10 ** -4  # no literal",
        "a: int = 1; b: int = 2  # two on a line",
        "import os",
        "'''text'''",
    ],
)
def test_declared_refuses_any_other_line(tmp_path, line):
    path = write_notebook(tmp_path / "a.ipynb", f"seed: int = 0  # first\n{line}")
    with pytest.raises(ValueError, match=r"a\.ipynb: .* is not a parameter"):
        declared(path)


def test_declared_refuses_a_name_given_twice(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "n: int = 1  # one\nn: int = 2  # two")
    with pytest.raises(ValueError, match="n more than once"):
        declared(path)


def test_declared_wants_exactly_one_tagged_cell(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "n: int = 1  # one", tagged=None)
    with pytest.raises(ValueError, match="0 cells tagged 'parameters'"):
        declared(path)


def test_declared_names_the_file_that_is_missing_or_not_a_notebook(tmp_path):
    with pytest.raises(FileNotFoundError, match="no notebook"):
        declared(tmp_path / "absent.ipynb")
    (tmp_path / "bad.ipynb").write_text("[1, 2]")
    with pytest.raises(ValueError, match="is not a notebook"):
        declared(tmp_path / "bad.ipynb")


# What is handed to it


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (np.float32(0.5), "float", 0.5),
        (np.int64(3), "int", 3),
        (np.bool_(True), "bool", True),
        (1, "float", 1.0),
        ((0.95, 0.995), "list[float]", [0.95, 0.995]),
        (np.arange(3), "list[int]", [0, 1, 2]),
        (torch.tensor([1.0, 2.0]), "list[float]", [1.0, 2.0]),
        (Path("a") / "b", "str", os.path.join("a", "b")),
        ([], "list[str]", []),
    ],
)
def test_convert_gives_plain_values_of_the_declared_type(value, kind, expected):
    plain = notebooks.convert(value, kind)
    assert plain == expected
    assert type(plain) is type(expected)
    if isinstance(plain, list):
        assert [type(item) for item in plain] == [type(item) for item in expected]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("1e-5", "float"),
        (0.5, "int"),
        (True, "int"),
        (1, "bool"),
        (None, "str"),
        (3, "str"),
        ("ab", "list[str]"),
        ([1, "2"], "list[int]"),
        ({"a": 1}, "str"),
        ([[1]], "list[int]"),
    ],
)
def test_convert_refuses_what_would_change_the_value(value, kind):
    with pytest.raises(ValueError, match="is not of type "):
        notebooks.convert(value, kind)


# Running it


def test_execute_passes_the_parameters_and_keeps_the_executed_copy(tmp_path, capsys):
    path = write_notebook(
        tmp_path / "a.ipynb",
        "target: str = ''  # where to\nbeta: float = 0.0  # weight\nseeds: list[int] = [0]  # all",
        "print('beta is', beta)\nopen(target, 'w').write(repr((beta, seeds)))",
    )
    target = tmp_path / "out.txt"
    given = {"target": target, "beta": np.float32(0.5), "seeds": (3, 4)}
    copy = execute(path, tmp_path / "new" / "folder" / "a.ipynb", given, result=target)
    assert target.read_text() == "(0.5, [3, 4])"
    assert capsys.readouterr().out == "beta is 0.5\n"
    assert "beta is 0.5" in copy.read_text()
    assert json.loads(path.read_text())["cells"][1]["outputs"] == []


def test_kernels_use_private_sockets(tmp_path):
    """Neither over TCP, which others on the machine can read, nor in a folder that runs share."""
    path = write_notebook(
        tmp_path / "a.ipynb",
        "target: str = ''  # where to",
        "import shutil\nfrom ipykernel.connect import get_connection_file\n"
        "shutil.copy(get_connection_file(), target)",
    )
    folders = set()
    for name in ("one", "two"):
        execute(path, tmp_path / f"{name}.ipynb", {"target": tmp_path / name})
        connection = json.loads((tmp_path / name).read_text())
        assert connection["transport"] == "ipc"
        folders.add(Path(connection["ip"]).parent)
    assert len(folders) == 2
    assert not any(folder.exists() for folder in folders)


def test_unknown_parameter_names_the_nearest_and_runs_nothing(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "seed: int = 0  # of all\nbeta: float = 0.0  # w")
    with pytest.raises(ValueError, match=r"no parameter 'sede'; nearest: seed \(all: seed, beta\)"):
        execute(path, tmp_path / "out" / "a.ipynb", {"sede": 3})
    with pytest.raises(ValueError, match=r"a\.ipynb, parameter 'seed': '3' is not of type int"):
        execute(path, tmp_path / "out" / "a.ipynb", {"seed": "3"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("cell", "given", "error", "message"),
    [
        ("epochs: int = 3  # of it", {"epochs": 0}, ValueError, "setting epochs = 0 must be"),
        ("dataset: str = 'digits'  # name", {"dataset": "digit"}, LookupError, "nearest: digits"),
        (
            "sparsities: list[float] = [0.9]  # a\nbetas: list[float] = []  # b\n"
            "seeds: list[int] = [0]  # c\nmethods: list[str] = ['random']  # d",
            {"methods": ["randon"]},
            LookupError,
            "nearest: random",
        ),
    ],
)
def test_impossible_values_are_refused_before_the_execution(tmp_path, cell, given, error, message):
    path = write_notebook(tmp_path / "a.ipynb", cell)
    with pytest.raises(error, match=message):
        execute(path, tmp_path / "out" / "a.ipynb", given)
    assert not (tmp_path / "out").exists()


def test_the_output_and_the_results_count_from_the_same_folder(tmp_path, monkeypatch):
    path = write_notebook(
        tmp_path / "a.ipynb",
        "results: str = 'default'  # folder\nn: int = 0  # none",
        "from pathlib import Path\nfolder = Path(results)\nfolder.mkdir()\n"
        "_ = (folder / 'said').write_text(results)",
    )
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    execute(path, Path("copies/a.ipynb"), {})
    execute(path, Path("copies/b.ipynb"), {"results": "given"})
    for name in ("default", "given"):
        folder = tmp_path / "here" / name
        assert (folder / "said").read_text() == str(folder)
    assert (tmp_path / "here" / "copies" / "b.ipynb").exists()


def test_the_kernel_is_this_python_whatever_is_installed_or_named(tmp_path, monkeypatch):
    """A long TMPDIR, as schedulers set it; a python3 of another Python; R in the metadata."""
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    spec = {"argv": ["false", "{connection_file}"], "display_name": "x", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    long = tmp_path / ("scratch" * 12)
    long.mkdir()
    monkeypatch.setattr(notebooks.tempfile, "tempdir", str(long))
    path = write_notebook(
        tmp_path / "a.ipynb",
        "target: str = ''  # where to",
        "import sys\n_ = open(target, 'w').write(sys.executable)",
    )
    whole = json.loads(path.read_text())
    whole["metadata"] = {
        "kernelspec": {"name": "ir", "display_name": "R", "language": "R"},
        "language_info": {"name": "R"},
    }
    path.write_text(json.dumps(whole))
    execute(path, tmp_path / "copy.ipynb", {"target": tmp_path / "said"})
    assert (tmp_path / "said").read_text() == sys.executable


def test_a_missing_short_folder_for_sockets_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks.tempfile, "tempdir", "/x" * 60)
    monkeypatch.setattr(notebooks.os, "access", lambda path, mode: False)
    path = write_notebook(tmp_path / "a.ipynb", "n: int = 0  # none")
    with pytest.raises(OSError, match=r"TMPDIR, /x/x.*, is too long for the sockets"):
        execute(path, tmp_path / "copy.ipynb", {})


def test_failing_cell_raises_one_line_and_leaves_the_copy(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "n: int = 0  # none", "1 / n")
    with pytest.raises(ChildProcessError) as caught:
        execute(path, tmp_path / "copy.ipynb", {})
    assert str(caught.value) == (
        f"a.ipynb: ZeroDivisionError: division by zero (traceback in {tmp_path / 'copy.ipynb'})"
    )
    assert "division by zero" in (tmp_path / "copy.ipynb").read_text()


@pytest.mark.parametrize("stale", [False, True], ids=["no file", "an old file"])
def test_a_run_that_writes_no_result_fails(tmp_path, stale):
    """papermill calls a notebook that leaves by sys.exit a success."""
    path = write_notebook(tmp_path / "a.ipynb", "n: int = 0  # none", "import sys\nsys.exit()")
    result = tmp_path / "a.json"
    if stale:
        result.write_text("{}")
    with pytest.raises(ChildProcessError, match=r"a\.ipynb ended without writing .*a\.json"):
        execute(path, tmp_path / "copy.ipynb", {}, result=result)


def test_a_killed_kernel_is_an_error(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "n: int = 0  # none", "import os\nos._exit(1)")
    with pytest.raises(ChildProcessError, match=r"a\.ipynb: Kernel died"):
        execute(path, tmp_path / "copy.ipynb", {})


@pytest.mark.parametrize("missing", ["papermill", "ipykernel"])
def test_without_jupyter_there_is_one_clear_line(tmp_path, missing):
    path = write_notebook(tmp_path / "a.ipynb", "n: int = 0  # none")
    script = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from pathlib import Path\nfrom ckasr.notebooks import execute\n"
        f"execute(Path({str(path)!r}), Path({str(tmp_path / 'out' / 'copy')!r}), {{}})"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last == (
        f"ModuleNotFoundError: running notebooks needs {missing}: pip install 'ckasr[notebooks]'"
    )
    assert not (tmp_path / "out").exists()


def test_finish_writes_whole_json_where_resolve_says(tmp_path):
    path = notebooks.finish(tmp_path / "new", "01_a", {"verdict": "holds", "n": 3})
    assert path == tmp_path / "new" / "01_a.json"
    assert json.loads(path.read_text()) == {"verdict": "holds", "n": 3}
    assert [p.name for p in path.parent.iterdir()] == ["01_a.json"]
    assert notebooks.resolve("results/demo") == ROOT / "results" / "demo"


# Profiles


def write_profile(path: Path, **tables: object) -> Path:
    """A profile in TOML, which the JSON of these tables nearly is."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in tables.items() if key != "notebooks"]
    for name, parameters in tables.get("notebooks", {}).items():
        lines += [f"[notebooks.{name}]", *(f"{k} = {json.dumps(v)}" for k, v in parameters.items())]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one notebook, 01_a, which writes what it was given."""
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    write_notebook(
        tmp_path / "notebooks" / "01_a.ipynb",
        "dataset: str = 'digits'  # name\nresults: str = 'results/demo'  # folder\n"
        "n: int = 1  # number",
        "from pathlib import Path\n"
        "Path(results).mkdir(exist_ok=True)\n"
        "(Path(results) / '01_a.json').write_text(f'[{n}]')",
    )
    return tmp_path


def test_reproduce_runs_the_profile_and_names_the_written_files(project, capsys):
    profile = write_profile(
        project / "p.toml", about="test", datasets=["digits"], notebooks={"01_a": {"n": 7}}
    )
    (finished,) = notebooks.reproduce(profile, project / "out")
    assert finished.result == project / "out" / "01_a.json"
    assert finished.result.read_text() == "[7]"
    assert finished.executed == project / "out" / "executed" / "01_a.ipynb"
    assert finished.executed.exists()
    assert finished.seconds > 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "data set digits"
    assert re.fullmatch(r"\[1/1\] 01_a: done in \d+ s", last)


def test_reproduce_without_its_data_writes_nothing(project, monkeypatch):
    """No CIFAR-100 there, and none to be fetched: a proxy that refuses stands for no network."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("CKASR_DATA", str(project / "nothing"))
    profile = write_profile(
        project / "p.toml",
        about="test",
        datasets=["cifar100"],
        notebooks={"01_a": {"dataset": "cifar100"}},
    )
    with pytest.raises(OSError, match=r"^cifar100 .*CKASR_DATA") as caught:
        notebooks.reproduce(profile, project / "out")
    assert "\n" not in str(caught.value)
    assert not (project / "out").exists()
    assert not (project / "nothing").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"notebooks": {"01_a": {"m": 1}}}, "no parameter 'm'"),
        ({"notebooks": {"01_a": {"n": "1"}}}, "'1' is not of type int"),
        ({"notebooks": {"01_a": {"dataset": "mnist"}}}, "reads mnist; add it"),
        ({"notebooks": {"01_a": {"results": "x"}}}, "'results', which the run sets"),
        ({"notebooks": {"02_b": {}}}, "no notebook"),
        ({"datasets": []}, "reads digits; add it"),
        ({"extra": 1}, "must have about, datasets and notebooks"),
    ],
)
def test_read_profile_refuses_what_could_only_fail_later(project, change, message):
    whole = {"about": "test", "datasets": ["digits"], "notebooks": {"01_a": {}}} | change
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_profile(write_profile(project / "p.toml", **whole))


def test_read_profile_lists_the_names_there_are():
    with pytest.raises(LookupError, match=r"no profile 'dmeo'; there are: .*demo"):
        read_profile("dmeo")


@pytest.mark.parametrize("name", ["cpu", "cpu30", "demo", "gpu", "methods", "precision", "smoke"])
def test_profile_fits_the_notebooks(name):
    profile = read_profile(name)
    assert profile.about
    assert profile.steps


@pytest.mark.parametrize(("name", "without"), [("demo", {"04_precision"}), ("smoke", set())])
def test_every_notebook_is_in_the_profiles_that_anyone_can_run(name, without):
    """04 says nothing with the few seeds of a demo; its own profile runs on the same digits."""
    profile = read_profile(name)
    assert {step.notebook.stem for step in profile.steps} | without == {p.stem for p in NOTEBOOKS}
    assert not without & {step.notebook.stem for step in profile.steps}
    assert read_profile("precision").datasets == ("digits",)
    assert profile.datasets == ("digits",)


# The notebooks themselves


@every_notebook
def test_notebook_keeps_the_conventions(path):
    import nbformat

    whole = json.loads(path.read_text())
    nbformat.validate(whole)
    assert whole["metadata"]["kernelspec"]["name"] == "python3"
    assert "papermill" not in path.read_text()
    for cell in whole["cells"]:
        source = "".join(cell["source"])
        assert not re.search(r"""["' (=](/|~/|[A-Z]:\\)\w""", source), "an absolute path"
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            assert not re.search(r"^\s*(async\s+)?(def|class)\s", source, re.M), "belongs in ckasr"
    assert "results" in declared(path)
    if not path.stem.startswith("theory_"):
        opening = "".join(whole["cells"][0]["source"]).split("\n\n")[1]
        assert opening.startswith("This notebook "), "it says what it asks, in plain words"
        assert "`results" in opening, "and where its results go"


@every_notebook
def test_notebook_runs_at_smoke_settings(path, tmp_path):
    """Seconds each, with the parameters of workflow/smoke.toml; none is left out."""
    steps = [step for step in read_profile("smoke").steps if step.notebook == path]
    assert steps, f"workflow/smoke.toml has no [notebooks.{path.stem}]"
    (finished,) = notebooks.run_steps(steps, tmp_path)
    assert json.loads(finished.result.read_text())
    outputs = [
        output
        for cell in json.loads(finished.executed.read_text())["cells"]
        for output in cell.get("outputs", [])
    ]
    markdown = ["".join(o.get("data", {}).get("text/markdown", [])) for o in outputs]
    assert markdown[0].startswith("**Cost:** "), "it says first what it will cost"
    assert markdown[-1], "it ends with words"
    stray = [
        o for o in outputs if o["output_type"] == "execute_result" or o.get("name") == "stderr"
    ]
    assert not stray
    left = {run["id"] for run in records.load_all(tmp_path)}
    assert left == {cell.id for cell in notebooks.cells(steps[0])}


def test_a_term_that_ruins_the_network_does_not_hold(tmp_path):
    (path,) = [path for path in NOTEBOOKS if path.stem == "01_plug_in_cka_sr"]
    given = {"results": tmp_path, "beta": 50.0, "epochs": 5}
    execute(path, tmp_path / "copy.ipynb", given, log=io.StringIO())
    found = json.loads((tmp_path / f"{path.stem}.json").read_text())
    assert found["mean_cka_with"] < found["mean_cka_without"]
    assert found["validation_accuracy_with"] < found["validation_accuracy_without"] - 0.05
    assert found["verdict"] == "does not hold here: accuracy collapsed"


def test_cost_of_a_grid_comes_from_the_runs_on_record(tmp_path):
    twin = [record(dataset="digits", seed=seed, epochs=4) for seed in (0, 1)]
    cells = [Settings(dataset="digits", epochs=8, sparsity=0.9, seed=seed) for seed in (0, 1)]
    for run in twin:
        records.save(run, tmp_path)  # 12 seconds an epoch
    said = (
        "**Cost:** 2 of 2 runs are to be trained, 16 epochs in all: about 3 min one after another"
    )
    assert notebooks.cost(cells, tmp_path).startswith(said)
    known = [Settings(dataset="digits", seed=seed, epochs=4) for seed in (0, 1)]
    assert notebooks.cost(known, tmp_path).startswith("**Cost:** none; all 2 runs have a record")
    unknown = Settings(dataset="mnist", model="lenet300", epochs=4)
    assert notebooks.cost([unknown], tmp_path).endswith("no record yet of lenet300 on mnist.")


def test_profile_of_all_methods_gives_the_runs_of_its_records():
    """A name is a hash of all settings: changed parameters would train everything anew."""
    (step,) = read_profile("methods").steps
    cells = notebooks.cells(step)
    assert {cell.method for cell in cells} == set(METHODS)
    assert len(cells) == 1 + 2 * len(METHODS)  # two forms of grasp
    names = {(cell.method, cell.sparsity): cell.id for cell in cells}
    assert names["dense", 0.0] == "02d3ab7359de"
    assert names["random", 0.95] == "753a0c80ba3c"
    assert names["lth", 0.995] == "7cd361c1be89"
    assert names["l0", 0.95] == "4493241686e0"
    there = {path.stem for path in (notebooks.ROOT / "results/methods/records").glob("*.json")}
    assert {cell.id for cell in cells} == there


def test_profile_of_the_precisions_gives_pairs_in_the_order_of_its_records():
    (step,) = read_profile("precision").steps
    cells = notebooks.cells(step)
    assert len(cells) == 160
    for fp32, bf16 in zip(cells[::2], cells[1::2], strict=True):
        assert (fp32.precision, bf16.precision) == ("fp32", "bf16")
        assert replace(bf16, precision="fp32") == fp32
    assert cells[0].id == "cf5169b89151"


def test_profiles_of_the_plan_are_its_grid_and_the_default_of_the_command_line(monkeypatch):
    """results/PLAN.md, Cells: four sparsities, three values of beta, five seeds."""
    asked = []
    outcome = Outcome([], [], [])
    monkeypatch.setattr(cli, "run_sweep", lambda cells, *a, **k: asked.extend(cells) or outcome)
    assert CliRunner().invoke(cli.app, ["sweep"]).exit_code == 0
    assert len(asked) == 60
    assert {cell.epochs for cell in asked} == {160}
    others = {"gpu": {}, "gpu_resnet32": {"model": "resnet32"}, "cpu30": {"epochs": 30}}
    for name, other in others.items():
        (step,) = read_profile(name).steps
        assert notebooks.cells(step) == [replace(cell, **other) for cell in asked]


def test_the_profile_of_the_a_a_check_is_twenty_pairs_of_baselines():
    """results/PLAN.md: nothing but the order of the images differs within a pair."""
    (step,) = read_profile("verdict00_aa").steps
    cells = notebooks.cells(step)
    assert len(cells) == 40
    for seed, (first, second) in enumerate(zip(cells[::2], cells[1::2], strict=True)):
        assert first == Settings(seed=seed, sparsity=0.998, epochs=40)
        assert second == replace(first, order_seed=0)


def test_groups_6_to_12_of_the_verdict_are_those_of_the_plan():
    """results/PLAN.md: how many runs each has, and that both arms of every pair are in it."""
    sizes = {
        "verdict06_more_seeds_995": 10,
        "verdict06_more_seeds_998": 10,
        "verdict07_hosts": 60,
        "verdict07_hosts_wide_resnet32": 20,
        "verdict07_hosts_lottery": 40,
        "verdict08_wide_resnet32": 10,
        "verdict08_resnet32": 20,
        "verdict09_resnet20_95_98": 12,
        "verdict10_few_shots": 75,
        "verdict11_structured": 20,
        "verdict12_large_beta": 15,
    }
    for name, size in sizes.items():
        profile = read_profile(name)
        cells = {cell.id: cell for step in profile.steps for cell in notebooks.cells(step)}
        assert len(cells) == size, name
        assert {cell.baseline().id for cell in cells.values()} <= set(cells), name
        long = name.startswith(("verdict06", "verdict09"))
        assert {cell.epochs for cell in cells.values()} == {160 if long else 40}, name
        assert "of one core" in profile.about, name


def test_more_seeds_continue_those_of_the_first_group():
    for sparsity in (995, 998):
        (first,), (more,) = (
            read_profile(f"{name}_{sparsity}").steps
            for name in ("verdict01_resnet20", "verdict06_more_seeds")
        )
        moved = {replace(c, seed=c.seed + 5).id for c in notebooks.cells(first) if c.beta != 1e-3}
        assert {cell.id for cell in notebooks.cells(more)} == moved


def test_samples_and_intervals_span_the_grid_with_one_baseline_for_each_seed():
    (step,) = read_profile("verdict10_few_shots").steps
    cells = notebooks.cells(step)
    assert sum(cell.beta == 0 for cell in cells) == 3
    found = {(cell.samples, cell.every, cell.beta) for cell in cells if cell.beta}
    assert found == {(s, e, b) for s in (4, 8, 16, 0) for e in (1, 5) for b in (1e-4, 1e-3, 1e-2)}


def test_related_records_differ_in_seed_and_term_alone(tmp_path):
    own = {"dataset": "digits", "sparsity": 0.9, "epochs": 4}
    beside = [{"seed": 7}, {"beta": 1e-3}, {"beta": 1e-3, "term": "shuffled"}]
    for other in ({}, *beside, {"epochs": 8}, {"sparsity": 0.95}, {"order_seed": 0}):
        records.save(record(**(own | other)), tmp_path)
    found = notebooks.with_related([Settings(**own)], tmp_path)
    wanted = {Settings(**(own | other)).id for other in ({}, *beside)}
    assert {run["id"] for run in found} == wanted
    assert notebooks.with_related([], tmp_path) == []


def test_only_a_notebook_of_a_grid_has_cells():
    assert notebooks.cells(read_profile("demo").steps[0]) == []
    assert len({cell.id for cell in notebooks.cells(read_profile("cpu").steps[0])}) == 18
