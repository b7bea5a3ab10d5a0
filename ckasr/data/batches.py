"""The interface of batches, through which the training engine reads the samples of one split."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

Indices = tuple[Tensor, ...]
"""Argument of ``Batches.batch``: tensors whose first dimension is the batch dimension."""
Batch = tuple[Tensor, Tensor]
"""Inputs and targets of a batch, on the device."""


class Batches(Protocol):
    """The samples of one split, divided into batches.

    A batch is created in two steps. ``batch_indices`` yields small tensors of random numbers (the
    indices of the samples, and the parameters of the augmentation), and ``batch`` returns the batch
    for them. Both runs of a comparison therefore use the same batches, and a resumed run can repeat
    an epoch.
    """

    device: torch.device
    """Device of the batches."""
    batch_size: int
    """Number of samples per training batch."""
    can_capture: bool
    """Whether ``batch`` contains only device operations, so that a CUDA graph can capture it. A
    class that reads files in ``batch`` sets this to False."""

    def __len__(self) -> int:
        """Return the number of training batches per epoch."""

    def batch_indices(self, epoch: int) -> Iterator[Indices]:
        """Yield the indices of each training batch of an epoch.

        The indices must depend only on the seeds of the data and on ``epoch``, not on earlier
        calls.
        """

    def batch(self, indices: Indices) -> Batch:
        """Return the training batch of these indices, augmented."""

    def in_order(self, batch_size: int | None = None) -> Iterator[Batch]:
        """Yield all samples in a fixed order, not augmented. The last batch may be smaller.

        Args:
            batch_size: number of samples per batch; None: the number of the training batches.
        """
