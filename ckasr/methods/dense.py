"""Dense training: no weight is pruned."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .method import Context, Method


@dataclass
class Dense(Method):
    """Trains all weights. Raises ValueError if the sparsity of the run is not 0."""

    name: ClassVar[str] = "dense"
    summary: ClassVar[str] = "prunes no weights"

    def prepare(self, context: Context) -> Mapping[str, Tensor]:
        if context.sparsity:
            raise ValueError(
                f"method 'dense' prunes nothing, but sparsity is {context.sparsity}: "
                "set sparsity 0 or another method"
            )
        return super().prepare(context)
