"""SNIP: the weights on which the loss depends most at initialisation stay.

Lee et al. 2019, "SNIP: Single-shot Network Pruning" (arXiv 1810.02340), equations 5 and 6.
"""

from dataclasses import dataclass
from typing import ClassVar

from ckasr.sparsity import global_topk_masks

from . import scores
from .method import Context, Method


@dataclass
class SNIP(Method):
    """samples: images of each class.

    train_mode: batch norm by the scoring batches' statistics. With the running ones, which are
    mean 0 and variance 1 before training, a residual network's logits explode: a ResNet20 then
    puts all of CIFAR-100 into two classes, and SNIP leaves the others without a weight.
    """

    name: ClassVar[str] = "snip"
    summary: ClassVar[str] = "lowest |weight x gradient|, before training (Lee et al. 2019)"

    samples: int = 10
    train_mode: bool = True

    def prepare(self, context: Context) -> None:
        kept = context.kept
        x, y = scores.per_class(context.samples(), context.num_classes, self.samples)
        saliency = scores.snip(context.model, x, y, train_mode=self.train_mode)
        context.masks.update(global_topk_masks(saliency, kept))
