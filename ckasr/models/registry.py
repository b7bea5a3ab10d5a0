"""Models by name.

A new model is one file in this folder: a class, and a builder that `register` knows by its name.

    @register("mynet")
    def mynet(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module: ...

Every module of the folder is imported with the package, so nothing else changes.
"""

from collections.abc import Callable, Sequence

from torch import nn

from ckasr.names import nearest

Builder = Callable[[int, tuple[int, int, int]], nn.Module]
_builders: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """Decorator: `create(name, ...)` calls this builder with (num_classes, input_shape)."""

    def add(builder: Builder) -> Builder:
        if name in _builders:
            raise ValueError(f"a model named {name!r} is registered already: choose another name")
        _builders[name] = builder
        return builder

    return add


def names() -> list[str]:
    """Names of all models."""
    return list(_builders)


def builder(name: str) -> Builder:
    """The function that builds a model; LookupError, with the nearest names, for no model."""
    if name not in _builders:
        raise LookupError(f"unknown model {name!r}{nearest(name, _builders)}")
    return _builders[name]


def create(name: str, *, num_classes: int, input_shape: Sequence[int] = (3, 32, 32)) -> nn.Module:
    """A freshly initialised model: (n, *input_shape) images to (n, num_classes) logits.

    input_shape is (C, H, W). The weights are drawn from torch's global generator. Raises
    LookupError for an unknown name, ValueError for sizes below 1.
    """
    build = builder(name)
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ValueError(f"input_shape={tuple(input_shape)} must be (C, H, W), each at least 1")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} must be at least 1")
    channels, height, width = input_shape
    return build(num_classes, (channels, height, width))


def kaiming(model: nn.Module) -> None:
    """Kaiming normal weights (fan in, ReLU) in every conv and linear layer, as Random_Pruning.

    Biases and batch norms keep what PyTorch gives them (norms: weight 1, bias 0).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
