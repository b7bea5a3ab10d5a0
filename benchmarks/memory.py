"""Memory of the term against layers, samples, batch size and network, beside the pairwise code.

The memory of the term alone, and of a training step on a CPU, is counted: the bytes of the storages
that autograd keeps for the backward pass, in addition to the features themselves
(``ckasr.training.memory.kept_bytes``). They include neither intermediate results nor the buffers of
kernels. On a GPU, the memory of a training step is measured: the peak of
``torch.cuda.max_memory_allocated`` above what was allocated before the step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ckasr import CKASR, devices, find_stages, models
from ckasr.choices import check_count
from ckasr.training.memory import kept_bytes

from . import scaling
from .pairwise import PairwiseTerm
from .scaling import LOSSES, OURS, PAIRWISE
from .step import MakeTerm
from .term import BETA, NO_TERM

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Memory:
    """Memory of one implementation of the term, or of the step of a network without the term."""

    what: str
    """Quantity that varies: ``layers`` (with 8 samples), ``samples`` (with 9 layers), or the name
    of a network, in which the batch size varies (with 8 samples)."""
    x: int  # its value
    variant: str  # name of the implementation, or ``no term``
    megabytes: float  # in units of 10^6 bytes


def alone(layers: Sequence[int], samples: Sequence[int]) -> list[Memory]:
    """Count the memory of the term alone, on features with the shapes of ``benchmarks.scaling``.

    Raises ValueError for a number of layers that is no multiple of 3, and below 4 samples.
    """
    rows = []
    for what, x, stages in scaling.alone(layers, samples, CPU):
        own = [feature for stage in stages for feature in stage]
        for name, term in LOSSES.items():
            kept = kept_bytes(lambda term=term, stages=stages: term(stages), own)
            rows.append(Memory(what, x, name, kept / 1e6))
    return rows


def in_networks(device: torch.device, names: Sequence[str], batches: Sequence[int]) -> list[Memory]:
    """Memory of one training step on images of 32x32 pixels, and what the term adds to it.

    Raises LookupError for an unknown network, and ValueError for no network and batches below 8.
    """
    check_count("number of networks", len(names), 1)
    terms = {
        NO_TERM: None,
        PAIRWISE: lambda model: PairwiseTerm(model, BETA, find_stages(model)),
        OURS: lambda model: CKASR(model, BETA, every=1),
    }
    rows = []
    for network in names:
        for batch in batches:
            check_count("batch size", batch, 8)  # The term reads 8 samples.
            bare = 0
            for key, make in terms.items():
                size = _step_bytes(network, batch, make, device)
                rows.append(Memory(network, batch, key, (size - bare) / 1e6))
                bare = bare or size
    return rows


def _step_bytes(network: str, batch: int, term: MakeTerm, device: torch.device) -> int:
    model = models.create(network, num_classes=100).to(device, memory_format=torch.channels_last)
    penalty = term(model) if term else None
    x = torch.zeros(batch, 3, 32, 32, device=device).to(memory_format=torch.channels_last)

    def step() -> None:
        loss = model(x).logsumexp(1).mean()
        (loss + penalty.compute() if penalty else loss).backward()

    if device.type == "cpu":
        return kept_bytes(step, model.parameters())
    step()  # This allocates the gradients and the buffers of kernels.
    return peak_bytes(step, devices.of(device))


def peak_bytes(call: Callable[[], object], device: devices.Device) -> int:
    """Return the largest memory of the device during a call, above that before the call."""
    device.synchronize()
    device.reset_peak_memory()
    before = device.peak_memory()
    call()
    device.synchronize()
    return device.peak_memory() - before
