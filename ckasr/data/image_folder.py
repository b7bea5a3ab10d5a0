"""Folders of images that are read batch by batch: ImageNet, Tiny ImageNet, and your own.

A data set is a folder in the folder of all data sets. It contains a folder for each split, which
contains a folder for each class, such as ``imagenet/train/n01440764/*.JPEG`` and
``imagenet/val/n01440764/*.JPEG``. The images of ``val`` are the test images. To add a data set, add
an entry to ``FOLDERS``.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ckasr import devices
from ckasr.choices import check_choice
from ckasr.tasks import IMAGE_CLASSIFICATION, Task

from .batches import Batch, Indices
from .registry import register
from .sampling import keyed_generator

EXTENSIONS = (".jpeg", ".jpg", ".png", ".ppm", ".bmp", ".webp")
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Ranges of the area of a random crop, as a share of the image's area, and of its aspect ratio
(Szegedy et al. 2015, section 6)."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Augment = Literal["default", "crop-flip", "none"]

Files = Sequence[tuple[Path, int]]
"""Images and their classes."""


@dataclass(frozen=True)
class Recipe:
    """Transformation from an image to the input of a network.

    Args:
        size: height and width of the input, in pixels.
        resize: length of the shorter side before the central crop of a test or validation image, in
            pixels.
        mean, std: mean and standard deviation per channel, for pixels in [0, 1].
    """

    size: int
    resize: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


class FolderBatches:
    """Images of one split that threads read and transform for each batch (see ``Batches``).

    A batch is x (B, 3, size, size) float32, normalised, and y (B,) int64. With augmentation, a
    random crop of a training image is resized, and half of the images are mirrored. Without
    augmentation, an image is resized and cropped in the centre.

    Args:
        files: images and their classes.
        recipe: transformation of an image.
        batch_size: number of images per training batch.
        augment: ``crop-flip`` or ``none``.
        seed: seed of order, crops and flips.
        order_seed: seed of another order with the same crops and flips; -1: the order of ``seed``.
        device: device of the batches.
    """

    can_capture = False

    def __init__(
        self,
        files: Files,
        recipe: Recipe,
        *,
        batch_size: int,
        augment: str = "none",
        seed: int = 0,
        order_seed: int = -1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.files, self.recipe, self.augment = files, recipe, augment
        self.device, self.batch_size = torch.device(device), batch_size
        self.seed, self.order_seed = seed, order_seed
        self._threads = ThreadPoolExecutor(os.cpu_count())

    def __len__(self) -> int:
        return len(self.files) // self.batch_size

    def batch_indices(self, epoch: int) -> Iterator[Indices]:
        """Yield the indices (B,) and random numbers (B, 5) in [0, 1) of the images of each batch.

        Raises ValueError if the images do not fill one batch.
        """
        if not len(self):
            raise ValueError(
                f"{len(self.files)} images do not fill one batch of {self.batch_size}: "
                "choose a smaller batch_size"
            )
        count = len(self.files)
        order = torch.randperm(count, generator=keyed_generator("order", self.seed, epoch))
        crops = torch.rand(count, 5, generator=keyed_generator("crop", self.seed, epoch))
        if self.order_seed >= 0:
            key = "reorder", self.seed, self.order_seed, epoch
            places = torch.randperm(count, generator=keyed_generator(*key))
            order, crops = order[places], crops[places]
        used = len(self) * self.batch_size
        parts = order[:used].split(self.batch_size), crops[:used].split(self.batch_size)
        return zip(*parts, strict=True)

    def batch(self, indices: Indices) -> Batch:
        order, crops = indices
        random = crops.tolist() if self.augment == "crop-flip" else [None] * len(order)
        return self._batch(order.tolist(), random)

    def in_order(self, batch_size: int | None = None) -> Iterator[Batch]:
        size = batch_size or self.batch_size
        for start in range(0, len(self.files), size):
            order = range(start, min(start + size, len(self.files)))
            yield self._batch(order, [None] * len(order))

    def _batch(self, order: Sequence[int], random: Sequence[Sequence[float] | None]) -> Batch:
        paths = [self.files[index][0] for index in order]
        images = list(self._threads.map(self._read, paths, random))
        labels = torch.tensor([self.files[index][1] for index in order])
        send = devices.of(self.device).send
        return send(torch.stack(images)), send(labels)

    def _read(self, path: Path, random: Sequence[float] | None) -> Tensor:
        """Return one image (3, size, size) float32, normalised."""
        from torchvision.io import ImageReadMode, decode_image
        from torchvision.transforms.v2 import functional as transforms

        try:
            image = decode_image(str(path), ImageReadMode.RGB, apply_exif_orientation=True)
        except RuntimeError as error:
            raise ValueError(f"{path} is no image that can be read: {error}") from None
        size, (height, width) = self.recipe.size, image.shape[1:]
        if random is None:
            image = transforms.resize(image, [self.recipe.resize], antialias=True)
            image = transforms.center_crop(image, [size, size])
        else:
            box = random_crop(height, width, random[:4])
            image = transforms.resized_crop(image, *box, [size, size], antialias=True)
            if random[4] < 0.5:
                image = transforms.horizontal_flip(image)
        pixels = transforms.to_dtype(image, torch.float32, scale=True)
        return transforms.normalize(pixels, list(self.recipe.mean), list(self.recipe.std))


def random_crop(height: int, width: int, random: Sequence[float]) -> tuple[int, int, int, int]:
    """Return a random crop as (top, left, height, width), in pixels.

    The area is uniformly distributed over ``AREA`` times the area of the image, and the logarithm
    of the aspect ratio is uniformly distributed over the logarithm of ``RATIO``. A side that would
    be longer than that of the image is shortened to it; torchvision's RandomResizedCrop samples
    such a crop again.

    Args:
        height, width: size of the image in pixels.
        random: four numbers in [0, 1), for area, aspect ratio, top and left.
    """
    area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * random[0])
    low, high = map(math.log, RATIO)
    ratio = math.exp(low + (high - low) * random[1])
    crop_width = min(max(round(math.sqrt(area * ratio)), 1), width)
    crop_height = min(max(round(math.sqrt(area / ratio)), 1), height)
    top = int(random[2] * (height - crop_height + 1))
    left = int(random[3] * (width - crop_width + 1))
    return top, left, crop_height, crop_width


@dataclass(frozen=True, eq=False)
class FolderDataset:
    """A set of images on disk (see ``Dataset``).

    Args:
        name: name of the data set.
        train, test: images and their classes.
        num_classes: number of classes.
        recipe: transformation of an image.
        task: task of the data set.
    """

    name: str
    train: Files
    test: Files
    num_classes: int
    recipe: Recipe
    task: Task = IMAGE_CLASSIFICATION

    @property
    def train_labels(self) -> Tensor:
        return torch.tensor([label for _, label in self.train])

    @property
    def example_input(self) -> Tensor:
        return torch.zeros(1, 3, self.recipe.size, self.recipe.size)

    @property
    def model_options(self) -> Mapping[str, Any]:
        return {}

    def train_batches(
        self,
        index: Tensor,
        *,
        batch_size: int,
        augment: str = "default",
        seed: int = 0,
        order_seed: int = -1,
        device: torch.device | str = "cpu",
    ) -> FolderBatches:
        check_choice("augment", augment, Augment)
        return FolderBatches(
            [self.train[i] for i in index.tolist()],
            self.recipe,
            batch_size=batch_size,
            augment="none" if augment == "none" else "crop-flip",
            seed=seed,
            order_seed=order_seed,
            device=device,
        )

    def test_batches(self, *, batch_size: int, device: torch.device | str = "cpu") -> FolderBatches:
        return FolderBatches(self.test, self.recipe, batch_size=batch_size, device=device)


@dataclass(frozen=True)
class Folder:
    """A set of images before its folder is read.

    Args:
        name: name of the data set.
        folder: path of its folder in the folder of all data sets.
        recipe: transformation of an image.
    """

    name: str
    folder: str
    recipe: Recipe

    def load(self, root: Path) -> FolderDataset:
        """List the images. The classes are the folders of ``train``, in alphabetical order.

        Args:
            root: folder of all data sets.

        Raises:
            FileNotFoundError: if a split is missing or has no image.
            ValueError: if the test images have a class that the training images lack.
        """
        folder = root / self.folder
        train, test = folder / "train", folder / "val"
        for split in (train, test):
            if not split.is_dir():
                raise FileNotFoundError(
                    f"no {self.name}: expected {split} with a folder of images for each class; set "
                    "CKASR_DATA to the folder that holds it"
                )
        classes = sorted(entry.name for entry in train.iterdir() if entry.is_dir())
        if unknown := {entry.name for entry in test.iterdir() if entry.is_dir()} - set(classes):
            raise ValueError(f"{test} has the class {min(unknown)!r}, which {train} lacks")
        train_files, test_files = (
            [(path, label) for label, name in enumerate(classes) for path in images(split / name)]
            for split in (train, test)
        )
        for split, found in ((train, train_files), (test, test_files)):
            if not found:
                raise FileNotFoundError(f"no {self.name}: {split} contains no image")
        return FolderDataset(self.name, train_files, test_files, len(classes), self.recipe)


def images(folder: Path) -> list[Path]:
    """Return the paths of all images in a folder and its subfolders, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)


FOLDERS = (
    Folder("imagenet", "imagenet", Recipe(size=224, resize=256)),
    # The images in val/ must first be moved to folders of classes, as in val_annotations.txt.
    Folder("tiny-imagenet", "tiny-imagenet-200", Recipe(size=64, resize=64)),
)

for _entry in FOLDERS:
    register(_entry.name)(_entry.load)
