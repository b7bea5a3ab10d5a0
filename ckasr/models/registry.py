"""Models by name.

To add a model, write a file in this folder with a class or a function that `register` knows by its
name. Every module of the folder is imported with the package, so no other file changes.

    @register("mynet")
    def mynet(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module: ...

A builder may take more keywords, which come from the data set (``Dataset.model_options``): a
network for texts takes the size of the vocabulary.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ckasr.names import nearest

Builder = Callable[..., nn.Module]
_builders: dict[str, Builder] = {}
_libraries: dict[str, Callable[[str], Builder]] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """Decorate the builder of a model, which gets ``num_classes`` and ``input_shape``."""

    def add(builder: Builder) -> Builder:
        if name in _builders:
            raise ValueError(f"a model named {name!r} is registered already: choose another name")
        _builders[name] = builder
        return builder

    return add


def register_library(
    prefix: str,
) -> Callable[[Callable[[str], Builder]], Callable[[str], Builder]]:
    """Decorator for a function that finds the builder of every model named ``prefix:...``."""

    def add(find: Callable[[str], Builder]) -> Callable[[str], Builder]:
        _libraries[prefix] = find
        return find

    return add


def names() -> list[str]:
    """Names of the models in this folder, without those of other libraries."""
    return list(_builders)


def builder(name: str) -> Builder:
    """The function that builds a model.

    Raises LookupError, with the nearest names, for an unknown model, and ModuleNotFoundError for a
    model of a library that is not installed.
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix in _libraries:
        return _libraries[prefix](rest)
    if name not in _builders:
        others = [f"{library}:NAME" for library in _libraries]
        raise LookupError(f"unknown model {name!r}{nearest(name, [*_builders, *others])}")
    return _builders[name]


def create(
    name: str, *, num_classes: int, input_shape: Sequence[int] = (3, 32, 32), **options: Any
) -> nn.Module:
    """Build a new model. Its weights are drawn from torch's global generator.

    Args:
        name: one of `names()`, ``torchvision:NAME`` or ``timm:NAME`` (see `external.py`).
        num_classes: number of classes; the outputs are logits (n, num_classes).
        input_shape: shape of one input, without the batch: (channels, height, width) for images.
        options: further arguments of the builder, as the data set gives them.

    Raises:
        LookupError: for an unknown name.
        ModuleNotFoundError: for a model of a library that is not installed.
        ValueError: for sizes below 1, for inputs that the model cannot take, and for options that
            the builder does not take or misses.
        ConnectionError: for published weights that could not be downloaded.
    """
    build = builder(name)
    if not input_shape or min(input_shape) < 1:
        raise ValueError(f"input_shape={tuple(input_shape)} must have sizes, each at least 1")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} must be at least 1")
    shape = tuple(input_shape)
    try:
        inspect.signature(build).bind(num_classes, shape, **options)
    except TypeError as error:
        raise ValueError(f"model {name!r} does not fit the data set: {error}") from None
    return build(num_classes, shape, **options)


def check_image(input_shape: Sequence[int]) -> None:
    """Raise ValueError if an input is not an image (C, H, W)."""
    if len(input_shape) != 3:
        raise ValueError(f"input_shape={tuple(input_shape)} must be (C, H, W)")


def kaiming(model: nn.Module) -> None:
    """Draw the weights of every convolution and linear layer as Random_Pruning does, in place.

    They are normal with mean 0 and variance 2 / fan_in (Kaiming, for ReLU). Biases and batch norms
    keep what PyTorch gives them (batch norms: weight 1, bias 0).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
