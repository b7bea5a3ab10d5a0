"""What methods share that prune a trained network and train on what is left."""

from dataclasses import dataclass

from .method import Method, Phase


@dataclass
class Finetuned(Method):
    """finetune: epochs after the pruning, as a share of the recipe's; 0: none.

    finetune_rate: the learning rate they start from; the recipe's drops follow.
    """

    finetune: float = 0.5
    finetune_rate: float = 0.01

    def __post_init__(self) -> None:
        if not (self.finetune >= 0 and self.finetune_rate > 0):
            raise ValueError(
                f"options finetune={self.finetune} and finetune_rate={self.finetune_rate} of "
                f"method {self.name!r}: the share must not be negative, the rate be positive"
            )

    def finetuning(self, epochs: int, *, term: bool = True) -> list[Phase]:
        """The phase after the pruning, or none; ``epochs`` is the recipe's length."""
        if self.finetune == 0:
            return []
        length = max(1, round(self.finetune * epochs))
        return [Phase("finetune", length, learning_rate=self.finetune_rate, term=term)]
