"""Experiments: settings, the run they describe, its record, and sweeps over many."""

from .information import run_information
from .runs import OutOfTime, run
from .settings import CKA_SR_FIELDS, Settings
from .sweeps import grid, plan, sweep

__all__ = [
    "CKA_SR_FIELDS",
    "OutOfTime",
    "Settings",
    "grid",
    "plan",
    "run",
    "run_information",
    "sweep",
]
