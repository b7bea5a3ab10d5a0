"""Registry of data sets.

To add a data set, write one file in this folder. It contains a class with the methods of
``Dataset`` and a function that loads the data set, which is registered by a name:

    @register("mytexts")
    def load_mytexts(root: Path) -> Dataset: ...

All modules of this folder are imported with the package, so that no other file needs to change.
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

    The test samples are used only for the final evaluation. Validation samples are taken from the
    training samples (see ``split``).
    """

    @property
    def name(self) -> str:
        """Name of the data set."""

    @property
    def task(self) -> Task:
        """Task of the data set: loss, metric and memory format."""

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
        """Arguments of a model's builder in addition to ``num_classes`` and ``input_shape``.

        A set of texts has the size of its vocabulary here; a set of images has an empty mapping.
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
            augment: ``default``: the usual augmentation of the data set; ``none``: no augmentation;
                or another name that the data set supports.
            seed: seed of order and augmentation.
            order_seed: seed of another order with the same augmentation; -1: the order of ``seed``.
            device: device of the batches.

        Raises:
            ValueError: for an augmentation that the data set does not support.
        """

    def test_batches(self, *, batch_size: int, device: torch.device | str = "cpu") -> Batches:
        """Return the test samples as batches, without augmentation.

        Args:
            batch_size: number of samples per batch.
            device: device of the batches.
        """


@dataclass(frozen=True)
class Source:
    """Functions that load and download a data set.

    Args:
        load: function that loads the data set from the folder of all data sets. It raises
            FileNotFoundError for a missing file and ValueError for a damaged file.
        fetch: function that downloads the files to the folder of all data sets, with a timeout in
            seconds, and returns their paths; None if there is nothing to download.
    """

    load: Callable[[Path], Dataset]
    fetch: Callable[[Path, float], list[Path]] | None = None


_sources: dict[str, Source] = {}


def register(
    name: str, fetch: Callable[[Path, float], list[Path]] | None = None
) -> Callable[[Callable[[Path], Dataset]], Callable[[Path], Dataset]]:
    """Return a decorator that registers the function which loads a data set.

    Args:
        name: name of the data set.
        fetch: function that downloads its files; see ``Source``.

    Raises:
        ValueError: if the name is registered already.
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
    """Return the source of a data set.

    Raises:
        LookupError: for an unknown name; the message lists similar names.
    """
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
    """Download a data set and return the paths of its files.

    The list is empty for a data set that has nothing to download.

    Args:
        name: name of the data set.
        root: folder of all data sets, as in ``load``.
        timeout: time to wait for a response of the server, in seconds.

    Raises:
        LookupError: for an unknown name.
        ConnectionError: if the download fails.
    """
    source = source_of(name)
    return source.fetch(data_root(root), timeout) if source.fetch else []


def data_root(root: Path | str | None = None) -> Path:
    """Return the folder of all data sets as an absolute path.

    It is ``root``, or else the environment variable CKASR_DATA, or else ``data``.
    """
    return Path(root or os.environ.get("CKASR_DATA") or "data").expanduser().absolute()
