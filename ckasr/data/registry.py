"""Data sets by name.

A new data set is one file in this folder: a class with the methods of ``Dataset``, and a function
that loads it, registered by its name.

    @register("mytexts")
    def load_mytexts(root: Path) -> Dataset: ...

Every module of the folder is imported with the package, so no other file changes.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ckasr.names import nearest
from ckasr.tasks import Task

from .batches import Batches


class Dataset(Protocol):
    """A data set of training and test samples.

    The test samples are for the final evaluation only. Validation samples are taken from the
    training samples by ``split``.
    """

    @property
    def name(self) -> str:
        """Name of the data set."""

    @property
    def task(self) -> Task:
        """What is asked of a network."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def train_labels(self) -> Tensor:
        """Class of each training sample, (n,) int64, for the stratified split."""

    @property
    def example_input(self) -> Tensor:
        """A batch of one input, on the CPU. Only its shape and type are used."""

    @property
    def model_options(self) -> Mapping[str, Any]:
        """What the builder of a model gets besides ``num_classes`` and ``input_shape``.

        A set of texts gives the size of its vocabulary here; a set of images gives nothing.
        """

    def train_batches(
        self,
        index: Tensor,
        *,
        batch_size: int,
        augment: str = "default",
        seed: int = 0,
        order_seed: int = -1,
        device: torch.device | str = "cpu",
    ) -> Batches:
        """Return the training samples of these indices as batches.

        Args:
            index: int64 indices of training samples, on the CPU.
            batch_size: number of samples per batch.
            augment: ``default``: the augmentation of the data set; ``none``; or another name that
                the data set knows. It raises ValueError for a name that it does not know.
            seed: seed of order and augmentation.
            order_seed: seed of another order with the same augmentation; -1: the order of ``seed``.
            device: device of the batches.
        """

    def test_batches(self, *, batch_size: int, device: torch.device | str = "cpu") -> Batches:
        """Return the test samples as batches."""


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Args:
        load: loads the data set from the folder of all data sets. It raises FileNotFoundError for
            a missing file and ValueError for a damaged one.
        fetch: downloads the files of the data set into the folder, with a timeout in seconds, and
            returns their paths; None: nothing to download.
    """

    load: Callable[[Path], Dataset]
    fetch: Callable[[Path, float], list[Path]] | None = None


_sources: dict[str, Source] = {}


def register(
    name: str, fetch: Callable[[Path, float], list[Path]] | None = None
) -> Callable[[Callable[[Path], Dataset]], Callable[[Path], Dataset]]:
    """Decorate the function that loads a data set from the folder of all data sets.

    Args:
        name: name of the data set.
        fetch: downloads its files; see ``Source``.
    """

    def add(load: Callable[[Path], Dataset]) -> Callable[[Path], Dataset]:
        if name in _sources:
            raise ValueError(f"a data set named {name!r} is registered already: choose another")
        _sources[name] = Source(load, fetch)
        return load

    return add


def names() -> list[str]:
    """Return the names of all data sets."""
    return list(_sources)


def source_of(name: str) -> Source:
    """Return the source of a data set. Raises LookupError, with the nearest names, for no set."""
    if name not in _sources:
        raise LookupError(f"unknown data set {name!r}{nearest(name, _sources)}")
    return _sources[name]


def load(name: str, root: Path | str | None = None, *, download: bool = False) -> Dataset:
    """Load a data set.

    Args:
        name: name of the data set.
        root: folder of all data sets; None: the environment variable CKASR_DATA, or ``data``.
        download: whether to download missing files first.

    Raises:
        LookupError: for an unknown name.
        FileNotFoundError: for a missing file.
        ValueError: for a file that is truncated or altered.
        ConnectionError: if the download fails.
    """
    source = source_of(name)
    try:
        return source.load(data_root(root))
    except FileNotFoundError:
        if not download:
            raise
        fetch(name, root)
        return source.load(data_root(root))


def fetch(name: str, root: Path | str | None = None, timeout: float = 30) -> list[Path]:
    """Download a data set and return the paths of its files; empty if it has none.

    Args:
        name: name of the data set.
        root: as in ``load``.
        timeout: seconds to wait for an answer.

    Raises:
        LookupError: for an unknown name.
        ConnectionError: if the download fails.
    """
    source = source_of(name)
    return source.fetch(data_root(root), timeout) if source.fetch else []


def data_root(root: Path | str | None = None) -> Path:
    """Return the folder of all data sets: ``root``, else CKASR_DATA, else ``data``."""
    return Path(root or os.environ.get("CKASR_DATA") or "data").expanduser().absolute()
