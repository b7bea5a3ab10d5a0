"""Benchmarks: each measures ours beside a plain implementation, interleaved in one run."""

NAMES = ("term", "step", "data", "epoch", "import", "scaling", "shrink")
MODULES = {"import": "imports"}
"""Modules that cannot be named as their benchmark is."""
