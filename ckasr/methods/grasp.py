"""GraSP: the weights whose removal would weaken the gradient flow stay.

Wang et al. 2020, "Picking Winning Tickets Before Training by Preserving Gradient Flow" (arXiv
2002.07376), equation 8 and algorithm 1.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from ckasr.sparsity import global_topk_masks

from . import scores
from .method import Context, Method


@dataclass
class GraSP(Method):
    """Masks of the weights with the highest GraSP score, drawn before training.

    samples: images of each class.
    temperature: divides the logits.
    train_mode: batch norm uses the statistics of the scoring batches, as in the authors' code.
        With ``False`` it uses the running ones, which before training are mean 0 and variance 1
        and normalise nothing: the logits of a residual network explode, and its masks then train
        worse than random ones.
    official: the authors' form: images sorted by class and cut into two halves (which then hold
        different classes), batch norm by each half's own statistics. It gives other masks.
    """

    name: ClassVar[str] = "grasp"
    summary: ClassVar[str] = "what hurts the gradient's norm least, before training (Wang 2020)"

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

    def prepare(self, context: Context) -> None:
        kept = context.kept
        x, y = scores.per_class(
            context.samples(), context.num_classes, self.samples, class_major=self.official
        )
        saliency = scores.grasp(
            context.model,
            x,
            y,
            train_mode=self.train_mode,
            chunk=math.ceil(len(x) / 2) if self.official else scores.CHUNK,
            temperature=self.temperature,
        )
        context.masks.update(global_topk_masks(saliency, kept))
