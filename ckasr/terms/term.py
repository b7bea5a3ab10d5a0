"""The interface of a term: what is added to the training loss, and on which steps.

A term is one class in a file of its own. To add one, write the file and add its class to the list
in ``ckasr/terms/__init__.py``. The settings, the command line, and the labels of tables and figures
read it from there. The training engine knows no term by name.
"""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from torch import Tensor, nn

from ckasr.cka import Pairs, Variant


class Term(Protocol):
    """What the training step calls.

    ``compute`` contains only device operations, so that a CUDA graph can capture it. A replayed
    step runs no Python: whatever changes from step to step is a tensor of fixed address that
    ``advance`` and ``reset`` fill in place. A term draws random numbers from generators of its own,
    keyed by its seed, the epoch and the step, so that a resumed run repeats them and the rest of
    the training does not depend on them.
    """

    term: Tensor | None
    """Value of the term before beta at the last step, detached; None if the step had no term."""

    @property
    def active(self) -> bool:
        """Whether the next step has the term."""

    def compute(self) -> Tensor:
        """Beta times the term of the last forward pass: a scalar to add to the loss."""

    def advance(self) -> None:
        """Move on to the next step. The training calls this after each step."""

    def reset(self, epoch: int = 0) -> None:
        """Start an epoch at step 0.

        Args:
            epoch: a number that no other epoch of the run has.
        """

    def remove(self) -> None:
        """Remove every hook from the model."""


class NamedTerm(Term, Protocol):
    """A term that is registered, and so can be chosen by its name."""

    name: ClassVar[str]
    """Value of the setting ``term``. Records hold it: never rename a term that has records."""
    label: ClassVar[str]
    """Name in tables and figures."""
    summary: ClassVar[str]
    """One line: what it adds to the loss."""

    def __init__(
        self,
        model: nn.Module,
        beta: float,
        *,
        seed: int,
        variant: Variant,
        samples: int | None,
        every: int,
        pairs: Pairs | None,
        stages: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """Add the hooks to the model.

        Args:
            seed: seed of the run.
            model, beta, variant, samples, every, pairs, stages: as in :class:`ckasr.CKASR`.
        """
