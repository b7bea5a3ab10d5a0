"""The examples run as a newcomer would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPT = EXAMPLES / "train.py"
IN_PROCESSES = EXAMPLES / "train_ddp.py"
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


def test_its_header_contains_the_output_of_both_arms():
    quoted = re.findall(rf"^    (\S+) +(\S+) +{PRINTED}$", SCRIPT.read_text(), re.M)
    assert {(sparsity, beta) for sparsity, beta, _ in quoted} == {
        (sparsity, beta) for sparsity in ("0.95", "0.995") for beta in ("0", "1e-4")
    }


def test_it_has_at_most_90_lines():
    assert len(SCRIPT.read_text().splitlines()) <= 90


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_keep_equal_weights_and_learn_the_digits():
    """The script compares the weights of its processes itself, and fails if they differ."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, str(IN_PROCESSES), "--epochs", "2"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    match = re.fullmatch(r"test accuracy (\d+\.\d\d)%, 2 processes", done.stdout.strip())
    assert match, done.stdout
    assert float(match[1]) > 50


def test_the_script_for_several_processes_asks_for_torchrun():
    command = [sys.executable, str(IN_PROCESSES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "start it with torchrun" in done.stderr
