"""What methods share that prune a trained network and then fine-tune it."""

from dataclasses import dataclass

from .method import Method, Phase


@dataclass
class Finetuned(Method):
    """Base class of methods that fine-tune after pruning.

    Args:
        finetune: number of epochs after the pruning, as a share of the recipe's epochs; 0: none.
        finetune_rate: learning rate at the start of fine-tuning; the drops of the recipe follow.
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
        """Return the phase after the pruning, as a list that may be empty.

        Args:
            epochs: number of epochs of the recipe.
            term: whether the term of the run is added to the loss in this phase.
        """
        if self.finetune == 0:
            return []
        length = max(1, round(self.finetune * epochs))
        return [Phase("finetune", length, learning_rate=self.finetune_rate, term=term)]
