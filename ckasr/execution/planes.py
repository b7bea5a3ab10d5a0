"""Memory layouts of sparse execution: padded planes, and the buffers that contain them."""

import math
import mmap
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

TILE_POINTS = 19_200
"""Approximate number of points of a plane that a kernel computes at a time (a tile).

The number of images of a tile is the power of two that is closest. Small tiles remain in the L2
cache, and large tiles give long reads that the processor can prefetch. On a Zen 4 core with 1 MB of
L2 cache, training steps of ResNet20 and ResNet32 are fastest with 9,600 to 38,400 points at every
sparsity from 0.9 to 0.998; with 1,200 points they take 6 to 20 % longer.
"""

HUGE = 1 << 21


@dataclass(frozen=True)
class Grid:
    """Points of one plane: ``images`` images of ``height`` x ``width`` pixels, one after the other.

    Each row is followed by ``border`` zeros, and each image by ``border`` rows of zeros. The zeros
    of one row are also to the left of the next row, and those of one image are also above the next
    image. A plane can therefore be read with any shift of up to ``border`` rows and columns.
    """

    images: int
    height: int
    width: int
    border: int
    dtype: torch.dtype
    half: bool = False
    """Whether internal planes, which PyTorch does not use, are stored in bfloat16."""

    @cached_property
    def row(self) -> int:
        """Number of points of a row with its border."""
        return self.width + self.border

    @cached_property
    def image(self) -> int:
        """Number of points of an image with its border."""
        return (self.height + self.border) * self.row

    @cached_property
    def guard(self) -> int:
        """Number of zeros before and after all planes: the largest shift, in whole cache lines."""
        return -(-(self.border * self.row + self.border) // 16) * 16

    @cached_property
    def pixels(self) -> int:
        """Number of pixels of a channel in the batch, over which a batch norm averages."""
        return self.images * self.height * self.width

    @cached_property
    def tile_images(self) -> int:
        """Number of images of a tile."""
        power = max(0, round(math.log2(TILE_POINTS / self.image)))
        return min(1 << power, self.images)

    @cached_property
    def tile(self) -> int:
        """Number of points of a tile."""
        return self.tile_images * self.image

    @cached_property
    def tiles(self) -> int:
        """Number of tiles of a plane."""
        return -(-self.images // self.tile_images)

    @cached_property
    def extent(self) -> tuple[int, int, int]:
        """Number of points of a tile, number of tiles, number of points of the last tile."""
        rest = self.images - (self.tiles - 1) * self.tile_images
        return self.tile, self.tiles, rest * self.image

    @cached_property
    def numpy(self) -> np.dtype:
        """Type in which the kernels compute."""
        return np.dtype(str(self.dtype).removeprefix("torch."))

    @cached_property
    def stored(self) -> np.dtype:
        """Type of internal planes. An array of bfloat16 has the type uint16."""
        return np.dtype(np.uint16) if self.half else self.numpy

    @cached_property
    def mask(self) -> np.ndarray:
        """Array with 1 at the pixels of a tile and 0 at the borders."""
        image = np.zeros((self.height + self.border, self.row), self.numpy)
        image[: self.height, : self.width] = 1
        return np.tile(image.reshape(-1), self.tile_images)


@dataclass(frozen=True)
class Planes:
    """Layout of a tensor (N, C, H, W) that PyTorch also uses.

    The images of a channel are adjacent, so that a plane is contiguous memory, which the processor
    can prefetch.
    """

    grid: Grid
    channels: int

    @cached_property
    def pitch(self) -> int:
        """Distance between two channels, in points."""
        grid = self.grid
        return -(-(grid.images * grid.image + grid.guard) // 16) * 16

    @cached_property
    def step(self) -> int:
        """Distance between two tiles of a channel, in points."""
        return self.grid.tile

    @cached_property
    def size(self) -> int:
        """Number of points of the memory."""
        grid = self.grid
        return 2 * grid.guard + max(self.channels, 1) * self.pitch

    @cached_property
    def strides(self) -> tuple[int, int, int, int]:
        """Strides of the tensor (N, C, H, W), in points."""
        return self.grid.image, self.pitch, self.grid.row, 1

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the tensor, (N, C, H, W)."""
        return self.grid.images, self.channels, self.grid.height, self.grid.width

    def base(self, channels: np.ndarray) -> np.ndarray:
        """Return the first positions of the planes of channels; -1 (no plane) is kept as -1."""
        return np.where(channels < 0, -1, self.grid.guard + channels * self.pitch)

    @cached_property
    def _bytes(self) -> tuple[int, ...]:
        return tuple(stride * self.grid.numpy.itemsize for stride in self.strides)

    def group(self, memory: np.ndarray, base: np.ndarray) -> tuple[Any, ...]:
        """Return the arguments of kernels that process single rows.

        They are the memory, the first positions of planes, the distances between images and between
        rows, the height and the width.
        """
        grid = self.grid
        return memory, base, grid.image, grid.row, grid.height, grid.width

    def view(
        self, memory: np.ndarray, flat: bool = False, kind: type[np.ndarray] = np.ndarray
    ) -> Any:
        """Return a view of the memory as an array (N, C, H, W), or (N, C) if ``flat``.

        Args:
            memory: the memory.
            flat: whether the array is (N, C).
            kind: class of the array.
        """
        end, grid = 2 if flat else 4, self.grid
        offset = grid.guard * grid.numpy.itemsize
        return kind(self.shape[:end], grid.numpy, memory, offset, self._bytes[:end])


@dataclass(frozen=True)
class Tiled:
    """Layout of internal planes: all planes of a tile are adjacent."""

    grid: Grid
    planes: int

    @cached_property
    def step(self) -> int:
        """Distance between two tiles of a plane, in points."""
        return max(self.planes, 1) * self.grid.tile

    @cached_property
    def size(self) -> int:
        """Number of points of the memory."""
        return self.step * self.grid.tiles

    def base(self, slots: np.ndarray) -> np.ndarray:
        """Return the first positions of planes from their indices; -1 (no plane) is kept as -1."""
        return np.where(slots < 0, -1, slots * self.grid.tile)


@dataclass(frozen=True)
class Scratch:
    """Layout of temporary planes: one tile of each plane, with zeros around each of them."""

    grid: Grid
    planes: int

    @cached_property
    def pitch(self) -> int:
        """Distance between two planes, in points."""
        return -(-(self.grid.tile + self.grid.guard) // 16) * 16

    @cached_property
    def size(self) -> int:
        """Number of points of the memory."""
        return self.grid.guard + max(self.planes, 1) * self.pitch

    def base(self, slots: np.ndarray) -> np.ndarray:
        """Return the first positions of planes from their indices."""
        return self.grid.guard + slots * self.pitch


def zeros(size: int, dtype: np.dtype) -> np.ndarray:
    """Return an array of zeros, aligned to a cache line, in huge pages if the system has them."""
    item = dtype.itemsize
    if size * item > HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        region = mmap.mmap(-1, (-(-size * item // HUGE) + 1) * HUGE)
        region.madvise(mmap.MADV_HUGEPAGE)
        raw, align = np.frombuffer(region, dtype), HUGE
    else:
        raw, align = np.zeros(size + 64 // item, dtype), 64
    skip = -raw.ctypes.data % align // item
    return raw[skip : skip + size]


class _Loan(np.ndarray):
    """A view of memory of a pool, which gives the memory back when it is deleted."""

    loan: "tuple[Buffers, object, np.ndarray] | None" = None

    def __del__(self) -> None:
        if self.loan is not None:
            buffers, key, memory = self.loan
            buffers.give(key, memory)


class Buffers:
    """A pool of arrays that are reused.

    A new array contains zeros, and a reused array still contains its last values. A function that
    takes an array may read only the points that it has written itself, and the zeros between
    images. No function that uses the same key writes between images, so these points remain zero.
    """

    def __init__(self) -> None:
        self._free: dict[object, list[np.ndarray]] = {}
        self._scratch: dict[object, np.ndarray] = {}
        self.growth = 0
        """Number of temporary arrays that have been created or replaced by larger ones."""
        self.clean: set[int] = set()
        """Ids of outputs that had not been changed in place when their backward ran."""

    def take(self, key: object, size: int, dtype: np.dtype) -> np.ndarray:
        """Return an array of the pool with this key, or a new array of this size and type."""
        free = self._free.setdefault(key, [])
        return free.pop() if free else zeros(size, dtype)

    def give(self, key: object, memory: np.ndarray) -> None:
        """Give an array back to the pool."""
        self._free.setdefault(key, []).append(memory)

    def lend(self, key: object, memory: np.ndarray, planes: Planes, flat: bool) -> Tensor:
        """Return memory as a tensor. The memory is given back when no tensor refers to it.

        Args:
            key: key of the memory in the pool.
            memory: the memory.
            planes: layout of the memory.
            flat: whether the tensor is (N, C) instead of (N, C, H, W).
        """
        view = planes.view(memory, flat, _Loan)
        # A torch storage keeps a reference to the array that it was created from.
        view.loan = self, key, memory
        return torch.from_numpy(view)

    def scratch(
        self, name: str, layout: Scratch | Tiled, dtype: np.dtype | None = None
    ) -> np.ndarray:
        """Return temporary memory that all plans of a grid share.

        A plan must write each point before it reads it. Shared memory stays in the cache, while
        separate memory for each plan would not.
        """
        key = name, layout.grid
        known = self._scratch.get(key)
        if known is None or known.size < layout.size:
            known = self._scratch[key] = zeros(layout.size, dtype or layout.grid.numpy)
            self.growth += 1
        return known


class Lease:
    """Arrays from a pool, which are given back when this object is deleted."""

    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers
        self._taken: list[tuple[object, np.ndarray]] = []

    def take(self, key: object, size: int, dtype: np.dtype) -> np.ndarray:
        """Return an array as `Buffers.take`, and keep it until this object is deleted."""
        memory = self.buffers.take(key, size, dtype)
        self._taken.append((key, memory))
        return memory

    def __del__(self) -> None:
        for key, memory in self._taken:
            self.buffers.give(key, memory)
