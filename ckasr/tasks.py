"""Tasks: what a network is asked to do, apart from the data and the network themselves.

A data set names its task. The training step, the saliency scores and the measurements use the task
and know no loss, metric or memory format of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Task:
    """A task.

    Args:
        name: name of the task.
        loss: returns the mean loss of a batch, a scalar, from ``(outputs, targets)``. It must be
            differentiable twice, because GraSP needs the Hessian.
        correct: returns how many predictions of a batch are correct, a scalar on the device, from
            ``(outputs, targets)``. Accuracy is this number over that of the targets.
        memory_format: memory format of the model.
    """

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    correct: Callable[[Tensor, Tensor], Tensor]
    memory_format: torch.memory_format = torch.preserve_format


def count_highest(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return how often the highest logit is that of the target: outputs (n, classes), targets (n,).

    Accuracy from this number is the top-1 accuracy.
    """
    return (outputs.argmax(1) == targets).sum()


CLASSIFICATION = Task("classification", nn.functional.cross_entropy, count_highest)
"""One class per sample: logits (n, classes), targets (n,) int64."""

IMAGE_CLASSIFICATION = Task(
    "image classification", nn.functional.cross_entropy, count_highest, torch.channels_last
)
"""The same for a convolutional network, which is faster in channels_last."""
