"""Devices: all code that differs between a CPU and a GPU.

``Device`` is a CPU. Its subclass ``GPU`` overrides the methods that differ on a CUDA device. To add
a backend, write another subclass in this file and add it to ``BACKENDS``. No other file depends on
the type of a device.
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
        place: the torch device.
    """

    kind: ClassVar[str] = "cpu"
    """Type of the torch device."""
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "bf16")
    """Precisions that this device can train in."""
    can_capture: ClassVar[bool] = False
    """Whether a training step can be captured as a graph and replayed."""
    runs_share_process: ClassVar[bool] = False
    """Whether parallel runs share one process. Otherwise each run has its own process."""
    interleaved_steps: ClassVar[int] = 0
    """Number of steps that a run queues before the next run in its process queues some; 0: the
    steps of a whole epoch."""
    has_sparse_kernels: ClassVar[bool] = True
    """Whether sparse execution has kernels for this device."""

    def __init__(self, place: torch.device) -> None:
        self.place = place

    def __str__(self) -> str:
        return str(self.place)

    @property
    def name(self) -> str:
        """Name of the hardware, as it is written to records."""
        return f"{_processor()}, {torch.get_num_threads()} thread(s)"

    @property
    def default_jobs(self) -> int:
        """Default number of parallel runs: one per core, which is faster than threads in a run."""
        return os.cpu_count() or 1

    def check_precision(self, precision: str) -> None:
        """Raise ValueError if the device cannot train in this precision."""
        if precision not in self.precisions:
            raise ValueError(
                f"precision {precision} needs a GPU, and this run is on {self}; choose fp32"
            )

    def set_process_flags(self) -> None:
        """Set the global flags of torch that training on this device needs. A CPU needs none."""

    def set_precision(self, precision: str) -> None:
        """Set the global flags of torch that a precision needs. A CPU needs none.

        Every training step calls this method before its first operation, because runs of different
        precisions can share a process.
        """

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """Return torch's autocast context to bfloat16. It is disabled for precisions but bf16."""
        return torch.autocast(self.kind, torch.bfloat16, enabled=precision == "bf16")

    def stream(self) -> AbstractContextManager[Any]:
        """Return a context manager whose operations run on a new stream. A CPU has no streams."""
        return nullcontext()

    def capture(self, work: Callable[[], None]) -> Callable[[], Any]:
        """Capture the device operations of ``work`` without running them.

        Returns a function that runs the captured operations. Raises NotImplementedError on a device
        that cannot capture.
        """
        raise NotImplementedError(f"{self} cannot capture a step")

    def send(self, tensor: Tensor) -> Tensor:
        """Copy a tensor from the CPU to the device without waiting for the device."""
        return tensor.to(self.place)

    def synchronize(self) -> None:
        """Wait until all queued work is done."""

    def reset_peak_memory(self) -> None:
        """Reset the peak memory, on devices that support this. On a CPU it does nothing."""

    def peak_memory(self) -> int:
        """Return the peak memory in bytes. On a CPU it is the peak memory of the process."""
        import resource  # not on Windows

        scale = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale

    def free_memory(self) -> int | None:
        """Return the free memory in bytes, or None if the system does not report it."""
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
            return next(1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line)
        except (OSError, StopIteration):
            return None

    def generators(self) -> list[torch.device]:
        """Return the devices, except the CPU, whose random generators a computation here uses."""
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

        The first flag disables TF32 in convolutions, which is torch's default, so that precision
        fp32 means fp32 arithmetic. The second flag lets cuDNN time its kernels once and use the
        fastest one, which saves time because every batch has the same shape.
        """
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True

    def set_precision(self, precision: str) -> None:
        """Set ``torch.backends.cudnn.allow_tf32``: True for precision tf32, False for others.

        The flag has no effect on a CUDA graph that has been captured already.
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
        # Only a copy from pinned memory does not make the host wait.
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
CIFAR images in fp32, 0.72 s in tf32 and 0.33 s in bf16; one alone took 0.91 s in tf32 and 0.73 s in
bf16. Six ResNet32 of twice the width took 1.70 s in tf32 (one measurement each). The models were in
channels_last. In contiguous format, six in tf32 took 0.64 s, but one alone took 1.34 s, and six in
bf16 took 0.58 s.
"""

BACKENDS: dict[str, type[Device]] = {backend.kind: backend for backend in (Device, GPU)}


def find(name: str) -> Device:
    """Return the device with a given name.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ..., or ``auto``, which is a GPU if there is one and
            the CPU otherwise.

    Raises:
        ValueError: for a name that is not supported, and for a device that torch does not find.
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
    """Return the device of a model or a tensor, or the device for a torch device.

    Raises:
        ValueError: for a type of device that is not in ``BACKENDS``.
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
