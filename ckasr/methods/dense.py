"""Dense training: no weight is pruned; the reference of every comparison."""

from dataclasses import dataclass
from typing import ClassVar

from .method import Context, Method


@dataclass
class Dense(Method):
    name: ClassVar[str] = "dense"
    summary: ClassVar[str] = "prunes nothing"

    def prepare(self, context: Context) -> None:
        if context.sparsity:
            raise ValueError(
                f"method 'dense' prunes nothing, but sparsity is {context.sparsity}: "
                "set sparsity 0 or another method"
            )
