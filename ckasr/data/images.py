"""Images that are stored on the device as uint8 and augmented there.

Order, crops and flips are sampled by CPU generators that depend only on the seed and the epoch. The
batches are therefore the same on every device and in both runs of a comparison, and any epoch can
be repeated without the epochs before it. An order seed changes only the order: each image has the
same crop and flip in the epoch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ckasr import devices
from ckasr.choices import check_choice
from ckasr.tasks import IMAGE_CLASSIFICATION, Task

from .batches import Batch, Indices
from .sampling import keyed_generator

Augment = Literal["none", "crop", "crop-flip"]
AUGMENTS: tuple[str, ...] = get_args(Augment)
PADDING = 4
"""Black pixels on each side of an image before a random crop."""


class Plan(NamedTuple):
    """Random numbers of one epoch, or of one batch, on the device."""

    order: Tensor
    """Index of each image, (n,) int64."""
    corner: Tensor
    """Index of the first pixel of each crop among the pixels of all padded images, (n,)."""
    flip: Tensor
    """1 for a mirrored image, else 0, (n,)."""


class ImageBatches:
    """Images and labels of one split, as batches (see ``Batches``).

    A batch is x (B, C, H, W), channels_last, of ``dtype``, normalised by ``mean`` and ``std``, and
    y (B,) int64. The augmentation is that of the paper's recipe.

    No method waits for the device. ``plan`` samples the random numbers of a whole epoch at once,
    and ``batch`` contains only device operations, so that a CUDA graph can capture it.

    Args:
        images: images (N, H, W, C) uint8.
        labels: labels (N,).
        mean, std: mean and standard deviation per channel, for pixels in [0, 1].
        batch_size: number of images per batch.
        augment: ``none``; ``crop``: a random crop after padding with 4 black pixels on each side,
            before the normalisation; ``crop-flip``: additionally, half of the images are mirrored.
        seed: seed of order and augmentation.
        order_seed: seed of another order with the same crops and flips; -1: the order of ``seed``.
        device: device of images and batches.
        dtype: type of the inputs.
        drop_last: whether to omit the last batch of an epoch if it is not full.

    Raises:
        ValueError: for images that are not uint8 (N, H, W, C), for numbers of images, labels or
            channels that do not agree, and for an unknown augmentation.
    """

    can_capture = True

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        augment: str = "none",
        seed: int = 0,
        order_seed: int = -1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        drop_last: bool = True,
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}: they must be uint8 (N, H, W, C)"
            )
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{len(images)} images but labels of shape {tuple(labels.shape)}")
        count, height, width, channels = images.shape
        if not len(mean) == len(std) == channels:
            raise ValueError(
                f"images have {channels} channels, mean has {len(mean)}, std has {len(std)}"
            )
        check_choice("augment", augment, Augment)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")

        self.batch_size, self.seed, self.drop_last, self.dtype = batch_size, seed, drop_last, dtype
        self.augment, self.device = augment, torch.device(device)
        self.order_seed = order_seed
        self.labels = labels.to(self.device, torch.int64)
        pad = 0 if augment == "none" else PADDING
        if pad:
            shape = (count, height + 2 * pad, width + 2 * pad, channels)
            padded = torch.zeros(shape, dtype=torch.uint8, device=self.device)
            padded[:, pad : pad + height, pad : pad + width] = images.to(self.device)
        else:
            padded = images.to(self.device).contiguous()
        self._padded = padded
        self.images = padded[:, pad : pad + height, pad : pad + width]

        # Indices of the pixels of a crop relative to its corner: in order, and mirrored. If int32
        # is sufficient, it halves the memory traffic of the indices.
        index = torch.int32 if padded.numel() < 2**31 else torch.int64
        rows = torch.arange(height)[:, None] * padded.shape[2]
        columns = torch.arange(width)
        grid = torch.stack([(rows + columns).flatten(), (rows + columns.flip(0)).flatten()])
        self._grid = grid.to(self.device, index)

        # Subtraction and division have the same rounding on every device (there is no fused
        # multiply-add). The constants are expanded to the size of an image, so that the operations
        # process long contiguous rows.
        work = torch.float64 if dtype == torch.float64 else torch.float32
        self._shift, self._scale = (
            (255 * torch.tensor(values, dtype=torch.float64))
            .to(self.device, work)
            .expand(height, width, channels)
            .contiguous()
            for values in (mean, std)
        )

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        whole, rest = divmod(len(self.labels), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def plan(self, epoch: int) -> Plan:
        """Return the random numbers of one epoch, which depend only on the seeds and the epoch.

        Raises:
            ValueError: if the images do not fill one batch.
        """
        if not len(self):
            raise ValueError(
                f"{len(self.labels)} images do not fill one batch of {self.batch_size}: "
                "choose a smaller batch_size, or drop_last=False"
            )
        count = len(self.labels)
        order = torch.randperm(count, generator=keyed_generator("order", self.seed, epoch))
        shift = torch.zeros((2, count), dtype=torch.int64)
        flip = torch.zeros(count, dtype=torch.int64)
        if self.augment != "none":
            crops = keyed_generator("crop", self.seed, epoch)
            shift = torch.randint(0, 2 * PADDING + 1, (2, count), generator=crops)
        if self.augment == "crop-flip":
            flips = keyed_generator("flip", self.seed, epoch)
            flip = torch.randint(0, 2, (count,), generator=flips)
        height, width = self._padded.shape[1:3]
        corner = (order * height + shift[0]) * width + shift[1]
        used = min(len(self) * self.batch_size, count)
        index = self._grid.dtype
        plan = Plan(order, corner.to(index), flip.to(index))
        if self.order_seed >= 0:
            key = "reorder", self.seed, self.order_seed, epoch
            places = torch.randperm(count, generator=keyed_generator(*key))
            plan = Plan(*(numbers[places] for numbers in plan))
        send = devices.of(self.device).send
        return Plan(*(send(numbers[:used]) for numbers in plan))

    def batch(self, indices: Indices) -> Batch:
        """Return the batch (x, y) of a slice of a plan."""
        order, corner, flip = indices
        if self.augment == "none":
            pixels = self.images.index_select(0, order)
        else:
            where = corner[:, None] + self._grid.index_select(0, flip)
            flat = self._padded.view(-1, self._padded.shape[3])
            pixels = flat.index_select(0, where.view(-1)).view(-1, *self.images.shape[1:])
        return self._normalise(pixels), self.labels.index_select(0, order)

    def batch_indices(self, epoch: int) -> Iterator[Plan]:
        """Yield the plan of each batch of one epoch."""
        parts = (numbers.split(self.batch_size) for numbers in self.plan(epoch))
        return map(Plan._make, zip(*parts, strict=True))

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the training batches of one epoch."""
        return (self.batch(indices) for indices in self.batch_indices(epoch))

    def in_order(self, batch_size: int | None = None) -> Iterator[Batch]:
        """Yield all images in their order, not augmented. The last batch may be smaller."""
        size = batch_size or self.batch_size
        parts = zip(self.images.split(size), self.labels.split(size), strict=True)
        return ((self._normalise(pixels), labels) for pixels, labels in parts)

    def _normalise(self, pixels: Tensor) -> Tensor:
        """Convert pixels (B, H, W, C) uint8 to normalised inputs (B, C, H, W), channels_last."""
        values = pixels.to(self._shift.dtype).sub_(self._shift).div_(self._scale)
        return values.to(self.dtype).permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """A set of images in memory (see ``Dataset``).

    Args:
        name: name of the data set.
        train_images, test_images: images (N, H, W, C) uint8, on the CPU.
        train_labels, test_labels: labels (N,) int64, on the CPU.
        num_classes: number of classes.
        mean, std: mean and standard deviation per channel, for pixels in [0, 1].
        augment: augmentation that is usual for this data set; see ``ImageBatches``.
        task: task of the data set.
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
    task: Task = IMAGE_CLASSIFICATION

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of a model's input, (C, H, W)."""
        height, width, channels = self.train_images.shape[1:]
        return channels, height, width

    @property
    def example_input(self) -> Tensor:
        return torch.zeros(1, *self.input_shape)

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
    ) -> ImageBatches:
        return ImageBatches(
            self.train_images[index],
            self.train_labels[index],
            mean=self.mean,
            std=self.std,
            batch_size=batch_size,
            augment=self.augment if augment == "default" else augment,
            seed=seed,
            order_seed=order_seed,
            device=device,
        )

    def test_batches(self, *, batch_size: int, device: torch.device | str = "cpu") -> ImageBatches:
        return ImageBatches(
            self.test_images,
            self.test_labels,
            mean=self.mean,
            std=self.std,
            batch_size=batch_size,
            device=device,
        )
