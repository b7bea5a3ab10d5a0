"""Several terms at once, each with its own weight."""

from collections.abc import Sequence

from torch import Tensor

from .term import Term


class Combined:
    """The sum of several terms, with the interface of one (``term.py``).

    Args:
        parts: the terms, each with its hooks on the same model. They must be added to the loss in
            the same steps, because a captured training step is either with the term or without it.
    """

    def __init__(self, parts: Sequence[Term]) -> None:
        self.parts = parts
        self.term: Tensor | None = None
        """Value of the first term at the last step, before its weight."""

    @property
    def active(self) -> bool:
        return self.parts[0].active

    def compute(self) -> Tensor:
        first, *others = (part.compute() for part in self.parts)
        self.term = self.parts[0].term
        return sum(others, first)

    def advance(self) -> None:
        for part in self.parts:
            part.advance()

    def reset(self, epoch: int = 0) -> None:
        for part in self.parts:
            part.reset(epoch)

    def remove(self) -> None:
        for part in self.parts:
            part.remove()
