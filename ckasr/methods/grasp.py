"""GraSP: the weights whose removal would reduce the gradient flow most are kept.

Wang et al. 2020, "Picking Winning Tickets Before Training by Preserving Gradient Flow" (arXiv
2002.07376), equation 8 and algorithm 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ckasr.sparsity import global_topk_masks

from . import scores
from .method import Context, Method


@dataclass
class GraSP(Method):
    """Keeps the weights with the highest GraSP score at initialisation.

    Args:
        samples: number of training samples per class in the scoring batch.
        temperature: divisor of the logits.
        train_mode: whether batch norm uses the statistics of the scoring batches, as in the
            authors' code. Otherwise it uses the running statistics, which are mean 0 and variance 1
            before training, so that nothing is normalised. The logits of a residual network are
            then very large, and the accuracy after training is lower than with random masks.
        official: whether to score as the authors' code does. That code sorts the samples by class
            and splits them into two halves, which then contain different classes, and batch norm
            uses the statistics of each half. The resulting masks are different.
    """

    name: ClassVar[str] = "grasp"
    summary: ClassVar[str] = (
        "prunes weights whose removal reduces the norm of the gradient least, before training "
        "(Wang et al. 2020)"
    )

    samples: int = 10
    temperature: float = 200.0
    train_mode: bool = True
    official: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f"option temperature of method 'grasp' is {self.temperature}: it must be positive"
            )
        if self.official and not self.train_mode:
            raise ValueError(
                "options official=true and train_mode=false of method 'grasp' exclude each other: "
                "the authors' form has batch statistics"
            )

    def prepare(self, context: Context) -> Mapping[str, Tensor]:
        x, y = scores.per_class(
            context.samples(), context.num_classes, self.samples, class_major=self.official
        )
        saliency = scores.grasp(
            context.model,
            x,
            y,
            loss=context.task.loss,
            train_mode=self.train_mode,
            chunk=math.ceil(len(x) / 2) if self.official else scores.CHUNK,
            temperature=self.temperature,
        )
        return global_topk_masks(saliency, context.kept)
