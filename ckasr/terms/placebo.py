"""The base class of placebos: CKA-SR with new random numbers in every step with the term."""

from typing import Any, ClassVar

from torch import Generator, nn

from ckasr.data import keyed_generator
from ckasr.regularizer import CKASR


class Placebo(CKASR):
    """CKA-SR with random numbers. A subclass defines them and their effect.

    The numbers depend on the name of the term, the seed, the epoch and the step alone, so a resumed
    run repeats them. The global random generator is not used.

    Args:
        seed: seed of the random numbers.
        model, beta, options: as in :class:`ckasr.CKASR`.
    """

    name: ClassVar[str]

    def __init__(self, model: nn.Module, beta: float, *, seed: int = 0, **options: Any) -> None:
        super().__init__(model, beta, **options)
        self.seed = seed
        self._epoch = 0

    def advance(self) -> None:
        super().advance()
        self.draw()

    def reset(self, epoch: int = 0) -> None:
        super().reset(epoch)
        self._epoch = epoch
        self.draw()

    def draw(self) -> None:
        """Draw the random numbers of the next step, if it has the term."""
        if self.active:
            self._fill(keyed_generator(self.name, self.seed, self._epoch, self._step))

    def _fill(self, generator: Generator) -> None:
        """Write random numbers in place into the tensors that exist already."""
        raise NotImplementedError
