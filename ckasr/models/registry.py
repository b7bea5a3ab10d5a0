"""The registry of models, which creates a model from its name.

To add a model, write a file in this folder with a class or a function that is decorated with
`register`. Every module of the folder is imported with the package, so no other file changes.

    @register("mynet")
    def mynet(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module: ...

A builder may have further keyword arguments, which the data set provides
(``Dataset.model_options``): a network for texts needs the size of the vocabulary.
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
    """Return a decorator that registers the builder of a model.

    Args:
        name: name of the model. The builder is called with ``num_classes`` and ``input_shape``.

    Raises:
        ValueError: if the name is registered already.
    """

    def add(builder: Builder) -> Builder:
        if name in _builders:
            raise ValueError(f"a model named {name!r} is registered already: choose another name")
        _builders[name] = builder
        return builder

    return add


def register_library(
    prefix: str,
) -> Callable[[Callable[[str], Builder]], Callable[[str], Builder]]:
    """Return a decorator that registers a function for all models named ``prefix:NAME``.

    Args:
        prefix: name of the library. The decorated function returns the builder of ``NAME``.
    """

    def add(find: Callable[[str], Builder]) -> Callable[[str], Builder]:
        _libraries[prefix] = find
        return find

    return add


def names() -> list[str]:
    """Return the names of the models in this folder, without those of other libraries."""
    return list(_builders)


def builder(name: str) -> Builder:
    """Return the function that builds a model.

    Args:
        name: name of the model, as for `create`.

    Raises:
        LookupError: for an unknown model. The message names similar models.
        ModuleNotFoundError: for a model of a library that is not installed.
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
    """Build a new model, with random weights from the global generator of PyTorch.

    Args:
        name: one of `names()`, ``torchvision:NAME`` or ``timm:NAME`` (see `external.py`).
        num_classes: number of classes; the outputs are logits (n, num_classes).
        input_shape: shape of one input, without the batch: (channels, height, width) for images.
        options: further arguments of the builder, from ``Dataset.model_options``.

    Raises:
        LookupError: for an unknown name.
        ModuleNotFoundError: for a model of a library that is not installed.
        ValueError: for sizes below 1, for inputs that the model cannot process, and for options
            that the builder does not accept or that are missing.
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
    """Raise ValueError if ``input_shape`` is not (channels, height, width)."""
    if len(input_shape) != 3:
        raise ValueError(f"input_shape={tuple(input_shape)} must be (C, H, W)")


def kaiming(model: nn.Module) -> None:
    """Initialise the weights of all convolutions and linear layers in place, as Random_Pruning.

    The weights are normal with mean 0 and variance 2 / fan_in (He et al. 2015, arXiv 1502.01852,
    eq. 10). Biases and batch norms keep the initial values of PyTorch.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
