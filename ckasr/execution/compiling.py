"""Compiling the kernels once, before the first step, by one process, with a message to the user."""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from .bound import BoundUnit
from .unit import Convolution, Unit
from .workspace import Workspace

PATIENCE = 2.0
"""Seconds before the message. Loading compiled kernels from numba's cache takes less."""


@lru_cache
def compile_kernels(dtype: torch.dtype, half: bool = False) -> None:
    """Run every kernel once on a tiny network, so that numba compiles it or loads it from disk.

    Compiled code is kept in numba's cache on disk (``NUMBA_CACHE_DIR``, or beside the source).
    Other processes that start at the same time wait for it.

    Args:
        dtype: of the network.
        half: whether its planes are stored in bfloat16.
    """
    kind = str(dtype).removeprefix("torch.") + (" stored in bfloat16" if half else "")
    note = threading.Timer(
        PATIENCE,
        lambda: print(
            f"ckasr: compiling the sparse kernels for {kind}, once "
            "on this machine: under a minute ...",
            file=sys.stderr,
            flush=True,
        ),
    )
    note.daemon = True
    note.start()
    with _alone(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        _run_all(dtype, half)
    note.cancel()


def _run_all(dtype: torch.dtype, half: bool) -> None:
    def conv(name: str, source: int, stride: int = 1) -> Convolution:
        layer = nn.Conv2d(2, 2, 3, stride, 1, dtype=dtype)
        return Convolution(name, layer, nn.BatchNorm2d(2, dtype=dtype), source)

    first = Unit("first", [conv("a", -1, 2), conv("b", 0), conv("c", -1, 2)], [1, 2], True, 1)
    second = Unit("second", [conv("d", -1)], [0, -1], True, 1)
    last = Unit("last", [conv("e", -1)], [0], False, 1)
    masks = dict.fromkeys("abcde", torch.ones(2, 2, 3, 3, dtype=torch.bool))
    space = Workspace(masks.__getitem__, 1, half)
    units = [BoundUnit(unit, space) for unit in (first, second, last)]
    x = torch.zeros(4, 2, 8, 8, dtype=dtype, requires_grad=True)
    for training in (True, False):
        for bound in units:
            for c in bound.unit.convolutions:
                c.norm.train(training)
        # Once with a gradient for the input, once without.
        for batch in (x, x.detach()):
            y = batch
            for bound in units:
                y = bound(y)
            y.sum().backward()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One process at a time on this machine, where the system has file locks."""
    try:
        import fcntl
    except ModuleNotFoundError:
        yield
        return
    user = os.getuid() if hasattr(os, "getuid") else 0
    with open(Path(tempfile.gettempdir()) / f"ckasr-kernels-{user}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
