"""Data that the units of one model share: buffers, and properties of the tensors in them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from .planes import Buffers, Planes
from .unit import Indices


@dataclass(eq=False)
class Lent:
    """Properties of a tensor that a unit has returned: an output, or a gradient of an input.

    One object describes all tensors with the same properties in the same memory, of which only one
    exists at a time.

    Args:
        memory: memory of the tensor.
        planes: layout of the memory.
        alive: (C,) bool, whether each channel may differ from zero.
        relu: whether the tensor is the output of a ReLU.
        gate: memory of a ReLU's output, if the tensor is the gradient before this ReLU; else None.
        totals: (C,) float64, sum of the gradient over each channel, or None if not known.
        version: autograd's version counter of the tensor when it was returned.
    """

    memory: np.ndarray
    planes: Planes
    alive: np.ndarray
    relu: bool = False
    gate: np.ndarray | None = None
    totals: np.ndarray | None = None
    version: int = 0
    spread: "dict[int, Lent]" = field(default_factory=dict)
    """Gradients of the tensor from a global average pooling, by the id of their memory."""

    @cached_property
    def channels(self) -> tuple[Indices, Indices]:
        """Channels that are not zero, and the first positions of their planes."""
        channels = np.flatnonzero(self.alive)
        return channels, self.planes.base(channels)


class Workspace:
    """Data that the units of one model share.

    Args:
        masks: function that returns the mask of a weight from the name of the weight.
        border: number of zeros between the rows of planes: the largest shift of a convolution.
        half: whether internal planes are stored in bfloat16.
    """

    def __init__(self, masks: Callable[[str], Tensor], border: int, half: bool = False) -> None:
        self.masks = masks
        self.border = border
        self.half = half
        self.enabled = True
        self._frames: list[list[Any]] = []
        self.forget()

    def forget(self) -> None:
        """Delete all buffers and all properties of tensors. Called when the masks have changed."""
        self.buffers = Buffers()
        self._known: dict[int, Lent] = {}
        for frames in self._frames:
            frames.clear()

    def frames(self) -> list[Any]:
        """Return a new list for the frames of a unit. ``forget`` empties it."""
        self._frames.append([])
        return self._frames[-1]

    def lend(self, key: object, lent: Lent, flat: bool) -> Tensor:
        """Return memory as a tensor (N, C, H, W), or (N, C) if ``flat``, and store its properties.

        Args:
            key: key of the buffer to which the memory belongs.
            lent: properties of the tensor.
            flat: whether the tensor is (N, C).
        """
        tensor = self.buffers.lend(key, lent.memory, lent.planes, flat)
        lent.version = tensor._version
        self._known[tensor.data_ptr()] = lent
        return tensor

    def find(self, tensor: Tensor, planes: Planes) -> Lent | None:
        """Return the properties of a tensor as ``known`` does, but None for another layout."""
        lent = self.known(tensor)
        return lent if lent and (lent.planes is planes or lent.planes == planes) else None

    def known(self, tensor: Tensor) -> Lent | None:
        """Return the properties of a tensor that a unit has returned.

        The result is None for any other tensor, and for a tensor that was changed in place.
        """
        lent = self._known.get(tensor.data_ptr())
        if lent is None or tensor._version != lent.version:
            return None
        planes = lent.planes
        if tensor.shape != planes.shape:
            return None
        if tensor.stride() == planes.strides:
            return lent
        strides = zip(tensor.shape, tensor.stride(), planes.strides, strict=True)
        return lent if all(size == 1 or ours == theirs for size, ours, theirs in strides) else None
