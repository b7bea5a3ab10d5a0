"""Published accuracies of the same methods, as data, for comparison with ours.

Source: the raw arrays of Tanaka et al. 2020 (arXiv 2006.05467), in Results/data/Accuracy_CompRatio
of github.com/ganguli-lab/Synaptic-Flow: ResNet18 (11 million weights), pruned before training, test
accuracy after the last of 160 epochs. The numbers are means over three seeds, computed from the
arrays.
"""

import math
from dataclasses import dataclass
from statistics import mean

SOURCE = "Tanaka et al. 2020, raw data of github.com/ganguli-lab/Synaptic-Flow"
TERMS = (
    "ResNet18, accuracy after the last of 160 epochs, mean over three seeds, at the nearest "
    "sparsity that was measured; the random masks have the same density in all layers, and the "
    "numbers of SNIP may be older than a correction of August 2020"
)

# The fraction of kept weights is 10^(-k/4). The sparsities are:
# 0, 90, 94.38, 96.84, 98.22, 99, 99.44, 99.68, 99.82, 99.9 %.
_QUARTERS = (0, 4, 5, 6, 7, 8, 9, 10, 11, 12)
# Top-1 accuracy in percent. "Magnitude" is the magnitude of the initial weights.
_RESNET18 = {
    ("cifar10", "random"): (
        95.11, 92.92, 91.60, 89.57, 87.34, 82.98, 75.99, 58.51, 39.34, 13.5,
    ),
    ("cifar10", "magnitude"): (
        94.94, 94.40, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0,
    ),
    ("cifar10", "snip"): (
        94.94, 94.29, 93.69, 93.23, 91.84, 90.80, 88.85, 85.99, 82.87, 78.65,
    ),
    ("cifar10", "grasp"): (
        95.00, 93.78, 92.83, 92.09, 91.18, 89.71, 87.50, 84.59, 80.67, 71.44,
    ),
    ("cifar10", "synflow"): (
        94.78, 94.07, 93.69, 92.66, 91.75, 90.36, 88.63, 86.07, 83.18, 79.85,
    ),
    ("cifar100", "random"): (
        78.25, 72.59, 70.07, 66.62, 61.62, 54.45, 40.42, 24.13, 9.79, 4.70,
    ),
    ("cifar100", "snip"): (
        78.42, 74.47, 71.25, 66.51, 63.35, 55.08, 46.56, 35.38, 25.20, 15.8,
    ),
    ("cifar100", "grasp"): (
        78.37, 73.20, 71.21, 68.93, 63.29, 54.06, 42.12, 29.02, 18.18, 9.3,
    ),
    ("cifar100", "synflow"): (
        78.35, 73.84, 71.59, 68.77, 64.98, 60.90, 55.80, 50.17, 42.97, 33.7,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """A published top-1 accuracy in percent, and its sparsity, a fraction of 1."""

    percent: float
    sparsity: float


def reference(dataset: str, method: str, sparsity: float) -> Reference | None:
    """Return the published accuracy with the nearest sparsity, or None if there is none.

    The fractions of kept weights may differ by at most half a step of the published grid, a factor
    of 1.33. For ``dense``, the accuracy is the mean over the methods without pruning.

    Args:
        dataset: name of the data set.
        method: name of the method.
        sparsity: sparsity, a fraction of 1.
    """
    if method == "dense":
        unpruned = [row[0] for (name, _), row in _RESNET18.items() if name == dataset]
        return Reference(round(mean(unpruned), 2), 0.0) if unpruned else None
    row = _RESNET18.get((dataset, method))
    if row is None:
        return None
    asked = -4 * math.log10(1 - sparsity)
    index = min(range(len(_QUARTERS)), key=lambda i: abs(_QUARTERS[i] - asked))
    if abs(_QUARTERS[index] - asked) > 0.5:
        return None
    return Reference(row[index], 1 - 10 ** (-_QUARTERS[index] / 4))
