"""Compile the kernels once per machine, in one process, before the first step."""

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numba
import torch
from torch import nn

from . import kernels
from .bound import BoundUnit
from .pool import BoundPool
from .unit import Convolution, Unit
from .workspace import Workspace


@lru_cache
def compile_kernels(dtype: torch.dtype, half: bool = False) -> None:
    """Load all kernels from numba's cache on disk; first compile them if they are not there.

    The cache is in ``NUMBA_CACHE_DIR``, or beside the source. The kernels are compiled in a
    separate process, with a message on standard error. Other processes that need the kernels at
    that time wait. No process uses code that it has compiled itself, because the rounding of such
    code can differ from that of the same code loaded from disk: the linker can then choose other
    copies of the inner loops.

    Args:
        dtype: type of the network, float32 or float64.
        half: whether internal planes are stored in bfloat16.

    Raises:
        subprocess.CalledProcessError: if the compilation fails.
    """
    with _alone():
        if not (marker := _marker(dtype, half)).exists():
            kind = str(dtype).removeprefix("torch.") + (" stored in bfloat16" if half else "")
            print(
                f"ckasr: compiling the sparse kernels for {kind}, once on this machine: "
                "about a minute ...",
                file=sys.stderr,
                flush=True,
            )
            _compile_elsewhere(dtype, half)
            marker.touch()
        run_all(dtype, half)


def _marker(dtype: torch.dtype, half: bool) -> Path:
    """Return the path of a file that exists if the kernels of this source have been compiled."""
    source = hashlib.sha256(f"{numba.__version__} {platform.processor()} {dtype} {half}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source.update(path.read_bytes())
    cache = Path(str(kernels.convolve.stats.cache_path))
    cache.mkdir(parents=True, exist_ok=True)
    return cache / f"compiled-{source.hexdigest()[:16]}"


def _compile_elsewhere(dtype: torch.dtype, half: bool) -> None:
    """Run every kernel once in another process, which writes the compiled code to disk."""
    call = f"from {__name__} import run_all; import torch; run_all({dtype}, {half})"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = os.environ | {"PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", call], env=environment, check=True)


@torch.random.fork_rng(devices=[])
@torch.enable_grad()
def run_all(dtype: torch.dtype, half: bool) -> None:
    """Run every kernel once on a small network. The arguments are those of `compile_kernels`."""

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
                if c.norm is not None:
                    c.norm.train(training)
        # Once with a gradient for the input, once without.
        for batch in (x, x.detach()):
            y = batch
            for bound in units:
                y = bound(y)
            BoundPool(space, nn.Flatten(), False)(y).sum().backward()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Context manager in which only one process is at a time, if the system has file locks."""
    try:
        import fcntl
    except ModuleNotFoundError:
        yield
        return
    user = os.getuid() if hasattr(os, "getuid") else 0
    with open(Path(tempfile.gettempdir()) / f"ckasr-kernels-{user}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
