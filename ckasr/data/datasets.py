"""Data sets: found, checked against their published digests, read into uint8 tensors.

A new data set is one entry in `SOURCES`: its constants, and either the layouts of its files on
disk (with a function that parses their verified contents) or a function that makes the arrays.
"""

import contextlib
import difflib
import gzip
import hashlib
import io
import os
import pickle
import shutil
import socket
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .loader import split

Arrays = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images uint8 (N, H, W, C) and labels int64 (N,), on the CPU.

    `mean` and `std` hold a number a channel, for pixels scaled to [0, 1]; `augment` is the
    augmentation of the recipes this data set is used with (see `Batches`).
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what a model sees."""
        height, width, channels = self.train_images.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Layout:
    """One way a data set lies on disk."""

    folder: str  # below the data root
    digests: Mapping[str, str]  # file name -> md5 or sha1 of its content, uncompressed
    parse: Callable[[list[bytes]], Arrays]  # gets the verified contents in this order


@dataclass(frozen=True)
class Source:
    """What is known of a data set; exactly one of `layouts` and `embedded` is given."""

    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str = "none"
    layouts: tuple[Layout, ...] = ()
    torchvision: str = ""  # the torchvision class that downloads it
    embedded: Callable[[], Arrays] | None = None


def load(name: str, root: Path | str | None = None, *, download: bool = False) -> Dataset:
    """A data set from the folder `root` (default: CKASR_DATA, then "data").

    Files are read once, and parsed only if their digest is the published one. With `download`,
    missing files are fetched first. Raises LookupError for an unknown name, FileNotFoundError for
    a missing file, ValueError for one that was altered or truncated.
    """
    source, root = _source(name), data_root(root)
    if source.embedded:
        arrays = source.embedded()
    else:
        try:
            arrays = _read(name, source, root)
        except FileNotFoundError:
            if not download:
                raise
            fetch(name, root)
            arrays = _read(name, source, root)
    return Dataset(
        name,
        *arrays,
        num_classes=source.num_classes,
        mean=source.mean,
        std=source.std,
        augment=source.augment,
    )


def data_root(root: Path | str | None = None) -> Path:
    """The folder data sets are looked for in: `root`, else CKASR_DATA, else "data"."""
    return Path(root or os.environ.get("CKASR_DATA") or "data").expanduser().absolute()


def fetch(name: str, root: Path | str | None = None, timeout: float = 30) -> list[Path]:
    """Download a data set through torchvision; returns its files, none for an embedded set.

    Files appear under `root` only when all are complete and verified; files that are there and
    good are not fetched again. `timeout` is in seconds without an answer. Raises LookupError for
    an unknown name and ConnectionError when the download fails.
    """
    source, root = _source(name), data_root(root)
    if source.embedded:
        return []
    with contextlib.suppress(FileNotFoundError, ValueError):
        return list(_contents(name, source, root)[1])

    import torchvision

    first_missing = next(
        (path for path in reversed([root, *root.parents]) if not path.exists()), None
    )
    root.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".fetch-", dir=root))
    before = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(timeout)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints about retries
            getattr(torchvision.datasets, source.torchvision)(part, download=True)
        files = []
        for path in _contents(name, source, part)[1]:
            target = root / path.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            files.append(path.replace(target))
        return files
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConnectionError(
            f"{name} could not be downloaded ({reason}): try again where there is a network, "
            f"or set CKASR_DATA to a folder that holds {source.layouts[0].folder}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
        shutil.rmtree(part, ignore_errors=True)
        if first_missing is not None and not any(root.iterdir()):
            # Leave no empty folder behind that was not there before.
            shutil.rmtree(first_missing)


def _source(name: str) -> Source:
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise LookupError(f"unknown data set {name!r}{hint} There are: {', '.join(SOURCES)}")
    return SOURCES[name]


def _read(name: str, source: Source, root: Path) -> Arrays:
    layout, files = _contents(name, source, root)
    return layout.parse(list(files.values()))


def _contents(name: str, source: Source, root: Path) -> tuple[Layout, dict[Path, bytes]]:
    """The layout that is there, and its files with their verified contents.

    The first complete layout counts; failing that the error is about one of which a part is there.
    """
    found = {
        layout.folder: [_find(root / layout.folder / file) for file in layout.digests]
        for layout in source.layouts
    }
    layout = max(
        source.layouts,
        key=lambda layout: (all(found[layout.folder]), any(found[layout.folder])),
    )
    contents = {}
    for (file, digest), path in zip(layout.digests.items(), found[layout.folder], strict=True):
        if path is None:
            raise FileNotFoundError(
                f"{name}: {root / layout.folder / file} is missing; set CKASR_DATA to the folder "
                f"that holds {layout.folder}, or run: python -m ckasr data fetch {name}"
            )
        contents[path] = _verified(name, path, digest)
    return layout, contents


def _find(path: Path) -> Path | None:
    packed = path.with_name(path.name + ".gz")
    return next((candidate for candidate in (path, packed) if candidate.is_file()), None)


def _verified(name: str, path: Path, digest: str) -> bytes:
    """A file's uncompressed content, if it has the published digest."""
    content = path.read_bytes()
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        algorithm = {32: "md5", 40: "sha1"}[len(digest)]
        intact = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest() == digest
    except (EOFError, OSError, zlib.error):  # what gzip raises for a broken file
        intact = False
    if not intact:
        raise ValueError(
            f"{name}: {path} is truncated or altered ({path.stat().st_size} bytes, its checksum "
            f"is not the published one); replace it, or run: python -m ckasr data fetch {name}"
        )
    return content


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _planes_to_pixels(planes: np.ndarray) -> Tensor:
    """(N, 3072) uint8, channel after channel, to (N, 32, 32, 3)."""
    pixels = np.empty((len(planes), 1024, 3), np.uint8)
    for channel in range(3):  # three long strided copies, twice as fast as one transposition
        pixels[..., channel] = planes[:, channel * 1024 : (channel + 1) * 1024]
    return torch.from_numpy(pixels.reshape(-1, 32, 32, 3))


def _parse_pickles(contents: Sequence[bytes], label_key: bytes) -> Arrays:
    """CIFAR's Python layout: pickled dictionaries, the last one is the test set."""
    batches = [pickle.loads(content, encoding="bytes") for content in contents]
    images = [_planes_to_pixels(batch[b"data"]) for batch in batches]
    labels = [torch.tensor(batch[label_key]) for batch in batches]
    return _joined(images), _joined(labels), images[-1], labels[-1]


def _parse_binary(contents: Sequence[bytes]) -> Arrays:
    """CIFAR-10's binary layout: records of a label byte and 3072 pixels, the last file is test."""
    records = [np.frombuffer(content, np.uint8).reshape(-1, 3073) for content in contents]
    images = [_planes_to_pixels(record[:, 1:]) for record in records]
    labels = [_tensor(record[:, 0].astype(np.int64)) for record in records]
    return _joined(images), _joined(labels), images[-1], labels[-1]


def _joined(parts: list[Tensor]) -> Tensor:
    """All but the last; no copy of a single one."""
    return parts[0] if len(parts) == 2 else torch.cat(parts[:-1])


def _parse_idx(contents: Sequence[bytes]) -> Arrays:
    """MNIST's layout: train images, train labels, test images, test labels."""
    arrays = []
    for content in contents:
        dimensions = content[3]  # the magic number's last byte
        shape = np.frombuffer(content, ">i4", count=dimensions, offset=4)
        arrays.append(np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape))
    images = [_tensor(array.copy())[..., None] for array in arrays[0::2]]
    labels = [_tensor(array.astype(np.int64)) for array in arrays[1::2]]
    return images[0], labels[0], images[1], labels[1]


def _digits() -> Arrays:
    """scikit-learn's 1,797 digits of 8 x 8, split once and for all into 1,437 + 360.

    Their 17 grey levels v = 0..16 become (255 v + 8) // 16, so 0 stays 0 and 16 becomes 255.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    levels = digits.images.astype(np.int64)
    images = _tensor(((255 * levels + 8) // 16).astype(np.uint8))[..., None]
    labels = _tensor(digits.target.astype(np.int64))
    train, test = split(labels, 360, seed=0)
    return images[train], labels[train], images[test], labels[test]


def _idx_layout(folder: str, *digests: str) -> Layout:
    names = [
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    return Layout(folder, dict(zip(names, digests, strict=True)), _parse_idx)


_MNIST = (
    "6bbc9ace898e44ae57da46a324031adb",
    "a25bea736e30d166cdddb491f175f624",
    "2646ac647ad5339dbf082846283269ea",
    "27ae3e4e09519cfbb04c329615203637",
)
_FASHION = (
    "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "9018921c3c673c538a1fc5bad174d6f9",
    "8181f5470baa50b63fa0f6fddb340f0a",
    "15d484375f8d13e6eb1aabb0c3f46965",
)
_CIFAR10_PYTHON = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_CIFAR10_BINARY = {
    "data_batch_1.bin": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
    "data_batch_2.bin": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
    "data_batch_3.bin": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
    "data_batch_4.bin": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
    "data_batch_5.bin": "26e2849e66a845b7f1e4614ae70f4889ae604628",
    "test_batch.bin": "67eb016db431130d61cd03c7ad570b013799c88c",
}
_CIFAR100_PYTHON = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}

SOURCES: dict[str, Source] = {
    "digits": Source(10, mean=(0.3056,), std=(0.3760,), embedded=_digits),
    "mnist": Source(
        10,
        mean=(0.1307,),
        std=(0.3081,),
        layouts=(_idx_layout("MNIST/raw", *_MNIST),),
        torchvision="MNIST",
    ),
    "fashion-mnist": Source(
        10,
        mean=(0.2860,),
        std=(0.3530,),
        # The second is how Debian's dataset-fashion-mnist lays it below /usr/share/datasets.
        layouts=(
            _idx_layout("FashionMNIST/raw", *_FASHION),
            _idx_layout("fashion-mnist", *_FASHION),
        ),
        torchvision="FashionMNIST",
    ),
    "cifar10": Source(
        10,
        # The recipes' constants. These std are the mean of each image's own; the pixels' standard
        # deviation over the whole set is (.2470, .2435, .2616).
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        augment="crop-flip",
        layouts=(
            Layout(
                "cifar-10-batches-py", _CIFAR10_PYTHON, partial(_parse_pickles, label_key=b"labels")
            ),
            Layout("cifar-10-batches-bin", _CIFAR10_BINARY, _parse_binary),
        ),
        torchvision="CIFAR10",
    ),
    "cifar100": Source(
        100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        augment="crop-flip",
        layouts=(
            Layout(
                "cifar-100-python",
                _CIFAR100_PYTHON,
                partial(_parse_pickles, label_key=b"fine_labels"),
            ),
        ),
        torchvision="CIFAR100",
    ),
}
NAMES = tuple(SOURCES)
