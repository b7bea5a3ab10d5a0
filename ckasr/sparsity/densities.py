"""How many weights each layer keeps, as shares (densities) and as numbers (counts).

The *density* of a layer is the share of its weights that are kept; its *sparsity* is one minus the
density. Both refer to all convolution and linear weights of the network; biases and norms do not
count.
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

    A layer to which a proportional rule gives more than its size is dense; the rest goes to the
    other layers by the same rule.

    Args:
        shapes: Shape of each weight, by name.
        density: Share of the network's weights to keep, from 0 to 1. The densities of the layers,
            weighted by their sizes, have this mean to float accuracy.
        distribution: How the densities differ:

            - ``uniform``: all layers have the same density;
            - ``er``: Erdős-Rényi, proportional to (out + in) / (out * in) without the kernel
              (SET, Mocanu et al. 2018);
            - ``erk``: Erdős-Rényi-Kernel, proportional to sum(shape) / prod(shape) (RigL, Evci et
              al. 2020, section 3).

    Raises:
        ValueError: For a density outside [0, 1], an unknown distribution, no shapes, or a shape
            that is not that of a weight.
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

    The sum of the counts is the sum of density * size over all layers, rounded. Each count differs
    from the layer's own density * size by less than 1. Of equal remainders, those of the first
    layers are rounded up.

    Args:
        densities: Share of weights to keep, by layer name.
        shapes: Shape of each weight, by name.

    Raises:
        ValueError: For a layer without a density, or a density outside [0, 1].
    """
    sizes = _sizes(shapes)
    missing = [name for name in sizes if name not in densities]
    if missing:
        raise ValueError(f"no density for layer {missing[0]!r}: give one for every shape")
    for name in sizes:
        check_density(densities[name], f"density of layer {name!r}")
    shares = {name: densities[name] * size for name, size in sizes.items()}
    # The inner rounding removes the round-off of the sum, which would otherwise decide in which
    # direction an exact half is rounded.
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
    """min(1, scale * raw), with the scale for which density * total weights are kept."""
    total = density * sum(sizes.values())
    dense: set[str] = set()
    while True:
        rest = [name for name in raw if name not in dense]
        left = total - sum(sizes[name] for name in dense)
        scale = left / math.fsum(raw[name] * sizes[name] for name in rest) if rest else 0.0
        # The scale only grows when layers become full, so a full layer stays full.
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
