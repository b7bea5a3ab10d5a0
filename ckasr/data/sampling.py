"""Random generators with keys, and the split into training and validation samples."""

import hashlib

import torch
from torch import Tensor


def keyed_generator(*key: str | int) -> torch.Generator:
    """Return a CPU generator whose seed depends only on a key, such as ``("order", seed, epoch)``.

    Generators with different keys are independent of each other.
    """
    # The key is converted to strings, so that integers of numpy and of Python have the same effect.
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def split(labels: Tensor, validation: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split samples into training and validation samples, stratified by class.

    The number of validation samples of a class is proportional to the size of the class, rounded
    down. The samples that are missing because of the rounding are taken from the classes with the
    largest remainders, and from the lower class if remainders are equal.

    Args:
        labels: class of each sample, (n,).
        validation: number of validation samples; 0 gives an empty validation set.
        seed: seed of the split.

    Returns:
        Sorted int64 indices of the training samples and of the validation samples, on the CPU.

    Raises:
        ValueError: if ``validation`` is negative or not less than the number of samples, or if a
            class would have no validation sample or no training sample.
    """
    labels = torch.as_tensor(labels).cpu()
    total = len(labels)
    if not 0 <= validation < max(total, 1):
        raise ValueError(
            f"validation={validation} of {total} training images is impossible: "
            f"choose 0 to {max(total - 1, 0)}"
        )
    counts = torch.bincount(labels)
    quotas = counts * validation // max(total, 1)
    left = validation - int(quotas.sum())
    remainders = counts * validation % max(total, 1)
    quotas[torch.argsort(remainders, descending=True, stable=True)[:left]] += 1
    if validation:
        for label, (quota, count) in enumerate(zip(quotas.tolist(), counts.tolist(), strict=True)):
            if count and not 0 < quota < count:
                lacking = "validation" if quota == 0 else "training"
                raise ValueError(
                    f"validation={validation} leaves class {label} ({count} of {total} images) "
                    f"without a {lacking} image: choose {'more' if quota == 0 else 'fewer'}, or 0"
                )

    shuffled = torch.randperm(total, generator=keyed_generator("split", seed))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    starts = torch.cumsum(counts, 0) - counts
    rank = torch.arange(total) - starts[labels[by_class]]
    held_out = rank < quotas[labels[by_class]]
    return by_class[~held_out].sort().values, by_class[held_out].sort().values
