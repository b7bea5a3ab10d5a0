"""Numerical checks of the paper's claims about CKA-SR, one module per check: `python -m theory`.

Every module has `check(fast, seed, ...) -> Result` and `figure(result) -> Figure`. The formulas of
a module are arguments of `check`, so that the tests can pass a wrong formula, which must change the
verdict.
"""

import importlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType

import torch

from ckasr.names import nearest
from theory.result import Result

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
    "outlier",
    "vanishing_gradient",
    "readout_alignment",
    "input_structure",
    "information_and_sparsity",
    "trained_networks",
)


def load(name: str) -> ModuleType:
    """Import and return the module of a check.

    Raises:
        LookupError: if ``name`` is not one of `NAMES`.
    """
    if name not in NAMES:
        raise LookupError(f"no theory check {name!r}{nearest(name, NAMES)}")
    return importlib.import_module(f"theory.{name}")


def run(name: str, *, fast: bool = False, seed: int = 0, **overrides: object) -> Result:
    """Run one check. Denormal numbers count as 0 while it runs.

    Args:
        name: name of the check, one of `NAMES`.
        fast: whether to use small sizes.
        seed: seed of the random numbers.
        overrides: further arguments of the module's `check`, which replace its formulas.

    Returns:
        The result with its wall time in seconds, rounded up to a tenth of a second.

    Raises:
        LookupError: if ``name`` is not one of `NAMES`.
    """
    start = time.perf_counter()
    with _no_denormals():
        result = load(name).check(fast=fast, seed=seed, **overrides)
    seconds = math.ceil(10 * (time.perf_counter() - start)) / 10
    return replace(result, fast=fast, seed=seed, seconds=seconds)


@contextmanager
def _no_denormals() -> Iterator[None]:
    """Let the processor replace denormal numbers, below 1e-38 in float32, by 0.

    The gradients of networks that fit their data perfectly are such numbers, and Intel processors
    compute with them slowly: `concentration` without the term takes 7 s instead of 315 s.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
