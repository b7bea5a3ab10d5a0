"""The CKA-SR loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ckasr.choices import check_choice

from .grams import unit_grams
from .inputs import Estimator, Pairs, Variant

ESTIMATOR_OF: dict[Variant, Estimator] = {
    "official": "unbiased",
    "paper": "biased",
    "aug": "biased",
}
"""Estimator of HSIC in each variant."""


def cka_sr_loss(
    stages: Sequence[Sequence[Tensor]],
    variant: Variant = "official",
    *,
    pairs: Pairs | None = None,
) -> Tensor:
    """Return the CKA-SR term of arXiv 2307.07389 without the factor beta, a scalar.

    The cost is O(layers), because the sum over the pairs of a stage is the squared norm of the sum
    of its :func:`unit_grams`.

    Args:
        stages: list of feature tensors ``(n, ...)`` for each stage.
        variant: formula of the term.

            * ``"paper"``: sum of biased CKA over ordered pairs with the diagonal (appendix, eq. 11)
            * ``"official"``: the same sum of unbiased CKA, as in the authors' code; ``n >= 4``
            * ``"aug"``: AugCKA-SR, the mean of biased CKA over unordered pairs (appendix, eq. 14)
        pairs: pairs of layers that are compared; None for the default of the variant.

            * ``"within"``: the layers of each stage with each other (``"paper"``, ``"official"``)
            * ``"all"``: all layers with each other (``"aug"``)
            * ``"adjacent"``: each layer with the next, across stages, without the diagonal
            * ``"input"``: the first tensor, which must be the network's input, with every other
              one, without the diagonal

    Raises:
        ValueError: for an unknown option, for too few samples for the estimator, and for layers
            without a pair.
        TypeError: if ``stages`` is not a list of lists of real, dense tensors.
    """
    check_choice("variant", variant, Variant)
    if pairs is None:
        pairs = "all" if variant == "aug" else "within"
    check_choice("pairs", pairs, Pairs)
    if isinstance(stages, Tensor) or any(isinstance(stage, Tensor) for stage in stages):
        raise TypeError(
            "stages must be a list of lists of tensors, one list for each stage; "
            "for a single stage pass [[x, y]]"
        )
    features = [f for stage in stages for f in stage]
    units = unit_grams(features, ESTIMATOR_OF[variant])
    with torch.autocast(units.device.type, enabled=False):
        return sum_over_pairs(units, [len(stage) for stage in stages], variant, pairs)


def sum_over_pairs(
    units: Tensor, sizes: list[int], variant: Variant, pairs: Pairs | None = None
) -> Tensor:
    """Return the sum (or mean) of :func:`cka_sr_loss` over pairs of layers, a scalar.

    The value of a pair is the inner product of two rows.

    Args:
        units: one row per layer, shape ``(layers, k)``.
        sizes: number of layers of each stage.
        variant, pairs: as in :func:`cka_sr_loss`.

    Raises:
        ValueError: if there is no pair of layers.
    """
    if pairs is None:
        pairs = "all" if variant == "aug" else "within"
    layers = len(units)
    if pairs in ("within", "all"):
        groups = units.split(sizes) if pairs == "within" else [units]
        ordered = torch.stack([group.sum(0) for group in groups]).square().sum()
        count = sum(len(g) * (len(g) - 1) // 2 for g in groups)
        if variant != "aug":
            return ordered
        unordered = (ordered - units.square().sum()) / 2
    else:
        partners = units[:-1] if pairs == "adjacent" else units[:1]
        unordered = (partners * units[1:]).sum()
        count = layers - 1
        if variant != "aug" and count:
            return 2 * unordered
    if count == 0:
        raise ValueError(f"no pair of layers to compare: {layers} layer(s), pairs={pairs!r}")
    return unordered / count
