"""Sets of images in memory: the layouts and digests of their files, and their constants.

To add a set of images, add an entry to ``IMAGE_SETS``. The entry needs either the layouts of its
files (``files.py`` has the usual ones) with the class of torchvision that downloads them, or a
function that returns the arrays.
"""

import contextlib
import io
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .files import Arrays, Layout, binary, contents, idx, pickles
from .images import ImageDataset
from .registry import register
from .sampling import split


@dataclass(frozen=True)
class ImageFiles:
    """A set of images before it is loaded.

    Args:
        name: name of the data set.
        num_classes: number of classes.
        mean, std: mean and standard deviation per channel, for pixels in [0, 1].
        augment: augmentation that is usual for this data set; see ``ImageBatches``.
        layouts: possible layouts of the files.
        torchvision: name of the class of ``torchvision.datasets`` that downloads the files.
        embedded: function that returns the arrays of a data set without files.
    """

    name: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str = "none"
    layouts: tuple[Layout, ...] = ()
    torchvision: str = ""
    embedded: Callable[[], Arrays] | None = None

    def load(self, root: Path) -> ImageDataset:
        """Load the data set. A file is parsed only if its digest is the published one.

        Args:
            root: folder of all data sets.

        Raises:
            FileNotFoundError: for a missing file.
            ValueError: for a file that is truncated or altered.
        """
        if self.embedded:
            arrays = self.embedded()
        else:
            layout, verified = contents(self.name, self.layouts, root)
            arrays = layout.parse(list(verified.values()))
        return ImageDataset(
            self.name,
            *arrays,
            num_classes=self.num_classes,
            mean=self.mean,
            std=self.std,
            augment=self.augment,
        )

    def fetch(self, root: Path, timeout: float) -> list[Path]:
        """Download the data set with torchvision, and return the paths of its files.

        The files are moved to ``root`` when all of them are complete and verified. Files that are
        already there are not downloaded again if they are intact.

        Args:
            root: folder of all data sets.
            timeout: time to wait for a response of the server, in seconds.

        Raises:
            ConnectionError: if the download fails.
        """
        if self.embedded:
            return []
        with contextlib.suppress(FileNotFoundError, ValueError):
            return list(contents(self.name, self.layouts, root)[1])

        import torchvision

        # A folder on the file system of the target, so that files are moved by renaming. The target
        # is created at the end.
        beside = next(folder for folder in (root, *root.parents) if folder.is_dir())
        before = socket.getdefaulttimeout()
        try:
            socket.setdefaulttimeout(timeout)
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=beside) as part:
                with contextlib.redirect_stdout(io.StringIO()):  # torchvision prints its retries
                    getattr(torchvision.datasets, self.torchvision)(part, download=True)
                files = []
                for path in contents(self.name, self.layouts, Path(part))[1]:
                    target = root / path.relative_to(part)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    files.append(path.replace(target))
            return files
        except (OSError, RuntimeError, ValueError) as error:  # torchvision raises any of these
            reason = " ".join(str(error).split())
            raise ConnectionError(
                f"{self.name} could not be downloaded ({reason}): try again where there is a "
                f"network, or set CKASR_DATA to a folder that holds {self.layouts[0].folder}"
            ) from error
        finally:
            socket.setdefaulttimeout(before)


def _digits() -> Arrays:
    """Return scikit-learn's digits: 1,437 training and 360 test images of 8 x 8 pixels.

    The split is fixed. The 17 grey levels v = 0, ..., 16 are converted to (255 v + 8) // 16, which
    is 255 v / 16, rounded half up.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    levels = digits.images.astype(np.int64)
    images = torch.from_numpy(((255 * levels + 8) // 16).astype(np.uint8))[..., None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, test = split(labels, 360, seed=0)
    return images[train], labels[train], images[test], labels[test]


# Digests of the uncompressed files, because the compressed files in Debian are different.
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

IMAGE_SETS = (
    ImageFiles("digits", 10, mean=(0.3053,), std=(0.3757,), embedded=_digits),
    ImageFiles(
        "mnist",
        10,
        mean=(0.1307,),
        std=(0.3081,),
        layouts=(idx("MNIST/raw", _MNIST),),
        torchvision="MNIST",
    ),
    ImageFiles(
        "fashion-mnist",
        10,
        mean=(0.2860,),
        std=(0.3530,),
        # The second layout is that of Debian's dataset-fashion-mnist, in /usr/share/datasets.
        layouts=(idx("FashionMNIST/raw", _FASHION), idx("fashion-mnist", _FASHION)),
        torchvision="FashionMNIST",
    ),
    ImageFiles(
        "cifar10",
        10,
        # The usual constants. This std is the mean of the standard deviations of single images; the
        # standard deviation of all pixels is (.2470, .2435, .2616).
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        augment="crop-flip",
        layouts=(
            pickles("cifar-10-batches-py", _CIFAR10_PYTHON, b"labels"),
            binary("cifar-10-batches-bin", _CIFAR10_BINARY),
        ),
        torchvision="CIFAR10",
    ),
    ImageFiles(
        "cifar100",
        100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        augment="crop-flip",
        layouts=(pickles("cifar-100-python", _CIFAR100_PYTHON, b"fine_labels"),),
        torchvision="CIFAR100",
    ),
)

for _files in IMAGE_SETS:
    register(_files.name, _files.fetch)(_files.load)
