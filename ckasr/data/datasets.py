"""The data sets: where each lies, what its files' published digests are, its recipe's constants.

A new data set is one entry in `SOURCES`: its constants, and either the layouts of its files
(`files.py` has the usual ones; torchvision's class downloads them) or a function that makes the
arrays.
"""

import contextlib
import io
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ckasr.names import nearest

from .files import Arrays, Layout, binary, contents, idx, pickles
from .loader import split


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images uint8 (N, H, W, C) and labels int64 (N,), on the CPU.

    `mean` and `std` hold a number a channel, for pixels scaled to [0, 1]; `augment` is the
    augmentation of the recipes this data set is used with (see `Batches`). The test set is for
    the final evaluation only; validation images come out of the training set by `split`.
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
        """(C, H, W), what a model sees."""
        height, width, channels = self.train_images.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Source:
    """What is known of a data set; it has `layouts` of files, or is `embedded`."""

    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str = "none"
    layouts: tuple[Layout, ...] = ()
    torchvision: str = ""  # the torchvision class that downloads it
    embedded: Callable[[], Arrays] | None = None


def load(name: str, root: Path | str | None = None, *, download: bool = False) -> Dataset:
    """A data set, from the folder `root` (default: CKASR_DATA, else "data").

    A file is parsed only if its digest is the published one. With `download`, missing files are
    fetched first. Raises LookupError for an unknown name, FileNotFoundError for a missing file,
    ValueError for a truncated or altered one, and what `fetch` raises.
    """
    source, root = source_of(name), data_root(root)
    if source.embedded:
        arrays = source.embedded()
    else:
        try:
            layout, verified = contents(name, source.layouts, root)
        except FileNotFoundError:
            if not download:
                raise
            fetch(name, root)
            layout, verified = contents(name, source.layouts, root)
        arrays = layout.parse(list(verified.values()))
    return Dataset(
        name,
        *arrays,
        num_classes=source.num_classes,
        mean=source.mean,
        std=source.std,
        augment=source.augment,
    )


def data_root(root: Path | str | None = None) -> Path:
    """The folder that holds the data sets: `root`, else CKASR_DATA, else "data"."""
    return Path(root or os.environ.get("CKASR_DATA") or "data").expanduser().absolute()


def fetch(name: str, root: Path | str | None = None, timeout: float = 30) -> list[Path]:
    """Download a data set through torchvision; returns its files, none for an embedded set.

    Files appear below `root` only when all are complete and verified, and what is there and
    intact is not fetched again. `timeout` is in seconds without an answer. Raises LookupError
    for an unknown name, ConnectionError when the download fails.
    """
    source, root = source_of(name), data_root(root)
    if source.embedded:
        return []
    with contextlib.suppress(FileNotFoundError, ValueError):
        return list(contents(name, source.layouts, root)[1])

    import torchvision

    # A folder beside the goal, so that moving is renaming; the goal is not made before success.
    beside = next(folder for folder in (root, *root.parents) if folder.is_dir())
    before = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(timeout)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=beside) as part:
            with contextlib.redirect_stdout(io.StringIO()):  # torchvision prints its retries
                getattr(torchvision.datasets, source.torchvision)(part, download=True)
            files = []
            for path in contents(name, source.layouts, Path(part))[1]:
                target = root / path.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                files.append(path.replace(target))
        return files
    except (OSError, RuntimeError, ValueError) as error:  # torchvision raises any of these
        reason = " ".join(str(error).split())
        raise ConnectionError(
            f"{name} could not be downloaded ({reason}): try again where there is a network, "
            f"or set CKASR_DATA to a folder that holds {source.layouts[0].folder}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def source_of(name: str) -> Source:
    """What is known of a data set; raises LookupError, with the nearest names, for no set."""
    if name not in SOURCES:
        raise LookupError(f"unknown data set {name!r}{nearest(name, SOURCES)}")
    return SOURCES[name]


def _digits() -> Arrays:
    """scikit-learn's 1,797 digits of 8 x 8, split once and for all into 1,437 and 360.

    Their 17 grey levels v = 0..16 become (255 v + 8) // 16: v / 16 of white, rounded half up.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    levels = digits.images.astype(np.int64)
    images = torch.from_numpy(((255 * levels + 8) // 16).astype(np.uint8))[..., None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, test = split(labels, 360, seed=0)
    return images[train], labels[train], images[test], labels[test]


# Of the files without .gz, which Debian compressed anew.
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
    "digits": Source(10, mean=(0.3053,), std=(0.3757,), embedded=_digits),
    "mnist": Source(
        10,
        mean=(0.1307,),
        std=(0.3081,),
        layouts=(idx("MNIST/raw", _MNIST),),
        torchvision="MNIST",
    ),
    "fashion-mnist": Source(
        10,
        mean=(0.2860,),
        std=(0.3530,),
        # The second as Debian's dataset-fashion-mnist has it, below /usr/share/datasets.
        layouts=(idx("FashionMNIST/raw", _FASHION), idx("fashion-mnist", _FASHION)),
        torchvision="FashionMNIST",
    ),
    "cifar10": Source(
        10,
        # The recipes' constants: this std is the mean of the images' own. The standard deviation
        # of all pixels is (.2470, .2435, .2616).
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        augment="crop-flip",
        layouts=(
            pickles("cifar-10-batches-py", _CIFAR10_PYTHON, b"labels"),
            binary("cifar-10-batches-bin", _CIFAR10_BINARY),
        ),
        torchvision="CIFAR10",
    ),
    "cifar100": Source(
        100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        augment="crop-flip",
        layouts=(pickles("cifar-100-python", _CIFAR100_PYTHON, b"fine_labels"),),
        torchvision="CIFAR100",
    ),
}
NAMES = tuple(SOURCES)
