"""Base class of methods that prune a trained network and then fine-tune it."""

from dataclasses import dataclass

from .method import Method, Phase


@dataclass
class Finetuned(Method):
    """Base class of methods that fine-tune after pruning.

    Args:
        finetune: number of epochs of fine-tuning, as a share of the epochs of the recipe; 0: no
            fine-tuning.
        finetune_rate: learning rate at the start of fine-tuning. It drops at the milestones of the
            recipe.
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
        """Return a list with the phase of fine-tuning; an empty list without fine-tuning.

        Args:
            epochs: number of epochs of the recipe.
            term: whether the term of the run is added to the loss in this phase.
        """
        if self.finetune == 0:
            return []
        length = max(1, round(self.finetune * epochs))
        return [Phase("finetune", length, learning_rate=self.finetune_rate, term=term)]
