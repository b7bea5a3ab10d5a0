"""The published accuracies of the paper, as data.

Source: the appendix of arXiv 2307.07389, "Learning Sparse Neural Networks with Identity Layers"
(top-1 accuracy in percent; the method is random ERK pruning unless stated otherwise). The number of
runs per value is not published. The official code validates on the CIFAR-100 test set and reports
the epoch with the best test accuracy. The tables of the main text were not available. The only
numbers from the main text are the gains that the abstract claims (`CLAIMS`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import words
from .cells import BASELINE, Arm, arm_of

SOURCE = "arXiv 2307.07389, appendix"

TERM = "cka_sr"
"""The only term of `ckasr.terms` for which the paper has numbers."""

RECIPE = {
    "epochs": 160,
    "batch_size": 128,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "milestones": [0.5, 0.75],
    "decay": 0.1,
    "validation": 0,
    "precision": "fp32",
}
"""The paper's recipe for random pruning on CIFAR-100, with the names of our settings.

With validation 0, all images are used for training. On CIFAR-10 the paper holds out 5000 images, as
we do.
"""

SELECTION = "accuracy of the best test epoch, unknown number of runs"


@dataclass(frozen=True)
class Published:
    """One published accuracy. A field is None if the appendix does not state it."""

    dataset: str
    model: str
    method: str
    distribution: str | None
    sparsity: float
    beta: float | None
    variant: str | None  # official, aug, or cca (CCA instead of CKA); None for the baseline.
    samples: int | None  # Number of samples; 0 means the whole batch.
    every: int | None
    percent: float  # Top-1 accuracy as printed.
    note: str = ""
    source: str = SOURCE

    @property
    def accuracy(self) -> float:
        """The accuracy as a fraction of 1, as in records."""
        return round(self.percent / 100, 6)


_SPARSITIES = (0.70, 0.85, 0.90, 0.95, 0.98, 0.998)
# Betas are the defaults of the official code (official) and of its README (aug).
_CIFAR100 = {
    (0.0, None, None, None): (65.42, 60.37, 56.96, 47.27, 33.74, 2.95),
    (1e-4, "official", 8, 5): (65.60, 60.86, 57.25, 48.26, 34.44, 3.32),
    (0.1, "aug", 0, 1): (65.85, 60.89, 57.02, 48.39, 34.60, 3.04),
}
_BETAS = (1e-5, 2e-5, 5e-5, 8e-5, 1e-4, 2e-4, 5e-4, 8e-4, 1e-3, 2e-3, 5e-3, 1e-2)
# CIFAR-10, ResNet20, sparsity .95; rows (samples, every), columns beta.
_CIFAR10 = {
    (0, 1): (84.69, 84.38, 84.42, 84.45, 84.11, 84.40, 84.39, 85.03, 84.82, 84.08, 83.86, 84.03),
    (16, 5): (84.06, 84.52, 84.44, 84.90, 84.59, 84.59, 84.42, 84.61, 84.40, 84.61, 84.71, 84.17),
    (8, 5): (84.19, 84.51, 84.44, 84.45, 84.97, 83.88, 84.68, 84.41, 84.56, 84.52, 84.00, 84.41),
    (4, 5): (84.71, 84.35, 84.62, 84.20, 83.85, 84.30, 84.87, 84.92, 84.62, 84.67, 84.27, 76.08),
    (8, 10): (84.28, 84.27, 84.62, 84.14, 84.27, 84.06, 84.25, 84.17, 84.19, 84.59, 84.43, 84.08),
}
# (data set, model, note): without and with CKA-SR.
_OTHERS = {
    ("cifar100", "resnet18", "dense", "", 1e-4): (75.61, 76.32),
    ("imagenet", "resnet18", "dense", "", 1e-5): (69.62, 69.90),
    ("cifar100", "resnet50", "dense", "", 1e-4): (77.39, 78.94),
    ("imagenet", "resnet50", "dense", "", 1e-5): (76.15, 76.39),
    ("imagenet", "deit-tiny", "dynamicvit", "keep 0.7", 1e-5): (71.11, 71.35),
    ("imagenet", "deit-tiny", "dynamicvit", "keep 0.9", 1e-5): (72.31, 72.52),
}


def _published() -> list[Published]:
    erk = ("resnet20", "random", "erk")
    numbers = [
        Published("cifar100", *erk, sparsity, beta, variant, samples, every, percent)
        for (beta, variant, samples, every), row in _CIFAR100.items()
        for sparsity, percent in zip(_SPARSITIES, row, strict=True)
    ]
    numbers.append(Published("cifar10", *erk, 0.95, 0.0, None, None, None, 84.16, "one run"))
    numbers += [
        Published("cifar10", *erk, 0.95, beta, "official", *few, percent)
        for few, row in _CIFAR10.items()
        for beta, percent in zip(_BETAS, row, strict=True)
    ]
    numbers.append(Published("cifar10", *erk, 0.95, None, "cca", None, None, 84.58))
    for (dataset, model, method, note, beta), pair in _OTHERS.items():
        for chosen, variant, percent in zip((0.0, beta), (None, "official"), pair, strict=True):
            numbers.append(
                Published(
                    dataset, model, method, None, 0.0, chosen, variant, None, None, percent, note
                )
            )
    return numbers


PUBLISHED = tuple(_published())


@dataclass(frozen=True)
class Claim:
    """A gain that the abstract claims for extreme sparsity, without network and method."""

    dataset: str
    sparsity: float
    gain: float  # Gain of accuracy, a fraction of 1; the claimed per cent are read as points.


CLAIMS = (Claim("cifar100", 0.995, 0.04), Claim("cifar100", 0.998, 0.06))
CLAIM_TERMS = (
    "The abstract claims a gain of 4 % or more at 99.5 % sparsity, and of 6 % or more at 99.8 %, "
    "on CIFAR-100. It does not state the method and the network. The gains are read as percentage "
    "points; they may instead be relative to the baseline's accuracy (6 % of 2.95 % is 0.18 points)"
)
LOTTERY_TERMS = (
    "Lottery tickets on MNIST are the first experiment that the summary of the paper suggests. Its "
    "number is not known, so the claim for CIFAR-100 is shown for comparison"
)


def claim_beside(settings: Mapping[str, Any]) -> Claim | None:
    """Return the claim of the abstract that is shown with a cell, or None.

    This is the claim for CIFAR-100 at the sparsity of the cell. For lottery tickets on MNIST, the
    first experiment that the paper suggests, the number is not known. They are shown with the claim
    for CIFAR-100, and ``dataset`` of the claim names that data set.

    Args:
        settings: settings of the cell.
    """
    lottery = settings["dataset"] == "mnist" and settings["method"] == "lth"
    for claim in CLAIMS:
        same = lottery or claim.dataset == settings["dataset"]
        if same and abs(claim.sparsity - settings["sparsity"]) < 1e-9:
            return claim
    return None


def lookup(settings: Mapping[str, Any], arm: Arm | None = None) -> Published | None:
    """Return the published accuracy for a cell and an arm, or None if there is none.

    Data set, network, method, sparsity and the settings of CKA-SR must be those of the paper. The
    recipe may differ (see `deviations`). Only CKA-SR and the baseline have published accuracies.

    Args:
        settings: settings of the cell, or of one run.
        arm: the arm, or None for the arm of the settings.
    """
    arm = arm_of(settings) if arm is None else arm
    for number in PUBLISHED:
        same_cell = (
            number.dataset == settings["dataset"]
            and number.model == settings["model"]
            and number.method == settings["method"]
            and number.distribution in (None, settings["distribution"])
            and abs(number.sparsity - settings["sparsity"]) < 1e-9
            and not number.note.startswith("keep")
        )
        if same_cell and _same_arm(number, arm):
            return number
    return None


def paper_difference(settings: Mapping[str, Any], arm: Arm) -> float | None:
    """Return the published difference, arm minus baseline, as a fraction of 1.

    Args:
        settings: settings of the cell.
        arm: the arm.

    Returns:
        The difference, or None if the paper does not have both numbers.
    """
    treated, baseline = lookup(settings, arm), lookup(settings, BASELINE)
    if arm == BASELINE or treated is None or baseline is None:
        return None
    return round(treated.accuracy - baseline.accuracy, 6)


def deviations(settings: Mapping[str, Any]) -> list[str]:
    """Return the differences from the paper's recipe, such as "30 epochs (paper: 160)".

    Args:
        settings: settings of the cell.
    """
    if settings["method"] != "random":
        return ["the paper does not state its recipe for this method"]
    recipe = {**RECIPE, "validation": 5000} if settings["dataset"] == "cifar10" else RECIPE
    return [
        f"{words.setting(name, settings[name])} (paper: {_short(value)})"
        for name, value in recipe.items()
        if settings[name] != value
    ]


def _short(value: Any) -> str:
    """Return the paper's value of a setting without the name: "160", "50 % and 75 %"."""
    if isinstance(value, list):
        return " and ".join(f"{100 * share:g} %" for share in value)
    return str(value)


def _same_arm(number: Published, arm: Arm) -> bool:
    if not arm.beta or not number.beta:
        return number.beta == arm.beta
    return (
        arm.term == TERM
        and abs(number.beta / arm.beta - 1) < 1e-9
        and number.variant == arm.variant
        and number.samples in (None, arm.samples)
        and number.every in (None, arm.every)
        and not arm.pairs
    )
