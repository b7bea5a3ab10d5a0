"""Memory of the term against numbers of layers and samples, beside the pairwise code.

The memory is that of the tensors which autograd keeps for the backward pass of the term, in
addition to the features themselves. It is counted, not measured, so it is the same on every device.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ckasr import cka_sr_loss
from ckasr.analysis.style import ARM_LOOKS, BASELINE_LOOK, blank, styled
from ckasr.analysis.tables import markdown

from .pairwise import pairwise_term
from .scaling import OURS, PAIRWISE, features

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CPU = torch.device("cpu")
TERMS = {PAIRWISE: pairwise_term, OURS: cka_sr_loss}


@dataclass(frozen=True)
class Memory:
    """Memory that one call of the term keeps for its backward pass.

    Args:
        what: quantity that varies: ``layers`` (with 8 samples) or ``samples`` (with 9 layers).
        x: its value.
        variant: name of the implementation.
        kilobytes: memory in units of 1000 bytes, without the features.
    """

    what: str
    x: int
    variant: str
    kilobytes: float


def memory(layers: Sequence[int], samples: Sequence[int]) -> list[Memory]:
    """Count the memory for each number of layers and each number of samples.

    The features have the shapes of a ResNet's three stages, as in ``benchmarks.scaling``.

    Args:
        layers: numbers of layers, each a multiple of 3.
        samples: numbers of samples, each at least 4.
    """
    sizes = [("layers", count, count, 8) for count in layers]
    sizes += [("samples", count, 9, count) for count in samples]
    return [
        Memory(what, x, name, kept_bytes(term, features(depth, few, CPU)) / 1000)
        for what, x, depth, few in sizes
        for name, term in TERMS.items()
    ]


def kept_bytes(term: Callable[[list[list[Tensor]]], Tensor], stages: list[list[Tensor]]) -> int:
    """Return the bytes that autograd keeps for the backward pass, without those of the features.

    A storage counts once, also if several operations keep it.

    Args:
        term: function of the features.
        stages: features by stage, which need gradients.
    """
    own = {feature.untyped_storage().data_ptr() for stage in stages for feature in stage}
    kept: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        term(stages)
    return sum(storage.nbytes() for storage in kept.values())


def memory_table(rows: Iterable[Memory]) -> str:
    """Return the memory as a Markdown table, with the ratio of the pairwise code to ours."""
    by_size: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        by_size.setdefault((row.what, row.x), {})[row.variant] = row.kilobytes
    cells = [
        (what, str(x), *(f"{found[name]:,.1f}" for name in TERMS), _ratio(found))
        for (what, x), found in by_size.items()
    ]
    return "\n".join(
        markdown(("varies", "value", *(f"{name}, kB" for name in TERMS), "ratio"), cells)
    )


def _ratio(found: dict[str, float]) -> str:
    return f"{found[PAIRWISE] / found[OURS]:.3g}"


@styled
def memory_figure(rows: Iterable[Memory]) -> "Figure":
    """Draw the memory of both implementations against layers and samples."""
    rows = list(rows)
    figure = blank(5.2, 2.9)
    axes = figure.subplots(1, 2, sharey=True)
    labels = {"layers": "number of layers\n(8 samples)", "samples": "number of samples\n(9 layers)"}
    for axis, (what, label) in zip(axes, labels.items(), strict=True):
        for name, look in zip(TERMS, (BASELINE_LOOK, ARM_LOOKS[4]), strict=True):
            points = [row for row in rows if (row.what, row.variant) == (what, name)]
            x = [row.x for row in points]
            axis.plot(x, [row.kilobytes for row in points], **look, markersize=3.5, label=name)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(x, [str(value) for value in x])
        axis.minorticks_off()
        axis.set_xlabel(label)
    axes[0].set_ylabel("memory that the backward pass\nof the term needs (kB)")
    axes[0].legend()
    return figure
