"""Benchmarks: each measures ours beside a plain implementation, interleaved in one run."""

NAMES = ("term", "step", "data", "imports")
