"""Tasks: the loss, the metric and the memory format that belong to a kind of prediction.

Every data set has a task, from which the training step, the saliency scores and the measurements
take the loss, the metric and the memory format.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Task:
    """A task.

    Args:
        name: name of the task.
        loss: function ``(outputs, targets) -> mean loss of the batch``, a scalar. It must be twice
            differentiable, because GraSP uses the Hessian.
        correct: function ``(outputs, targets) -> number of correct predictions``, a scalar on the
            device. The accuracy is this number divided by the number of targets.
        memory_format: memory format of the model.
    """

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    correct: Callable[[Tensor, Tensor], Tensor]
    memory_format: torch.memory_format = torch.preserve_format

    def smoothed(self, amount: float) -> "Task":
        """Return the same task with label smoothing (Szegedy et al. 2016, arXiv 1512.00567).

        Args:
            amount: weight in [0, 1) of the uniform distribution in the targets; 0: the same task.

        Raises:
            ValueError: for an amount above 0 if the loss is not torch's cross-entropy.
        """
        if amount == 0:
            return self
        if self.loss is not nn.functional.cross_entropy:
            raise ValueError(
                f"label smoothing needs the cross-entropy, which is not the loss of task "
                f"{self.name!r}: set label_smoothing to 0"
            )
        return replace(self, loss=partial(nn.functional.cross_entropy, label_smoothing=amount))


def count_highest(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the number of samples whose highest logit is that of the target (top-1).

    Args:
        outputs: logits, (n, classes).
        targets: classes, (n,) int64.
    """
    return (outputs.argmax(1) == targets).sum()


CLASSIFICATION = Task("classification", nn.functional.cross_entropy, count_highest)
"""One class per sample: logits (n, classes), targets (n,) int64."""

IMAGE_CLASSIFICATION = Task(
    "image classification", nn.functional.cross_entropy, count_highest, torch.channels_last
)
"""Classification with a convolutional network, which is faster in the channels_last format."""
