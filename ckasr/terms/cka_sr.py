"""The CKA-SR term of arXiv 2307.07389."""

from typing import Any, ClassVar

from torch import nn

from ckasr.regularizer import CKASR


class CKASRTerm(CKASR):
    """:class:`ckasr.CKASR` as it is. Nothing in it is random, so the seed is not used."""

    name: ClassVar[str] = "cka_sr"
    label: ClassVar[str] = "CKA-SR"
    summary: ClassVar[str] = "the similarity of layers to each other, by CKA (arXiv 2307.07389)"

    def __init__(self, model: nn.Module, beta: float, *, seed: int = 0, **options: Any) -> None:
        super().__init__(model, beta, **options)
