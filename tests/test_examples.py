"""The reading door: `examples/train.py` runs as a newcomer would run it."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "train.py"
PRINTED = r"test accuracy (\d+\.\d\d)% \(sd \d+\.\d\d%, n = \d+\), \d+ s per run"


def accuracy(*options: str) -> float:
    """Mean test accuracy that the script prints, in per cent."""
    command = [sys.executable, str(SCRIPT), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    match = re.fullmatch(PRINTED, done.stdout.strip())
    assert match, done.stdout
    return float(match[1])


def test_the_example_learns_the_digits():
    assert accuracy("--seeds", "1", "--epochs", "4") > 80


def test_its_header_quotes_both_arms_as_the_script_prints_them():
    quoted = re.findall(rf"^    (\S+) +(\S+) +{PRINTED}$", SCRIPT.read_text(), re.M)
    assert {(sparsity, beta) for sparsity, beta, _ in quoted} == {
        (sparsity, beta) for sparsity in ("0.95", "0.995") for beta in ("0", "1e-4")
    }


def test_it_is_read_in_a_sitting():
    assert len(SCRIPT.read_text().splitlines()) <= 90
