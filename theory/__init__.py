"""Checks of what the paper claims of CKA-SR, one module a claim: `python -m theory`.

Every module has `check(fast, seed, ...) -> Verdict` and `figure(verdict) -> Figure`; its formulas
are arguments of `check`, so that a wrong one can be fed and must change the verdict.
"""

import difflib
import importlib
import math
import time
from dataclasses import replace
from types import ModuleType

from theory.verdict import Verdict

NAMES = (
    "estimators",
    "zero_set",
    "one_sided_bound",
    "order_equivalence",
    "deterministic_mi",
    "noisy_gradient_flow",
    "multilayer_sum",
    "scale_invariance",
    "hsic_norm",
    "residual_reversal",
    "rank_one_minimum",
    "concentration",
    "fewshot_law",
    "fewshot_gradient",
    "continuity_eps_sparsity",
    "renyi2",
    "trained_networks",
)


def load(name: str) -> ModuleType:
    """The theory module of that name. LookupError, naming the nearest, when there is none."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
        raise LookupError(f"no theory check {name!r}; nearest is {near!r}, all: {', '.join(NAMES)}")
    return importlib.import_module(f"theory.{name}")


def run(name: str, *, fast: bool = False, seed: int = 0, **overrides: object) -> Verdict:
    """Run one check and note its wall time in seconds, rounded up to a tenth."""
    start = time.perf_counter()
    verdict = load(name).check(fast=fast, seed=seed, **overrides)
    seconds = math.ceil(10 * (time.perf_counter() - start)) / 10
    return replace(verdict, fast=fast, seed=seed, seconds=seconds)
