"""Devices: everything that differs between a CPU and a GPU.

``Device`` is a CPU, and ``GPU`` overrides what is different on a CUDA device. To add a backend,
write one more subclass here and add it to ``BACKENDS``; no other file knows a device by its type.
"""

import os
import platform
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "tf32", "bf16"]


class Device:
    """A CPU.

    Args:
        place: the device as torch knows it.
    """

    kind: ClassVar[str] = "cpu"
    """Type of the torch device."""
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "bf16")
    """Precisions that this device can train in."""
    can_capture: ClassVar[bool] = False
    """Whether a training step can be captured as a graph and replayed."""
    runs_share_process: ClassVar[bool] = False
    """Whether runs side by side share one process; otherwise each has a process of its own."""
    interleaved_steps: ClassVar[int] = 0
    """Number of steps that a run queues before the next run in its process may queue some; 0: the
    steps of a whole epoch."""
    has_sparse_kernels: ClassVar[bool] = True
    """Whether sparse execution has kernels for this device."""

    def __init__(self, place: torch.device) -> None:
        self.place = place

    def __str__(self) -> str:
        return str(self.place)

    @property
    def name(self) -> str:
        """Name of the hardware, as records hold it."""
        return f"{_processor()}, {torch.get_num_threads()} thread(s)"

    @property
    def default_jobs(self) -> int:
        """Number of runs side by side: one per core, because this beats more threads per run."""
        return os.cpu_count() or 1

    def check_precision(self, precision: str) -> None:
        """Raise ValueError if the device cannot train in this precision."""
        if precision not in self.precisions:
            raise ValueError(
                f"precision {precision} needs a GPU, and this run is on {self}; choose fp32"
            )

    def set_process_flags(self) -> None:
        """Set the global flags of torch that a training on this device relies on: none on a CPU."""

    def set_precision(self, precision: str) -> None:
        """Set the global flags of torch that a precision needs: none on a CPU.

        Runs of different precisions may share a process, so a step calls this before its first
        operation.
        """

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """Return torch's autocast to bfloat16 for precision bf16; for others, it is disabled."""
        return torch.autocast(self.kind, torch.bfloat16, enabled=precision == "bf16")

    def stream(self) -> AbstractContextManager[Any]:
        """Return a new stream of work, as a context manager. It sets nothing else."""
        return nullcontext()

    def capture(self, work: Callable[[], None]) -> Callable[[], Any]:
        """Capture the device operations of ``work`` without running them; return their replay."""
        raise NotImplementedError(f"{self} cannot capture a step")

    def send(self, tensor: Tensor) -> Tensor:
        """Copy a tensor from the CPU to the device without waiting for the device."""
        return tensor.to(self.place)

    def synchronize(self) -> None:
        """Wait until all queued work is done."""

    def reset_peak_memory(self) -> None:
        """Start counting the peak memory anew, where that is possible."""

    def peak_memory(self) -> int:
        """Return the largest memory in use so far, in bytes; on a CPU that of the process."""
        import resource  # not on Windows

        scale = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale

    def free_memory(self) -> int | None:
        """Return the bytes that a new run may use, or None if the system does not tell."""
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
            return next(1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line)
        except (OSError, StopIteration):
            return None

    def generators(self) -> list[torch.device]:
        """Return the devices, besides the CPU, whose random generators a computation here uses."""
        return []


class GPU(Device):
    """A CUDA device."""

    kind = "cuda"
    precisions = get_args(Precision)
    can_capture = True
    runs_share_process = True
    # Few, because the launch queue holds a small part of an epoch: a run that fills the queue makes
    # the host wait, and the streams of the other runs are idle meanwhile.
    interleaved_steps = 8
    has_sparse_kernels = False

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.place)

    @property
    def default_jobs(self) -> int:
        return GPU_JOBS

    def set_process_flags(self) -> None:
        """Set ``torch.backends.cudnn.allow_tf32`` to False and ``cudnn.benchmark`` to True.

        The first makes fp32 mean fp32, where torch's default is TF32 in convolutions. The second
        lets cuDNN time its kernels once and take the fastest, which pays because every batch has
        the same shape.
        """
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True

    def set_precision(self, precision: str) -> None:
        """Set ``torch.backends.cudnn.allow_tf32``: True for precision tf32, False for others.

        A captured graph keeps the kernels that it was captured with.
        """
        torch.backends.cudnn.allow_tf32 = precision == "tf32"

    def stream(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(torch.cuda.Stream(self.place))

    def capture(self, work: Callable[[], None]) -> Callable[[], Any]:
        """Capture a CUDA graph on the current stream, which must not be the default one."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream(self.place)):
            work()
        return graph.replay

    def send(self, tensor: Tensor) -> Tensor:
        # From pinned memory, because any other copy makes the host wait.
        return tensor.pin_memory().to(self.place, non_blocking=True)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.place)

    def reset_peak_memory(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.place)

    def peak_memory(self) -> int:
        return torch.cuda.max_memory_allocated(self.place)

    def free_memory(self) -> int | None:
        unused = torch.cuda.memory_reserved(self.place) - torch.cuda.memory_allocated(self.place)
        return torch.cuda.mem_get_info(self.place)[0] + unused

    def generators(self) -> list[torch.device]:
        return [self.place]


GPU_JOBS = 4
"""Default number of parallel runs on a GPU.

On an H200, six ResNet20 in parallel with batch size 128 took 1.16 s per model and epoch of 45,000
CIFAR images in fp32, and 0.72 s in tf32; six ResNet32 of twice the width took 1.70 s in tf32 (one
measurement each). No other number of runs was measured.
"""

BACKENDS: dict[str, type[Device]] = {backend.kind: backend for backend in (Device, GPU)}


def find(name: str) -> Device:
    """Return the device of a name: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``.

    ``auto`` is a GPU if there is one. Raises ValueError for a name that is not supported and for a
    device that torch does not see.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return Device(torch.device("cpu"))
    number = re.fullmatch(r"cuda(?::(\d{1,3}))?", name)
    if number is None:
        raise ValueError(f"device {name!r} is not supported: use cpu, cuda, cuda:1 or auto")
    if not torch.cuda.is_available():
        raise ValueError(f"device {name!r} asked for, but torch sees no CUDA device; use cpu")
    if 0 < (count := torch.cuda.device_count()) <= int(number[1] or 0):
        raise ValueError(f"device {name!r} asked for, but the last of {count} is cuda:{count - 1}")
    return GPU(torch.device(name))


def of(thing: nn.Module | Tensor | torch.device | str) -> Device:
    """Return the device that a model, a tensor or a torch device is on.

    Raises ValueError for a type of device that has no backend here.
    """
    if isinstance(thing, nn.Module):
        thing = next(thing.parameters())
    place = thing.device if isinstance(thing, Tensor) else torch.device(thing)
    if place.type not in BACKENDS:
        raise ValueError(f"device {place} is not supported: use {' or '.join(BACKENDS)}")
    return BACKENDS[place.type](place)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
