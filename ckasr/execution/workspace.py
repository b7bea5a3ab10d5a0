"""What the units of one model share: buffers, and what is known of the tensors in them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .planes import Buffers, Planes


@dataclass
class Lent:
    """What is known of an output of a unit, or of a gradient that a unit returned.

    Args:
        memory, planes: where it lies.
        alive: (C,) bool, channels that are not zero.
        relu: whether it is the output of a ReLU.
        gate: for a gradient that is already in front of a ReLU: the address of that ReLU's output.
        totals: for such a gradient, (C,) float64: its sum over each channel.
        version: autograd's count of changes in place at the time it was lent.
    """

    memory: np.ndarray
    planes: Planes
    alive: np.ndarray
    relu: bool = False
    gate: int = 0
    totals: np.ndarray | None = None
    version: int = 0


class Workspace:
    """What the units of one model share.

    Args:
        masks: gives the mask of a weight by the weight's name.
        border: zeros between the rows of planes, the largest shift of any convolution.
        half: whether what only kernels see is stored in bfloat16.
    """

    def __init__(self, masks: Callable[[str], Tensor], border: int, half: bool = False) -> None:
        self.masks = masks
        self.border = border
        self.half = half
        self.enabled = True
        self.forget()

    def forget(self) -> None:
        """Forget all memory and all that is known of it, as the masks have changed."""
        self.buffers = Buffers()
        self._known: dict[int, Lent] = {}

    def lend(self, key: object, lent: Lent, flat: bool) -> Tensor:
        """The memory as a tensor (N, C, H, W), or (N, C) where flat."""
        view = lent.planes.view(lent.memory, flat)
        tensor = self.buffers.lend(key, lent.memory, view)
        lent.version = tensor._version
        self._known[tensor.data_ptr()] = lent
        return tensor

    def find(self, tensor: Tensor, planes: Planes) -> Lent | None:
        """What is known of a tensor in planes of this layout that nobody has changed, or None."""
        lent = self.known(tensor)
        return lent if lent and (lent.planes is planes or lent.planes == planes) else None

    def known(self, tensor: Tensor) -> Lent | None:
        """What is known of a tensor of ours that nobody has changed; None for any other."""
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
