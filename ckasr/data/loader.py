"""Batches of a data set that lives on the device as uint8, augmented there.

Order, crops and flips come from CPU generators keyed by the seed and the epoch. So every device
sees the same batches, both arms of a comparison do, and any epoch can be replayed alone. An order
seed changes the order and nothing else: each image keeps its crop and its flip of that epoch.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ckasr import devices

AUGMENTS = ("none", "crop", "crop-flip")
PADDING = 4


def keyed_generator(*key: str | int) -> torch.Generator:
    """A CPU generator that depends on its key alone: ``keyed_generator("order", seed, epoch)``."""
    # As strings, so that a seed of numpy's integer type is the same seed.
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def split(labels: Tensor, validation: int, seed: int) -> tuple[Tensor, Tensor]:
    """Stratified split: indices (train, validation), each int64, sorted, on the CPU.

    Each class gives its share of the `validation` images; what rounding leaves over goes to the
    classes with the largest remainders, the lower class first. 0 gives an empty validation set.
    Raises ValueError when a class would be left without a validation or a training image.
    """
    labels = torch.as_tensor(labels).cpu()
    total = len(labels)
    if not 0 <= validation < max(total, 1):
        raise ValueError(
            f"validation={validation} of {total} training images is impossible: "
            f"choose 0 to {max(total - 1, 0)}"
        )
    counts = torch.bincount(labels)
    quotas = counts * validation // max(total, 1)
    left = validation - int(quotas.sum())
    remainders = counts * validation % max(total, 1)
    quotas[torch.argsort(remainders, descending=True, stable=True)[:left]] += 1
    if validation:
        for label, (quota, count) in enumerate(zip(quotas.tolist(), counts.tolist(), strict=True)):
            if count and not 0 < quota < count:
                lacking = "validation" if quota == 0 else "training"
                raise ValueError(
                    f"validation={validation} leaves class {label} ({count} of {total} images) "
                    f"without a {lacking} image: choose {'more' if quota == 0 else 'fewer'}, or 0"
                )

    shuffled = torch.randperm(total, generator=keyed_generator("split", seed))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    starts = torch.cumsum(counts, 0) - counts
    rank = torch.arange(total) - starts[labels[by_class]]
    held_out = rank < quotas[labels[by_class]]
    return by_class[~held_out].sort().values, by_class[held_out].sort().values


class Plan(NamedTuple):
    """One epoch's draws, on the device; slices of it go to `Batches.batch`."""

    order: Tensor  # (n,) int64: which image
    corner: Tensor  # (n,): flat pixel index of the crop's first pixel in the padded images
    flip: Tensor  # (n,): 1 where the image is mirrored


class Batches:
    """The images (N, H, W, C) uint8 and labels (N,) of one split, as batches on `device`.

    `epoch(e)` yields shuffled, augmented batches, `in_order()` all images as they are. Batches
    are x (B, C, H, W), channels_last, of `dtype`, normalised by `mean` and `std` (a channel each,
    for pixels in [0, 1]), and y (B,) int64. Augmentation as in the paper's recipe: "crop" is a
    random crop after padding by 4 black pixels (before normalisation), "crop-flip" also mirrors
    half of the images, "none" leaves them. order_seed: reorders the images of every epoch, each
    with its crop and flip; -1: the order that ``seed`` gives.

    Nothing waits for the device. `plan(e)` draws a whole epoch at once, and `batch` makes a batch
    of any slice of it by device operations alone, so a CUDA graph can be captured of it.

    Raises ValueError for images that are not uint8 (N, H, W, C), for counts that do not agree,
    and for an unknown augmentation.
    """

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
        if augment not in AUGMENTS:
            raise ValueError(f"augment={augment!r} is unknown: choose {', '.join(AUGMENTS)}")
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
        self.images = padded[:, pad : pad + height, pad : pad + width]  # (N, H, W, C), a view

        # Where the pixels of a crop lie, counted from its corner: as they are, and mirrored.
        # int32 where it suffices: the indices are then half the memory traffic.
        index = torch.int32 if padded.numel() < 2**31 else torch.int64
        rows = torch.arange(height)[:, None] * padded.shape[2]
        columns = torch.arange(width)
        grid = torch.stack([(rows + columns).flatten(), (rows + columns.flip(0)).flatten()])
        self._grid = grid.to(self.device, index)

        # Subtraction and division are rounded the same on every device (no fused multiply-add).
        # Expanded to a whole image, which lets them run over long contiguous rows.
        work = torch.float64 if dtype == torch.float64 else torch.float32
        self._shift, self._scale = (
            (255 * torch.tensor(values, dtype=torch.float64))
            .to(self.device, work)
            .expand(height, width, channels)
            .contiguous()
            for values in (mean, std)
        )

    def __len__(self) -> int:
        """Batches an epoch."""
        whole, rest = divmod(len(self.labels), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def check_length(self) -> None:
        """Raise ValueError if the images do not fill one batch."""
        if not len(self):
            raise ValueError(
                f"{len(self.labels)} images do not fill one batch of {self.batch_size}: "
                "choose a smaller batch_size, or drop_last=False"
            )

    def plan(self, epoch: int) -> Plan:
        """All draws of one epoch: a function of the seeds and the epoch, whatever was drawn before.

        Raises ValueError when the images do not fill one batch.
        """
        self.check_length()
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
        draws = order, corner.to(index), flip.to(index)
        if self.order_seed >= 0:
            key = "reorder", self.seed, self.order_seed, epoch
            places = torch.randperm(count, generator=keyed_generator(*key))
            draws = tuple(draw[places] for draw in draws)
        send = devices.of(self.device).send
        return Plan(*(send(draw[:used]) for draw in draws))

    def batch(self, order: Tensor, corner: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
        """The batch (x, y) of a slice of a plan; device operations only."""
        if self.augment == "none":
            pixels = self.images.index_select(0, order)
        else:
            where = corner[:, None] + self._grid.index_select(0, flip)
            flat = self._padded.view(-1, self._padded.shape[3])
            pixels = flat.index_select(0, where.view(-1)).view(-1, *self.images.shape[1:])
        return self._normalise(pixels), self.labels.index_select(0, order)

    def draws(self, epoch: int) -> Iterator[Plan]:
        """The plan of one epoch, cut into what `batch` makes a batch of."""
        parts = (draws.split(self.batch_size) for draws in self.plan(epoch))
        return map(Plan._make, zip(*parts, strict=True))

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of one epoch; see `plan` for what they depend on."""
        return (self.batch(*draws) for draws in self.draws(epoch))

    def in_order(self, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """All images, not augmented, in their order; the last batch may be smaller."""
        size = batch_size or self.batch_size
        parts = zip(self.images.split(size), self.labels.split(size), strict=True)
        return ((self._normalise(pixels), labels) for pixels, labels in parts)

    def _normalise(self, pixels: Tensor) -> Tensor:
        """(B, H, W, C) uint8 to (B, C, H, W) channels_last in `dtype`."""
        values = pixels.to(self._shift.dtype).sub_(self._shift).div_(self._scale)
        return values.to(self.dtype).permute(0, 3, 1, 2)
