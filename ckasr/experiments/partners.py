"""Partners of the term: regularizers that a host can have with the term or without it.

A host is a run without the term. The two hosts of a partner share everything but the strength of
the partner, so that a 2 x 2 factorial of partner and term can be computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ckasr.names import nearest

from .settings import Settings


@dataclass(frozen=True)
class Partner:
    """A regularizer whose strength is a setting or an option of a method.

    Args:
        label: name in tables and figures.
        field: setting, or option of the method, that is its strength.
        usual: strength with the partner if none is given.
        off: strength without the partner.
        method: method that has the option; empty: the strength is a setting.
        options: other options of the method, the same with the partner and without it.
    """

    label: str
    field: str
    usual: float
    off: float = 0.0
    method: str = ""
    options: Mapping[str, Any] | None = None

    def host(self, base: Settings, strength: float) -> Settings:
        """Return the host with a strength of the partner."""
        changes: dict[str, Any] = {self.field: strength}
        if self.method:
            options = {**(self.options or {}), **changes}
            changes = {"method": self.method, "method_options": options}
        return replace(base, **changes)

    def strength(self, settings: Settings) -> float | None:
        """Return the strength of the partner in a run; None if the run cannot have the partner."""
        if not self.method:
            return getattr(settings, self.field)
        if settings.method != self.method:
            return None
        return settings.to_dict()["method_options"][self.field]


PARTNERS: dict[str, Partner] = {
    "l1": Partner("L1", "strength", 1e-4, method="l1"),
    # Gates stay open with this rate, and those with the lowest log alpha are closed at the end.
    "l0": Partner("L0", "dual_rate", 8.0, off=1e-9, method="l0", options={"finetune": 0.5}),
    "weight_decay": Partner("weight decay", "weight_decay", 5e-4),
    "dropout": Partner("dropout", "dropout", 0.2),
    "label_smoothing": Partner("label smoothing", "label_smoothing", 0.1),
    "hsic": Partner("HSIC", "hsic", 1e-6),
}
"""The partners by name. The strengths suit ResNet20 on 8x8 digits."""


def hosts(base: Settings, partners: Sequence[str]) -> list[Settings]:
    """Return the hosts without and with each of the partners, each host once.

    Args:
        base: all other settings.
        partners: names of ``PARTNERS``, each with its strength, such as ``"dropout=0.2"``, or
            without one for the usual strength.

    Raises:
        LookupError: for an unknown partner, with the nearest names.
        ValueError: for a strength that is no number, for a strength that is that of a host
            without the partner, and for a strength that `Settings` does not allow.
    """
    found: dict[str, Settings] = {}
    for text in partners:
        name, equals, number = text.partition("=")
        if name not in PARTNERS:
            raise LookupError(f"unknown partner {name!r}{nearest(name, PARTNERS)}")
        partner = PARTNERS[name]
        try:
            strength = float(number) if equals else partner.usual
        except ValueError:
            raise ValueError(
                f"partner {text!r} must be name=strength, as in 'dropout=0.2'"
            ) from None
        if strength == partner.off:
            raise ValueError(f"partner {text!r} has no effect at this strength: give another one")
        for host in (partner.host(base, partner.off), partner.host(base, strength)):
            found[host.id] = host
    return list(found.values())
