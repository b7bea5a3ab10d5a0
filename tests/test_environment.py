"""The environment: one list of dependencies, one lock, and a checkout that runs as it is."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = sorted(
    {*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)}
)
HEAVY = {"matplotlib", "pandas", "papermill", "scipy", "sklearn", "torchvision", "typer"}
PYTHONS = ("3.11", "3.12", "3.13")


def locked() -> list[tuple[str, str, str, int]]:
    """(name, version, marker, number of hashes) of every requirement in the lock."""
    entry = re.compile(
        r"^(?P<name>[\w.-]+)==(?P<version>[^\s;\\]+)(?: ; (?P<marker>[^\\]+?))? \\\n"
        r"(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)",
        re.M,
    )
    return [
        (m["name"], m["version"], m["marker"] or "", m["hashes"].count("sha256:"))
        for m in entry.finditer(LOCK)
    ]


# The lock


def test_every_requirement_of_the_lock_is_pinned_and_hashed():
    starts = [line for line in LOCK.splitlines() if line and not line.startswith((" ", "#"))]
    assert len(locked()) == len(starts) > 100


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_holds_every_dependency_in_a_version_it_admits(python):
    from packaging.markers import Marker, default_environment
    from packaging.requirements import Requirement

    here = default_environment() | {"python_version": python, "python_full_version": f"{python}.5"}
    pins = {
        name: version
        for name, version, marker, _ in locked()
        if not marker or Marker(marker).evaluate(here)
    }
    for line in DECLARED:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[requirement.name]), line


def test_the_lock_pins_each_package_once_on_every_python():
    from packaging.markers import Marker, default_environment

    for python in PYTHONS:
        here = default_environment() | {
            "python_version": python,
            "python_full_version": f"{python}.5",
        }
        names = [n for n, _, marker, _ in locked() if not marker or Marker(marker).evaluate(here)]
        assert sorted(names) == sorted(set(names))


def test_the_lock_holds_the_tested_pair():
    pins = {name: version for name, version, _, _ in locked()}
    assert (pins["torch"], pins["torchvision"]) == ("2.12.1", "0.27.1")


def test_the_lock_builds_the_package_without_another_download():
    """`make` installs ckasr with --no-build-isolation, by the setuptools of the lock."""
    from packaging.requirements import Requirement

    system = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    pins = {name: version for name, version, _, _ in locked()}
    for requirement in map(Requirement, system["requires"]):
        assert requirement.specifier.contains(pins[requirement.name])


def test_no_address_in_the_lock_and_no_second_lock():
    assert not re.search(r"://|--(extra-)?index-url|--find-links|^-[ief] ", LOCK, re.M)
    assert not (ROOT / "uv.lock").exists()


# Conda


def test_environment_yml_is_python_and_the_lock():
    import yaml
    from packaging.specifiers import SpecifierSet

    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert conda.keys() == {"name", "channels", "dependencies"}
    assert conda["channels"] == ["conda-forge", "nodefaults"]
    python, pip, section = conda["dependencies"]
    name, version = python.split("=")
    assert name == "python"
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{version}.0")
    assert pip == "pip"
    # ckasr itself cannot stand here: pip refuses a folder beside hashes. The head says how.
    assert section == {"pip": ["-r requirements.lock"]}
    assert "pip install --no-deps -e ." in (ROOT / "environment.yml").read_text()


def test_the_pythons_are_the_same_everywhere():
    from packaging.specifiers import SpecifierSet

    admitted = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{n}" for n in range(8, 20) if admitted.contains(f"3.{n}.0")] == list(PYTHONS)
    low, high = (tuple(map(int, p.split("."))) for p in (PYTHONS[0], PYTHONS[-1]))
    assert f"{low} <= v <= {high}" in MAKEFILE
    named = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert named == list(PYTHONS)


# Make


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """make as a person calls it, though these tests mostly run under `make test`."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=cwd, env=outside, capture_output=True, text=True)


def targets() -> list[str]:
    return re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.M)


def test_make_help_lists_exactly_the_targets():
    done = make()
    listed = re.findall(r"^  make (\S+) +\S", done.stdout, re.M)
    assert listed == targets()
    wanted = "test test-slow reproduce figures theory benchmarks lab lint lock clean help"
    assert set(wanted.split()) <= set(listed)


def test_no_make_target_is_taken_for_a_folder():
    """benchmarks/ and theory/ exist, so that make would call them up to date."""
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[1].split()
    assert sorted(phony) == sorted(targets())


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("3.10", "is Python 3.10; ckasr needs 3.11 to 3.13"),
        ("3.14", "is Python 3.14; ckasr needs 3.11 to 3.13"),
        (None, "no .*python found; name a Python"),
    ],
)
def test_make_on_the_wrong_python_says_so_in_one_line(tmp_path, version, message):
    """A stand-in answers the version check as that Python would; no other Python need be here."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    if version:
        fake = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 1)"
        python.write_text(
            f'#!/bin/sh\nshift\nexec "{sys.executable}" -c "{fake}; exec(sys.argv[1])" "$1"\n'
        )
        python.chmod(0o755)
    done = make("test", f"PYTHON={python}", cwd=tmp_path)
    assert done.returncode != 0
    assert re.search(message, done.stderr)
    assert len(done.stderr.splitlines()) == 2  # ours, and make's own that it stops
    assert not (tmp_path / ".venv").exists()


# The plain checkout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The package alone, as git gives it, away from the installed one."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "ckasr", folder / "ckasr", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run_there(checkout: Path, script: str) -> subprocess.CompletedProcess[str]:
    """`script` in a Python that finds ckasr in its working directory alone."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=checkout, env=kept, capture_output=True, text=True)


def test_import_adds_few_modules(checkout):
    script = (
        "import sys, torch; before = set(sys.modules); import ckasr\n"
        f"added = {{m.split('.')[0] for m in set(sys.modules) - before}} & {HEAVY}\n"
        "print(ckasr.__file__); sys.exit(', '.join(sorted(added)) or None)"
    )
    done = run_there(checkout, script)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(checkout)


def test_runs_from_a_plain_checkout(checkout):
    """`python -m ckasr --help` with no ckasr installed and none of what a GPU machine may lack."""
    gone = ["papermill", "nbformat", "jupyter_client", "IPython", "pandas", "pydantic"]
    script = (
        "import importlib.metadata as metadata, runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({gone}))\n"
        "find = metadata.Distribution.from_name\n"
        "def others(name):\n"
        "    if name == 'ckasr': raise metadata.PackageNotFoundError(name)\n"
        "    return find(name)\n"
        "metadata.Distribution.from_name = others\n"
        "sys.argv = ['ckasr', '--help']\n"
        "runpy.run_module('ckasr', run_name='__main__')"
    )
    done = run_there(checkout, script)
    assert done.returncode == 0, done.stderr
    for command in ("run", "sweep", "table", "reproduce", "figures"):
        assert re.search(rf"\b{command}\b", done.stdout)


def test_the_import_of_dcor_leaves_the_number_of_threads():
    """With more threads than cores, two processes of tests mostly wait for each other."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("dcor")
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
