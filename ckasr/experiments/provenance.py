"""Provenance: with which code and on which machine a result was measured."""

import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ckasr import __version__
from ckasr.devices import Device

PACKAGES = ("torch", "torchvision", "numpy")


def environment(device: Device) -> dict[str, Any]:
    """Return the device, its threads and peak memory, the versions of packages, and the commit."""
    return {
        "device": device.name,
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": device.peak_memory(),
        "versions": versions(),
        "commit": commit(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, ckasr and ``PACKAGES``; ``absent`` for a missing package."""
    found = {"python": platform.python_version(), "ckasr": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


@lru_cache
def commit() -> str:
    """Return the commit of the checkout when this was first called in the process.

    A ``+`` follows it if a file of the package differs from the commit. Without git it is the
    environment variable CKASR_COMMIT, or ``unknown``.
    """
    if given := os.environ.get("CKASR_COMMIT"):
        return given
    folder = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(folder))
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
