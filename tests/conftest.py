"""What every test shares: few threads, fixed seeds, and the skips of those that need more."""

import contextlib
import os
import random
from pathlib import Path

# Before torch is imported: small tensors are slower on many threads. Workers (pytest -n) inherit
# this from the process that starts them; more threads than cores mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The import of dcor starts the threads of numba, which sets the number of threads of torch, too.
os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

import numpy as np
import pytest
import torch

from ckasr import data

with contextlib.suppress(ModuleNotFoundError):  # a borrowed GPU machine may have only pytest
    from hypothesis import settings

    # No deadline: on a shared machine it measures the neighbours. Fixed examples: CI repeats.
    settings.register_profile("ckasr", deadline=None, derandomize=True)
    settings.load_profile("ckasr")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs = {"gpu": _no_gpu(), "cifar": _no_cifar()}
    for item in items:
        for marker, reason in needs.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _no_gpu() -> str | None:
    return None if torch.cuda.is_available() else "needs a CUDA device"


def _no_cifar() -> str | None:
    """Why there is no CIFAR-100 to train on; files that are there but bad must fail, not skip."""
    root = os.environ.get("CKASR_DATA")
    if not root:
        return "needs real CIFAR-100: set CKASR_DATA to the folder that holds cifar-100-python"
    if not (Path(root).expanduser() / "cifar-100-python").is_dir():
        return "needs real CIFAR-100: CKASR_DATA names a folder without cifar-100-python"
    return None


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Each test starts from the same random state, alone or in the whole suite."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - scipy and scikit-learn still read it
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def cifar() -> data.Dataset:
    """The real CIFAR-100 of CKASR_DATA; skips, with the reason, where there is none."""
    if reason := _no_cifar():
        pytest.skip(reason)
    return data.load("cifar100")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """The record of one run on the digits, and the folder of its results."""
    from digit_runs import digits

    from ckasr.experiments import run

    results = tmp_path_factory.mktemp("results")
    return run(digits(), results, progress=None), results
