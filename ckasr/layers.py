"""Choice of the layers that CKA-SR compares: by name, by a predicate, or by the module tree."""

from collections.abc import Callable, Sequence

from torch import nn

from ckasr.names import nearest
from ckasr.stages import find_stages

Predicate = Callable[[str, nn.Module], bool]
"""Function ``(name, module) -> bool`` that returns whether to compare a layer."""


def choose_stages(
    model: nn.Module,
    stages: Sequence[Sequence[str]] | None,
    layers: Sequence[str] | Predicate | None,
) -> list[list[str]]:
    """Return the names of the layers to compare, one list per stage.

    Args:
        model: the network.
        stages: names of layers by stage, or None.
        layers: names of layers in one list, or a predicate, or None. If both arguments are None,
            :func:`ckasr.find_stages` finds the stages.

    Raises:
        ValueError: if both arguments are given, if one is not of the types above, or if no stage
            is found.
    """
    if stages is not None and layers is not None:
        raise ValueError("give stages or layers, not both")
    if isinstance(layers, str):
        raise ValueError(f"layers is a list of names, or a predicate; for one name, [{layers!r}]")
    if stages is not None and (isinstance(stages, str) or any(isinstance(s, str) for s in stages)):
        raise ValueError(
            "stages is a list of lists of layer names, one list per stage; for one flat list of "
            "names use layers="
        )
    if callable(layers):
        return [[name for name, module in model.named_modules() if name and layers(name, module)]]
    if layers is not None:
        return [list(layers)]
    return find_stages(model) if stages is None else [list(stage) for stage in stages]


def named_layers(model: nn.Module, stages: list[list[str]]) -> dict[str, nn.Module]:
    """Return the modules of the given names. A module with several names may have any of them.

    Args:
        model: the network.
        stages: names of layers, one list per stage.

    Raises:
        LookupError: for an unknown name; the message lists similar names.
        ValueError: if a module is named twice, or if there is no name.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, nn.Module] = {}
    for name in (name for stage in stages for name in stage):
        if not name or name not in known:
            names = [other for other in known if other]
            raise LookupError(
                f"{type(model).__name__} has no layer {name!r}{nearest(str(name), names)}"
            )
        if same := [other for other, module in found.items() if module is known[name]]:
            what = "is named twice" if same[0] == name else f"is the same module as {same[0]!r}"
            raise ValueError(f"layer {name!r} {what}: name every layer once")
        found[name] = known[name]
    if not found:
        raise ValueError("CKA-SR has no layer to compare; name them with stages= or layers=")
    return found


def check_pairs(stages: list[list[str]], pairs: str) -> None:
    """Check that every layer can be compared with another one.

    Args:
        stages: names of layers, one list per stage.
        pairs: ``"within"``, ``"all"``, ``"adjacent"`` or ``"input"`` (see ``CKASR``).

    Raises:
        ValueError: if a group of layers that are compared has a single layer.
    """
    if pairs == "input":
        return
    groups = stages if pairs == "within" else [[name for stage in stages for name in stage]]
    for group in groups:
        if len(group) == 1:
            raise ValueError(
                f"layer {group[0]!r} is the only one to compare with pairs={pairs!r}: its part of "
                "the term is constant; name at least two layers per stage"
            )
