"""SNIP: the weights on which the loss depends most at initialisation are kept.

Lee et al. 2019, "SNIP: Single-shot Network Pruning" (arXiv 1810.02340), equations 5 and 6.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ckasr.sparsity import global_topk_masks

from . import scores
from .method import Context, Method


@dataclass
class SNIP(Method):
    """Keeps the weights with the highest ``|w dL/dw|`` at initialisation.

    Args:
        samples: number of training samples per class in the scoring batch.
        train_mode: whether batch norm uses the statistics of the scoring batches. Otherwise it uses
            the running statistics, which are mean 0 and variance 1 before training. The logits of a
            residual network are then very large: a ResNet20 predicts two classes for all images of
            CIFAR-100, and SNIP prunes all weights of most other classes.
    """

    name: ClassVar[str] = "snip"
    summary: ClassVar[str] = (
        "prunes weights with the lowest |weight x gradient| before training (Lee et al. 2019)"
    )

    samples: int = 10
    train_mode: bool = True

    def prepare(self, context: Context) -> Mapping[str, Tensor]:
        x, y = scores.per_class(context.samples(), context.num_classes, self.samples)
        saliency = scores.snip(
            context.model, x, y, loss=context.task.loss, train_mode=self.train_mode
        )
        return global_topk_masks(saliency, context.kept)
