"""Memory layout of sparse execution: padded planes, and buffers for them."""

import math
import mmap
import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

TILE_POINTS = 19_200
"""Points of a plane that a kernel works on at a time, to the nearest power of two images.

Small tiles stay in the L2 cache, and large ones are read ahead by the processor in long runs. On a
Zen 4 core with 1 MB of L2, steps of ResNet20 and ResNet32 take the least time between 9,600 and
38,400 points at every sparsity from 0.9 to 0.998; tiles of 1,200 points cost 6 to 20 % more.
"""

HUGE = 1 << 21


@dataclass(frozen=True)
class Grid:
    """The points of one plane: ``images`` of ``height`` x ``width`` pixels, one after the other.

    Each row has ``border`` zeros to its right, and each image as many rows of zeros below it. To
    the left of a row is the border of the row before, and above an image that of the image before.
    A plane may therefore be read at any shift of up to ``border`` rows and columns.
    """

    images: int
    height: int
    width: int
    border: int
    dtype: torch.dtype
    half: bool = False
    """Whether what only kernels see is stored in bfloat16."""

    @cached_property
    def row(self) -> int:
        return self.width + self.border

    @cached_property
    def image(self) -> int:
        """Points of an image with its border."""
        return (self.height + self.border) * self.row

    @cached_property
    def guard(self) -> int:
        """Number of zeros before and behind all planes: the largest shift, in whole cache lines."""
        return -(-(self.border * self.row + self.border) // 16) * 16

    @cached_property
    def pixels(self) -> int:
        """Pixels of a channel, over which a batch norm averages."""
        return self.images * self.height * self.width

    @cached_property
    def tile_images(self) -> int:
        power = max(0, round(math.log2(TILE_POINTS / self.image)))
        return min(1 << power, self.images)

    @cached_property
    def tile(self) -> int:
        """Points of a tile."""
        return self.tile_images * self.image

    @cached_property
    def tiles(self) -> int:
        return -(-self.images // self.tile_images)

    @cached_property
    def extent(self) -> tuple[int, int, int]:
        """Points of a tile, number of tiles, points of the last tile."""
        rest = self.images - (self.tiles - 1) * self.tile_images
        return self.tile, self.tiles, rest * self.image

    @cached_property
    def numpy(self) -> np.dtype:
        return np.dtype(str(self.dtype).removeprefix("torch."))

    @cached_property
    def stored(self) -> np.dtype:
        """The type of planes that only kernels see: bfloat16 is an array of uint16."""
        return np.dtype(np.uint16) if self.half else self.numpy

    @cached_property
    def mask(self) -> np.ndarray:
        """1 at the pixels of a tile, 0 at its borders."""
        image = np.zeros((self.height + self.border, self.row), self.numpy)
        image[: self.height, : self.width] = 1
        return np.tile(image.reshape(-1), self.tile_images)


@dataclass(frozen=True)
class Planes:
    """Layout of all channels of a tensor (N, C, H, W) that PyTorch can see too.

    The images of a channel are neighbours, so that a plane is one piece of memory, which the
    processor reads ahead.
    """

    grid: Grid
    channels: int

    @cached_property
    def pitch(self) -> int:
        """Points between two channels."""
        grid = self.grid
        return -(-(grid.images * grid.image + grid.guard) // 16) * 16

    @cached_property
    def step(self) -> int:
        """Points between two tiles of a channel."""
        return self.grid.tile

    @cached_property
    def size(self) -> int:
        grid = self.grid
        return 2 * grid.guard + max(self.channels, 1) * self.pitch

    @cached_property
    def strides(self) -> tuple[int, int, int, int]:
        return self.grid.image, self.pitch, self.grid.row, 1

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        return self.grid.images, self.channels, self.grid.height, self.grid.width

    def base(self, channels: np.ndarray) -> np.ndarray:
        """Where the planes of channels begin. -1 (no plane) stays -1."""
        return np.where(channels < 0, -1, self.grid.guard + channels * self.pitch)

    @cached_property
    def _bytes(self) -> tuple[int, ...]:
        return tuple(stride * self.grid.numpy.itemsize for stride in self.strides)

    def group(self, memory: np.ndarray, base: np.ndarray) -> tuple[Any, ...]:
        """What kernels need that work on rows: distances of images and rows, height and width."""
        grid = self.grid
        return memory, base, grid.image, grid.row, grid.height, grid.width

    def view(self, memory: np.ndarray, flat: bool = False) -> np.ndarray:
        """(N, C, H, W), or (N, C) where flat, on this memory."""
        end, grid = 2 if flat else 4, self.grid
        offset = grid.guard * grid.numpy.itemsize
        return np.ndarray(self.shape[:end], grid.numpy, memory, offset, self._bytes[:end])


@dataclass(frozen=True)
class Tiled:
    """Layout of planes that only kernels see: all planes of a tile are neighbours."""

    grid: Grid
    planes: int

    @cached_property
    def step(self) -> int:
        return max(self.planes, 1) * self.grid.tile

    @cached_property
    def size(self) -> int:
        return self.step * self.grid.tiles

    def base(self, slots: np.ndarray) -> np.ndarray:
        return np.where(slots < 0, -1, slots * self.grid.tile)


@dataclass(frozen=True)
class Scratch:
    """Layout of one tile of each plane, with zeros around each. A kernel fills it and reads it."""

    grid: Grid
    planes: int

    @cached_property
    def pitch(self) -> int:
        return -(-(self.grid.tile + self.grid.guard) // 16) * 16

    @cached_property
    def size(self) -> int:
        return self.grid.guard + max(self.planes, 1) * self.pitch

    def base(self, slots: np.ndarray) -> np.ndarray:
        return self.grid.guard + slots * self.pitch


def zeros(size: int, dtype: np.dtype) -> np.ndarray:
    """Zeros aligned to a cache line, in huge pages if the system has them."""
    item = dtype.itemsize
    if size * item > HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        region = mmap.mmap(-1, (-(-size * item // HUGE) + 1) * HUGE)
        region.madvise(mmap.MADV_HUGEPAGE)
        raw, align = np.frombuffer(region, dtype), HUGE
    else:
        raw, align = np.zeros(size + 64 // item, dtype), 64
    skip = -raw.ctypes.data % align // item
    return raw[skip : skip + size]


class Buffers:
    """Memory that is used again. New memory is zero; used memory is as its last user left it.

    A user reads only what it has written itself, and zeros between images. No user of the same key
    ever writes those, so they stay zeros.
    """

    def __init__(self) -> None:
        self._free: dict[object, list[np.ndarray]] = {}
        self._scratch: dict[object, np.ndarray] = {}
        self.clean: set[int] = set()
        """Addresses of outputs that were unchanged when their backward ran."""

    def take(self, key: object, size: int, dtype: np.dtype) -> np.ndarray:
        free = self._free.setdefault(key, [])
        return free.pop() if free else zeros(size, dtype)

    def give(self, key: object, memory: np.ndarray) -> None:
        self._free.setdefault(key, []).append(memory)

    def lend(self, key: object, memory: np.ndarray, view: np.ndarray) -> Tensor:
        """A view of the memory as a tensor. The memory is free when no tensor refers to it."""
        # A torch storage keeps the array alive that it was made from.
        weakref.finalize(view, self.give, key, memory).atexit = False
        return torch.from_numpy(view)

    def scratch(
        self, name: str, layout: Scratch | Tiled, dtype: np.dtype | None = None
    ) -> np.ndarray:
        """Memory for all plans of a grid. Each plan writes it before it reads it.

        One piece for all stays in the cache better than many would.
        """
        key = name, layout.grid
        known = self._scratch.get(key)
        if known is None or known.size < layout.size:
            known = self._scratch[key] = zeros(layout.size, dtype or layout.grid.numpy)
        return known


class Lease:
    """Memory taken from buffers, which they get back when the lease is gone."""

    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers
        self._taken: list[tuple[object, np.ndarray]] = []

    def take(self, key: object, size: int, dtype: np.dtype) -> np.ndarray:
        memory = self.buffers.take(key, size, dtype)
        self._taken.append((key, memory))
        return memory

    def __del__(self) -> None:
        for key, memory in self._taken:
            self.buffers.give(key, memory)
