"""Short runs on the real digits, for the tests of the experiments."""

from ckasr import devices
from ckasr.experiments import Settings

CPU = devices.find("cpu")
DIGITS = {"dataset": "digits", "model": "resmlp", "validation": 200, "sparsity": 0.9}


def digits(**changes) -> Settings:
    return Settings(**{**DIGITS, "epochs": 3, "beta": 1e-3, **changes})


def essence(record: dict) -> dict:
    """A record without what may differ between two runs of the same settings."""
    timing = ("seconds", "started", "peak_memory_bytes", "commit")
    curves = {k: v for k, v in record["curves"].items() if k != "seconds"}
    return {k: v for k, v in record.items() if k not in timing} | {"curves": curves}
