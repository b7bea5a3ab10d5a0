"""How many weights each layer keeps: densities (real shares) and counts (integers).

A *density* is the share of a layer's weights that stay; *sparsity* is one minus it. The
denominator is every conv and linear weight of the network; biases and norms never count.
"""

import math
from collections.abc import Mapping, Sequence

DISTRIBUTIONS = ("uniform", "er", "erk")

Shapes = Mapping[str, Sequence[int]]


def layer_densities(shapes: Shapes, density: float, distribution: str) -> dict[str, float]:
    """Share of weights each layer keeps, so that the whole network keeps `density`.

    Shapes maps a layer's name to its weight's shape, (out, in, *kernel). Distributions:

    - ``uniform``: every layer the same density;
    - ``er``: Erdős-Rényi, proportional to (out + in) / (out * in), kernel ignored (SET,
      Mocanu et al. 2018);
    - ``erk``: Erdős-Rényi-Kernel, proportional to sum(shape) / prod(shape) (RigL, Evci et
      al. 2020, section 3).

    A layer that the proportional rule would fill beyond 1 is dense, and what it cannot take
    goes to the others by the same rule. The weighted sum of the result is density * total to
    float accuracy. Raises ValueError for a density outside [0, 1], an unknown distribution,
    no layers, or a shape that is no weight's.
    """
    check_density(density)
    sizes = _sizes(shapes)
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"unknown distribution {distribution!r}: choose one of {', '.join(DISTRIBUTIONS)}"
        )
    if distribution == "uniform" or density in (0, 1):
        return {name: float(density) for name in shapes}
    raw = {name: _raw_density(shape, distribution) for name, shape in shapes.items()}
    return _fill(raw, sizes, density)


def allocate(densities: Mapping[str, float], shapes: Shapes) -> dict[str, int]:
    """Weights each layer keeps, as integers, by the method of the largest remainder.

    The counts sum to the network's share, the sum of density * size, rounded; each is within
    1 of its own layer's share. Equal remainders go to the layer that comes first. Raises
    ValueError for a layer without density or a density outside [0, 1].
    """
    sizes = _sizes(shapes)
    missing = [name for name in sizes if name not in densities]
    if missing:
        raise ValueError(f"no density for layer {missing[0]!r}: give one for every shape")
    for name in sizes:
        check_density(densities[name], f"density of layer {name!r}")
    shares = {name: densities[name] * size for name, size in sizes.items()}
    # The inner rounding removes the float noise of the sum, which would otherwise decide
    # which way an exact half goes.
    total = round(round(math.fsum(shares.values()), 6))
    counts = {name: math.floor(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def check_density(density: float, what: str = "density") -> None:
    """Raise ValueError unless `density` is a share between 0 and 1 (NaN is not)."""
    if not 0 <= density <= 1:
        raise ValueError(f"{what} is {density}: it must lie between 0 and 1")


def _raw_density(shape: Sequence[int], distribution: str) -> float:
    dims = shape if distribution == "erk" else shape[:2]
    return sum(dims) / math.prod(dims)


def _fill(raw: dict[str, float], sizes: dict[str, int], density: float) -> dict[str, float]:
    """min(1, scale * raw) with the one scale that keeps density * total weights."""
    total = density * sum(sizes.values())
    dense: set[str] = set()
    while True:
        rest = [name for name in raw if name not in dense]
        left = total - sum(sizes[name] for name in dense)
        scale = left / math.fsum(raw[name] * sizes[name] for name in rest) if rest else 0.0
        # The scale only grows as layers fill up, so a layer once full stays full.
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
