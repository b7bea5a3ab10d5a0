"""Progress: the lines that a run prints."""

from typing import Any

from ckasr import terms

from .settings import Settings


def title(s: Settings) -> str:
    """Return the settings of a run in words."""
    term = f"{terms.find(s.term).label} {s.variant} beta {s.beta:g}" if s.beta else "baseline"
    extra = "".join(
        f" {name} {value:g}"
        for name in ("label_smoothing", "dropout", "noise", "hsic")
        if (value := getattr(s, name))
    )
    order = f" order {s.order_seed}" if s.order_seed >= 0 else ""
    return (
        f"{s.dataset} {s.model} {s.method} sparsity {s.sparsity:g} {term} seed {s.seed}{order}"
        f"{extra}, {s.epochs} epochs"
    )


def epoch_line(entry: dict[str, Any], count: int) -> str:
    """Return the line of an epoch.

    Args:
        entry: what the engine yields after the epoch.
        count: number of epochs done in the whole run.
    """
    parts = [f"  {entry['phase']} epoch {count:>3}", f"loss {entry['loss']:.4f}"]
    if entry["term"] is not None:
        parts.append(f"term {entry['term']:.3f} (gradient x {entry['gradient_ratio']:.2g})")
    if entry["validation_accuracy"] is not None:
        parts.append(f"validation {entry['validation_accuracy']:.2%}")
    return "  ".join([*parts, f"{entry['seconds']:.1f} s"])
