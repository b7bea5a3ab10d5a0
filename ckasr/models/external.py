"""Models of torchvision and timm by name: ``torchvision:NAME`` and ``timm:NAME``.

A name may end in ``@WEIGHTS`` to load published weights, which the library downloads once:
``torchvision:resnet18@IMAGENET1K_V1``, ``timm:resnet18@a1_in1k``, or ``@DEFAULT`` for both
libraries. The classifier is replaced if the number of classes differs. Without published weights,
the first convolution has as many input channels as the images of the data set.

These networks are designed for large images. A network that cannot process the images of a data
set, or that does not return one tensor of logits, raises a ValueError when it is created.

Accuracies on ImageNet are listed at pytorch.org/vision/stable/models.html, and in
results/results-imagenet.csv of github.com/huggingface/pytorch-image-models. Accuracies on CIFAR are
not known.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ckasr.names import nearest

from .registry import Builder, register_library

AUXILIARY = ("googlenet", "inception_v3")
"""Models of torchvision that return the logits of auxiliary classifiers as well by default."""


@register_library("torchvision")
def torchvision_model(text: str) -> Builder:
    """Return the builder of ``torchvision:NAME`` or ``torchvision:NAME@WEIGHTS``.

    Args:
        text: the name after the colon, ``NAME`` or ``NAME@WEIGHTS``.

    Raises:
        LookupError: for an unknown model or unknown weights.
    """
    from torchvision import models

    name, _, wanted = text.partition("@")
    _check_known(name, models.list_models(module=models), "torchvision has no model")
    weights = None
    if wanted:
        known = models.get_model_weights(name).__members__
        _check_known(wanted, known, f"torchvision's {name} has no weights")
        weights = known[wanted]

    def build(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        channels, height, width = input_shape
        if weights is not None:
            if channels != 3:
                reason = "its weights are for images of three channels"
                raise ValueError(_refusal(f"torchvision:{text}", input_shape, reason))
            model = _downloaded(
                f"torchvision:{text}", lambda: models.get_model(name, weights=weights)
            )
            _resize_classifier(model, num_classes)
        else:
            options: dict[str, Any] = {"num_classes": num_classes}
            if name in AUXILIARY:
                options["aux_logits"] = False
            if name.startswith("vit_"):
                options["image_size"] = height
            if name.startswith("maxvit"):
                options["input_size"] = (height, width)
            with _refusing(f"torchvision:{text}", input_shape):
                model = models.get_model(name, **options)
            _resize_stem(model, channels)
        return _checked(f"torchvision:{text}", model, num_classes, input_shape)

    return build


@register_library("timm")
def timm_model(text: str) -> Builder:
    """Return the builder of ``timm:NAME`` or ``timm:NAME@TAG``.

    Args:
        text: the name after the colon, ``NAME`` or ``NAME@TAG``.

    Raises:
        LookupError: for an unknown model or unknown weights.
        ModuleNotFoundError: if timm is not installed.
    """
    try:
        import timm
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"model 'timm:{text}' needs the package timm: pip install 'ckasr[timm]'"
        ) from None

    name, _, tag = text.partition("@")
    _check_known(name, timm.list_models(), "timm has no model")
    full = name
    if tag:
        known = {"DEFAULT": name} | {
            pretrained.partition(".")[2]: pretrained
            for pretrained in timm.list_pretrained(f"{name}.*")
        }
        _check_known(tag, known, f"timm's {name} has no weights")
        full = known[tag]

    def build(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        channels, height, width = input_shape
        options: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels}
        if tag:
            model = _downloaded(
                f"timm:{text}", lambda: timm.create_model(full, pretrained=True, **options)
            )
        else:
            with _refusing(f"timm:{text}", input_shape):
                try:  # Transformers need the size of the images; other models do not accept it.
                    model = timm.create_model(full, img_size=(height, width), **options)
                except TypeError:
                    model = timm.create_model(full, **options)
        patches = getattr(model, "patch_embed", None)
        if getattr(patches, "num_patches", 1) == 0:
            raise ValueError(_refusal(f"timm:{text}", input_shape, "its patches are larger"))
        return _checked(f"timm:{text}", model, num_classes, input_shape)

    return build


def _check_known(name: str, known: Collection[str], what: str) -> None:
    """Raise LookupError for an unknown name. The message begins with ``what``."""
    if name not in known:
        near = nearest(name, known)
        if len(known) > 50:  # The message lists only the nearest names.
            near = near.partition(" (all:")[0]
        raise LookupError(f"{what} {name!r}{near}")


def _refusal(name: str, input_shape: tuple[int, int, int], reason: object) -> str:
    line = (str(reason).strip() or type(reason).__name__).splitlines()[0]
    return f"model {name!r} cannot be used for images of shape {input_shape}: {line}"


@contextmanager
def _refusing(name: str, input_shape: tuple[int, int, int]) -> Iterator[None]:
    """Convert any exception of a library for unsuitable images into a ValueError."""
    try:
        yield
    except Exception as error:
        raise ValueError(_refusal(name, input_shape, error)) from error


def _downloaded(name: str, create: Callable[[], nn.Module]) -> nn.Module:
    try:
        return create()
    except Exception as error:  # Each library raises exceptions of its own.
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConnectionError(f"the weights of {name!r} could not be loaded: {line}") from error


def _checked(
    name: str, model: nn.Module, num_classes: int, input_shape: tuple[int, int, int]
) -> nn.Module:
    """Return the model, after one forward pass with images of the given shape as a check."""
    model.eval()
    with _refusing(name, input_shape), torch.no_grad():
        logits = model(torch.zeros(2, *input_shape))
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(_refusal(name, input_shape, f"two of them give {found} and no logits"))
    return model.train()


def _resize_stem(model: nn.Module, channels: int) -> None:
    """Change the number of input channels of the first convolution, with new random weights."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    if first.in_channels != channels:
        first.in_channels = channels
        width = channels // first.groups
        shape = (first.out_channels, width, *first.kernel_size)
        first.weight = nn.Parameter(first.weight.new_empty(shape))
        first.reset_parameters()


def _resize_classifier(model: nn.Module, num_classes: int) -> None:
    """Change the number of outputs of the last linear layer, with new random weights."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    last = layers[-1]
    if len(last.weight) != num_classes:
        if isinstance(last, nn.Conv2d):
            last.out_channels = num_classes
        else:
            last.out_features = num_classes
        last.weight = nn.Parameter(last.weight.new_empty(num_classes, *last.weight.shape[1:]))
        if last.bias is not None:
            last.bias = nn.Parameter(last.bias.new_empty(num_classes))
        last.reset_parameters()
