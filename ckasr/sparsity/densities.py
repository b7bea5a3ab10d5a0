"""Densities of layers, and the numbers of weights that the layers keep.

The *density* of a layer is the share of its weights that are kept. Its *sparsity* is one minus the
density. Both count the prunable weights (convolutions and linear layers); biases and the parameters
of norms do not count.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from ckasr.choices import check_choice

Distribution = Literal["uniform", "er", "erk"]
DISTRIBUTIONS: tuple[str, ...] = get_args(Distribution)

Shapes = Mapping[str, Sequence[int]]
"""Shape of each weight by name: (out, in, *kernel)."""


def layer_densities(shapes: Shapes, density: float, distribution: str) -> dict[str, float]:
    """Return the density of each layer, such that the whole network has the given density.

    If a proportional rule gives a layer a density above 1, the layer is dense, and the remaining
    weights are distributed over the other layers by the same rule.

    Args:
        shapes: shape of each weight, by name.
        density: share of the network's weights to keep, from 0 to 1. The mean of the densities of
            the layers, weighted by the sizes of the layers, equals this number up to rounding.
        distribution: rule for the densities:

            - ``uniform``: all layers have the same density;
            - ``er``: Erdős-Rényi, proportional to (out + in) / (out * in) without the kernel
              (SET, Mocanu et al. 2018);
            - ``erk``: Erdős-Rényi-Kernel, proportional to sum(shape) / prod(shape) (RigL, Evci et
              al. 2020, section 3).

    Raises:
        ValueError: for a density outside [0, 1], for an unknown distribution, for no shapes, and
            for a shape with fewer than two dimensions.
    """
    check_density(density)
    sizes = _sizes(shapes)
    check_choice("distribution", distribution, Distribution)
    if distribution == "uniform" or density in (0, 1):
        return {name: float(density) for name in shapes}
    raw = {name: _raw_density(shape, distribution) for name, shape in shapes.items()}
    return _fill(raw, sizes, density)


def allocate(densities: Mapping[str, float], shapes: Shapes) -> dict[str, int]:
    """Return the number of weights that each layer keeps, by the largest remainder method.

    The sum of the counts is the rounded sum of density * size over all layers. Each count differs
    from density * size of its layer by less than 1. Among equal remainders, those of the first
    layers are rounded up.

    Args:
        densities: share of weights to keep, by name.
        shapes: shape of each weight, by name.

    Raises:
        ValueError: for a layer without a density, and for a density outside [0, 1].
    """
    sizes = _sizes(shapes)
    missing = [name for name in sizes if name not in densities]
    if missing:
        raise ValueError(f"no density for layer {missing[0]!r}: give one for every shape")
    for name in sizes:
        check_density(densities[name], f"density of layer {name!r}")
    shares = {name: densities[name] * size for name, size in sizes.items()}
    # The inner rounding removes the rounding error of the sum, which would otherwise determine
    # whether an exact half is rounded up or down.
    total = round(round(math.fsum(shares.values()), 6))
    counts = {name: math.floor(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def check_density(density: float, what: str = "density") -> None:
    """Raise ValueError unless the density is between 0 and 1."""
    if not 0 <= density <= 1:
        raise ValueError(f"{what} is {density}: it must lie between 0 and 1")


def _raw_density(shape: Sequence[int], distribution: str) -> float:
    dims = shape if distribution == "erk" else shape[:2]
    return sum(dims) / math.prod(dims)


def _fill(raw: dict[str, float], sizes: dict[str, int], density: float) -> dict[str, float]:
    """Return min(1, scale * raw), where ``scale`` is chosen to reach the density of the network."""
    total = density * sum(sizes.values())
    dense: set[str] = set()
    while True:
        rest = [name for name in raw if name not in dense]
        left = total - sum(sizes[name] for name in dense)
        scale = left / math.fsum(raw[name] * sizes[name] for name in rest) if rest else 0.0
        # When a layer becomes full, the scale can only grow, so a full layer remains full.
        full = [name for name in rest if scale * raw[name] > 1]
        if not full:
            return {name: 1.0 if name in dense else scale * raw[name] for name in raw}
        dense.update(full)


def _sizes(shapes: Shapes) -> dict[str, int]:
    if not shapes:
        raise ValueError("no layers: the model has no conv or linear weight to prune")
    for name, shape in shapes.items():
        if len(shape) < 2 or min(shape) < 1:
            raise ValueError(
                f"shape of layer {name!r} is {tuple(shape)}: a weight is (out, in, *kernel)"
            )
    return {name: math.prod(shape) for name, shape in shapes.items()}
