"""The CKA-SR term of arXiv 2307.07389."""

from typing import ClassVar

from .deterministic import Deterministic


class CKASRTerm(Deterministic):
    """:class:`ckasr.CKASR` as it is."""

    name: ClassVar[str] = "cka_sr"
    label: ClassVar[str] = "CKA-SR"
    summary: ClassVar[str] = "the similarity of layers to each other, by CKA (arXiv 2307.07389)"
