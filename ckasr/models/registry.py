"""Models by name.

A new model is one file in this folder: a class, and a builder that is registered by its name.

    @register("mynet")
    def mynet(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module: ...

A builder may take more keywords, which come from the data set (``Dataset.model_options``): a
network for texts takes the size of the vocabulary.

Every module of the folder is imported with the package, so nothing else changes.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ckasr.names import nearest

Builder = Callable[..., nn.Module]
_builders: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """Decorate the builder of a model, which gets ``num_classes`` and ``input_shape``."""

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


def create(
    name: str, *, num_classes: int, input_shape: Sequence[int] = (3, 32, 32), **options: Any
) -> nn.Module:
    """Build a freshly initialised model. Its weights are drawn from torch's global generator.

    Args:
        name: name of the model.
        num_classes: number of classes; the outputs are logits (n, num_classes).
        input_shape: shape of one input, without the batch: (C, H, W) for images.
        options: further arguments of the builder, as the data set gives them.

    Raises:
        LookupError: for an unknown name.
        ValueError: for sizes below 1, and for options that the builder does not take or misses.
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
    """Kaiming normal weights (fan in, ReLU) in every conv and linear layer, as Random_Pruning.

    Biases and batch norms keep what PyTorch gives them (norms: weight 1, bias 0).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
