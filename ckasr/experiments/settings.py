"""Settings of one run: typed, checked, and hashed into the id of its record."""

import math
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Annotated, Any, Literal

from ckasr import data, methods, models, terms
from ckasr.choices import listed, one_of
from ckasr.cka import Pairs, Variant
from ckasr.data.images import Augment
from ckasr.devices import Precision
from ckasr.sparsity.densities import Distribution

from . import identity
from .identity import CKA_SR_FIELDS

CHOICES: dict[str, Any] = {
    "variant": Variant,
    "pairs": Literal[Pairs, ""],
    "distribution": Distribution,
    "augment": Literal["default", Augment],
    "precision": Precision,
}
"""Settings that take one of a few names, and the types that list the names."""
MAX_EPOCHS = 10_000
"""Largest number of epochs per phase. The engine numbers epochs by 10 000 per phase to key random
numbers."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a run. Defaults are the paper's CIFAR-100 recipe.

    The annotations are the help texts of the command line. A setting that nothing reads is set to
    its default, so that a run has only one id: ``distribution`` if the method does not use it,
    ``decay`` without milestones, and the settings of the term if beta is 0.

    Raises:
        ValueError: for a value of the wrong type or out of range.
        LookupError: for a data set, model, method, term or option that does not exist.
    """

    dataset: Annotated[str, ", ".join(data.names())] = "cifar100"
    model: Annotated[str, ", ".join([*models.names(), "torchvision:NAME", "timm:NAME"])] = (
        "resnet20"
    )
    method: Annotated[str, ", ".join(methods.METHODS)] = "random"
    method_options: Annotated[dict[str, Any], "options of the method, as name=value"] = field(
        default_factory=dict
    )
    distribution: Annotated[str, "layer densities: " + listed(Distribution)] = "erk"
    sparsity: Annotated[float, "share of zeros over all conv and linear weights"] = 0.0
    beta: Annotated[float, "weight of the term; 0: the baseline arm"] = 0.0
    term: Annotated[str, "added to the loss: " + ", ".join(terms.TERMS)] = "cka_sr"
    variant: Annotated[str, "variant of the term: " + listed(Variant)] = "official"
    samples: Annotated[int, "samples per batch that the term compares; 0: the whole batch"] = 8
    every: Annotated[int, "the term is added in one of this many steps"] = 5
    pairs: Annotated[str, listed(Pairs) + "; '': pairs of the variant"] = ""
    epochs: Annotated[int, "epochs per phase"] = 160
    batch_size: Annotated[int, "samples per batch"] = 128
    learning_rate: Annotated[float, "initial learning rate"] = 0.1
    momentum: Annotated[float, "momentum of SGD"] = 0.9
    nesterov: Annotated[bool, "Nesterov momentum"] = True
    weight_decay: Annotated[float, "weight decay of every parameter"] = 5e-4
    milestones: Annotated[tuple[float, ...], "learning-rate drops, as fractions of the epochs"] = (
        0.5,
        0.75,
    )
    decay: Annotated[float, "factor of the learning rate at each milestone"] = 0.1
    label_smoothing: Annotated[float, "label smoothing of the cross-entropy"] = 0.0
    dropout: Annotated[float, "dropout before the classifier"] = 0.0
    noise: Annotated[float, "standard deviation of Gaussian noise on the stages' outputs"] = 0.0
    hsic: Annotated[float, "weight of an additional HSIC term; 0: none"] = 0.0
    augment: Annotated[str, listed(Augment) + "; default: the data set's own"] = "default"
    validation: Annotated[int, "training samples held out, not augmented; 0: none"] = 5000
    precision: Annotated[
        str, listed(Precision) + "; tf32: convolutions on a GPU; bf16: autocast"
    ] = "fp32"
    seed: Annotated[int, "seed of weights, masks, split, order, augmentation"] = 0
    order_seed: Annotated[int, "seed of the order of the samples; -1: the order of seed"] = -1

    def __post_init__(self) -> None:
        for item in fields(self):
            value = _typed(item.name, getattr(self, item.name), _default(item))
            object.__setattr__(self, item.name, value)
        data.source_of(self.dataset)
        models.builder(self.model)
        terms.find(self.term)
        # As the method reads them: "2", 2 and 2.0 are the same, and so is an option left out.
        chosen = methods.create(self.method, self.method_options)
        options = {
            item.name: value
            for item in fields(chosen)
            if (value := getattr(chosen, item.name)) != item.default
        }
        object.__setattr__(self, "method_options", options)
        checks = {
            "sparsity": (0 <= self.sparsity < 1, "in [0, 1): the share of zeros"),
            "beta": (self.beta >= 0, "finite and not negative"),
            "samples": (self.samples == 0 or self.samples >= 4, "at least 4, or 0: whole batch"),
            "every": (self.every >= 1, "at least 1"),
            "epochs": (1 <= self.epochs <= MAX_EPOCHS, f"from 1 to {MAX_EPOCHS}"),
            "batch_size": (self.batch_size >= 2, "at least 2"),
            "learning_rate": (self.learning_rate > 0, "positive"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "nesterov": (not self.nesterov or self.momentum > 0, "false if momentum is 0"),
            "weight_decay": (self.weight_decay >= 0, "not negative"),
            "milestones": (
                all(0 < m <= 1 for m in self.milestones)
                and list(self.milestones) == sorted(self.milestones),
                "increasing shares of the epochs, in (0, 1]",
            ),
            "decay": (0 < self.decay <= 1, "in (0, 1]"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
            "dropout": (0 <= self.dropout < 1, "in [0, 1)"),
            "noise": (self.noise >= 0, "not negative"),
            "hsic": (
                self.hsic == 0
                or (self.hsic > 0 and (self.beta == 0 or self.every == Settings.every)),
                f"not negative, and 0 with a term whose setting every is not {Settings.every}: "
                "both terms are added in the same steps",
            ),
            "validation": (self.validation >= 0, "not negative"),
            **{name: one_of(getattr(self, name), choices) for name, choices in CHOICES.items()},
            "seed": (self.seed >= 0, "not negative"),
            "order_seed": (self.order_seed >= -1, "not negative, or -1: the order of the seed"),
        }
        for name, (fine, rule) in checks.items():
            if not fine:
                raise ValueError(f"setting {name} = {getattr(self, name)!r} must be {rule}")
        unread = [] if chosen.uses_distribution else ["distribution"]
        unread += [] if self.milestones else ["decay"]
        unread += [] if self.beta else CKA_SR_FIELDS  # one baseline for every term
        for name in unread:
            object.__setattr__(self, name, getattr(Settings, name))

    @cached_property
    def id(self) -> str:
        """Id of the run, which names its record: 12 hexadecimal digits, a hash of its settings.

        What the hash leaves out does not depend on the defaults (see ``identity.py``).
        """
        return identity.run_id(self.to_dict())

    def flags(self) -> list[str]:
        """Return the options of ``ckasr run`` that give these settings; defaults are left out."""
        words = [f"--option={name}={value}" for name, value in self.method_options.items()]
        for item in fields(self):
            value, flag = getattr(self, item.name), item.name.replace("_", "-")
            if item.name == "method_options" or value == item.default:
                continue
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else value
                words.append(f"--{flag}={text}")
        return words

    @property
    def schedule(self) -> str:
        """``full`` for the paper's 160 epochs or more, else ``short``. No table mixes them."""
        return "full" if self.epochs >= 160 else "short"

    def baseline(self) -> "Settings":
        """Return the same run without a term, which is the other arm of its comparison."""
        return replace(self, **{name: getattr(Settings, name) for name in CKA_SR_FIELDS})

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: all settings, all options of the method, the schedule."""
        options = asdict(methods.create(self.method, self.method_options))
        return {
            **asdict(self),
            "method_options": options,
            "milestones": list(self.milestones),
            "schedule": self.schedule,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Settings":
        """Return the settings of what ``to_dict`` returned.

        Settings added after the record was written get their value in ``identity.py``. Raises
        LookupError for a setting that does not exist.
        """
        known = {item.name for item in fields(cls)}
        given = {name: value for name, value in values.items() if name != "schedule"}
        if unknown := sorted(set(given) - known):
            raise LookupError(f"unknown setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return cls(**identity.complete(given))


def _default(item: Any) -> Any:
    return item.default if item.default is not MISSING else item.default_factory()


def _typed(name: str, value: Any, default: Any) -> Any:
    """Return a value as the type of its setting, because 1 and 1.0 must have the same hash."""
    kind = type(default)
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(_typed(name, v, 0.0) for v in value)
    fine = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fine or (kind in (int, float) and isinstance(value, bool)):
        raise ValueError(f"setting {name} must be {kind.__name__}, got {value!r}")
    if kind is int and abs(value) >= 2**63:
        raise ValueError(f"setting {name} is too large: it must be below 2**63")
    if kind is float and not (abs(value) < math.inf):
        raise ValueError(f"setting {name} = {value} must be finite")
    return kind(value)
