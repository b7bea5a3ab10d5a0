"""The interface of batches: what the training engine needs of the samples of one split."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

Indices = tuple[Tensor, ...]
"""What ``Batches.batch`` makes one batch from: tensors whose first dimension is the batch."""
Batch = tuple[Tensor, Tensor]
"""Inputs and targets of a batch, on the device."""


class Batches(Protocol):
    """The samples of one split, cut into batches.

    An epoch is planned first and computed afterwards: ``batch_indices`` yields small tensors of
    random numbers (which sample, which augmentation), and ``batch`` makes a batch from them. So
    both arms of a comparison see the same batches, and an epoch can be repeated after a kill.
    """

    device: torch.device
    """Where the batches are."""
    batch_size: int
    """Number of samples per training batch."""
    can_capture: bool
    """Whether ``batch`` contains only device operations, so that a CUDA graph can capture it. A
    class that reads files in ``batch`` sets this to False."""

    def __len__(self) -> int:
        """Return the number of training batches per epoch."""

    def batch_indices(self, epoch: int) -> Iterator[Indices]:
        """Yield the indices of each training batch of an epoch.

        They must depend on the seeds of the data and on ``epoch`` alone, not on earlier calls.
        """

    def batch(self, indices: Indices) -> Batch:
        """Return the training batch of these indices, augmented."""

    def in_order(self, batch_size: int | None = None) -> Iterator[Batch]:
        """Yield all samples in a fixed order, not augmented. The last batch may be smaller.

        Args:
            batch_size: number of samples per batch; None: that of training.
        """
