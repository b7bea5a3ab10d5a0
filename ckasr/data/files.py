"""Files of image sets: find them, compare their digests with the published ones, and parse them."""

import gzip
import hashlib
import pickle
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Arrays = tuple[Tensor, Tensor, Tensor, Tensor]
"""Training images (N, H, W, C) uint8, training labels (N,) int64, test images, test labels."""


@dataclass(frozen=True)
class Layout:
    """Names and format of the files of a data set.

    Args:
        folder: folder of the files, below the data root.
        digests: md5 or sha1 digest of the uncompressed content of each file, by file name.
        parse: function that converts the verified contents, in the order of ``digests``.
    """

    folder: str
    digests: Mapping[str, str]
    parse: Callable[[Sequence[bytes]], Arrays]


def contents(name: str, layouts: Sequence[Layout], root: Path) -> tuple[Layout, dict[Path, bytes]]:
    """Return the first complete layout, and its files with their verified contents.

    A file may be compressed; its name then ends in ``.gz``.

    Args:
        name: name of the data set, for error messages.
        layouts: possible layouts.
        root: folder of all data sets.

    Raises:
        FileNotFoundError: for a missing file. The message names a file of the layout that is
            partly there, if there is one.
        ValueError: for a file that is truncated or altered.
    """
    found = {
        layout.folder: [_find(root / layout.folder / file) for file in layout.digests]
        for layout in layouts
    }
    layout = max(layouts, key=lambda one: (all(found[one.folder]), any(found[one.folder])))
    verified = {}
    for (file, digest), path in zip(layout.digests.items(), found[layout.folder], strict=True):
        if path is None:
            raise FileNotFoundError(
                f"{name}: {root / layout.folder / file} is missing; set CKASR_DATA to the folder "
                f"that holds {layout.folder}, or run: python -m ckasr data fetch {name}"
            )
        verified[path] = _verified(name, path, digest)
    return layout, verified


def _find(path: Path) -> Path | None:
    packed = path.with_name(path.name + ".gz")
    return next((candidate for candidate in (path, packed) if candidate.is_file()), None)


def _verified(name: str, path: Path, digest: str) -> bytes:
    """Return the uncompressed content of a file. Raises ValueError if its digest is wrong."""
    content = path.read_bytes()
    size = len(content)
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        algorithm = {32: "md5", 40: "sha1"}[len(digest)]
        intact = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest() == digest
    except (EOFError, OSError, zlib.error):  # what gzip raises for a broken file
        intact = False
    if not intact:
        raise ValueError(
            f"{name}: {path} is truncated or altered ({size} bytes, not the published checksum); "
            f"replace it, or run: python -m ckasr data fetch {name}"
        )
    return content


def idx(folder: str, digests: Sequence[str]) -> Layout:
    """Return the layout of MNIST.

    Args:
        folder: folder of the files, below the data root.
        digests: digests of training images, training labels, test images and test labels.
    """
    files = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    return Layout(folder, dict(zip(files, digests, strict=True)), parse_idx)


def pickles(folder: str, digests: Mapping[str, str], label_key: bytes) -> Layout:
    """Return the Python layout of CIFAR. The last file is the test set.

    Args:
        folder: folder of the files, below the data root.
        digests: digest of each file, by file name.
        label_key: key of the labels in the pickled dictionaries.
    """
    return Layout(folder, digests, partial(parse_pickles, label_key=label_key))


def binary(folder: str, digests: Mapping[str, str]) -> Layout:
    """Return the binary layout of CIFAR-10. The last file is the test set.

    Args:
        folder: folder of the files, below the data root.
        digests: digest of each file, by file name.
    """
    return Layout(folder, digests, parse_binary)


def parse_idx(verified: Sequence[bytes]) -> Arrays:
    """Parse files with a big-endian header. The fourth byte is the number of dimensions."""
    arrays = []
    for content in verified:
        dimensions = content[3]
        shape = np.frombuffer(content, ">i4", count=dimensions, offset=4)
        arrays.append(np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape))
    train_images, train_labels, test_images, test_labels = arrays
    return (
        torch.from_numpy(train_images.copy())[..., None],
        torch.from_numpy(train_labels.astype(np.int64)),
        torch.from_numpy(test_images.copy())[..., None],
        torch.from_numpy(test_labels.astype(np.int64)),
    )


def parse_pickles(verified: Sequence[bytes], label_key: bytes) -> Arrays:
    """Parse pickled dictionaries with b"data" (N, 3072) uint8 and labels.

    Unpickling can run code, so the contents must have been verified.
    """
    batches = [pickle.loads(content, encoding="bytes") for content in verified]
    return _cifar([(batch[b"data"], batch[label_key]) for batch in batches])


def parse_binary(verified: Sequence[bytes]) -> Arrays:
    """Parse records of one label byte and 3072 pixels."""
    records = [np.frombuffer(content, np.uint8).reshape(-1, 3073) for content in verified]
    return _cifar([(record[:, 1:], record[:, 0]) for record in records])


Parts = Sequence[tuple[np.ndarray, Sequence[int] | np.ndarray]]


def _cifar(parts: Parts) -> Arrays:
    *train, test = parts
    return _pixels(train), _labels(train), _pixels([test]), _labels([test])


def _pixels(parts: Parts) -> Tensor:
    """Convert rows of 3072 bytes, one channel after the other, to images (N, 32, 32, 3)."""
    pixels = np.empty((sum(len(planes) for planes, _ in parts), 1024, 3), np.uint8)
    start = 0
    for planes, _ in parts:
        for channel in range(3):  # three strided copies, twice as fast as one transposition
            pixels[start : start + len(planes), :, channel] = planes.reshape(-1, 3072)[
                :, channel * 1024 : (channel + 1) * 1024
            ]
        start += len(planes)
    return torch.from_numpy(pixels.reshape(-1, 32, 32, 3))


def _labels(parts: Parts) -> Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(labels, np.int64) for _, labels in parts]))
