"""The mean square of the features of layers, which compares no layers."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ckasr.cka.inputs import float_dtype

from .deterministic import Deterministic


class L2Features(Deterministic):
    """The mean over layers of the mean square of a layer's features, not centred.

    Layers, samples and steps are those of CKA-SR. The term makes features small and does not
    depend on their similarity.

    Raises ValueError for ``pairs`` and for a variant other than ``official``, because the term has
    neither.
    """

    name: ClassVar[str] = "l2_features"
    label: ClassVar[str] = "L2 of the features"
    summary: ClassVar[str] = "the mean square of the features, which compares no layers"

    def __init__(self, model: nn.Module, beta: float, *, seed: int = 0, **options: Any) -> None:
        for option, default in (("variant", "official"), ("pairs", None)):
            if (given := options.get(option, default)) != default:
                raise ValueError(
                    f"the term 'l2_features' compares no layers, so {option}={given!r} has no "
                    f"meaning: leave {option} at its default"
                )
        super().__init__(model, beta, seed=seed, **options)

    def _value(self, groups: list[list[Tensor]]) -> Tensor:
        layers = [feature for group in groups for feature in group]
        return torch.stack([x.to(float_dtype(x)).square().mean() for x in layers]).mean()
