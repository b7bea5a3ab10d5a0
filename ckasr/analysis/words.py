"""The names of data sets, networks, methods and settings in titles, tables and figures.

A name that is not listed here is printed as it is registered, so a new method, model or data set
needs no entry.
"""

import re
from collections.abc import Mapping
from typing import Any

from ckasr.methods import METHODS

DATASETS = {
    "ag-news": "AG News",
    "ag-news-10k": "AG News (10,001 texts)",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "digits": "8 × 8 digits",
    "fashion-mnist": "Fashion-MNIST",
    "imagenet": "ImageNet",
    "mnist": "MNIST",
    "sst2": "SST-2",
    "tiny-imagenet": "Tiny ImageNet",
}
NETWORKS = {
    "deit_tiny": "DeiT-Tiny",
    "efficientnet_b0": "EfficientNet-B0",
    "lenet300": "LeNet-300-100",
    "mobilenet_v2": "MobileNetV2",
    "noisy_mlp": "noisy MLP",
    "resmlp": "residual MLP",
    "text_transformer": "text Transformer",
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "vit": "ViT",
}
METHOD_NAMES = {
    "dense": "dense training",
    "dlth": "dual lottery tickets",
    "gmp": "gradual magnitude pruning",
    "grasp": "GraSP",
    "l0": "L0 regularisation",
    "l1": "L1 regularisation",
    "lth": "lottery tickets",
    "magnitude": "magnitude pruning",
    "random": "random masks",
    "rigl": "RigL",
    "set": "SET",
    "snip": "SNIP",
    "structured": "structured pruning",
    "synflow": "SynFlow",
}
SETTINGS = {
    "augment": "augmentation: {}",
    "batch_size": "batch size {}",
    "decay": "learning rate × {} per drop",
    "epochs": "{} epochs",
    "hsic": "HSIC term with factor {}",
    "learning_rate": "learning rate {}",
    "momentum": "momentum {}",
    "noise": "noise of standard deviation {}",
    "order_seed": "order seed {}",
    "precision": "{}",
    "validation": "{} validation images",
    "weight_decay": "weight decay {}",
}


def dataset(name: str) -> str:
    """Return the printed name of a data set."""
    return DATASETS.get(name, name)


def network(name: str) -> str:
    """Return the printed name of a network: "ResNet20" for ``resnet20``."""
    return NETWORKS.get(name) or re.sub(r"^resnet(\d+)", r"ResNet\1", name).replace("_", "-")


def method(name: str, distribution: str) -> str:
    """Return the printed name of a method, and its distribution of layer densities, if any."""
    words = METHOD_NAMES.get(name, name)
    if name not in METHODS or not METHODS[name].uses_distribution:
        return words
    densities = distribution.upper() if distribution in ("er", "erk") else distribution
    if name == "random":
        return f"random {densities} masks"
    return f"{words} ({densities})"


def setting(name: str, value: Any) -> str:
    """Return a setting and its value as text, such as "200 validation images"."""
    if isinstance(value, Mapping):
        return ", ".join(option(key, each) for key, each in value.items())
    if name == "milestones":
        shares = " and ".join(f"{100 * share:g} %" for share in value)
        return f"learning-rate drops at {shares}" if value else "constant learning rate"
    if isinstance(value, bool):
        return f"{'' if value else 'no '}{_spaced(name)}"
    return SETTINGS.get(name, f"{_spaced(name)} {{}}").format(value)


def option(name: str, value: Any) -> str:
    """Return an option of a method and its value as text, such as "train mode off"."""
    if isinstance(value, bool):
        return f"{_spaced(name)} {'on' if value else 'off'}"
    return f"{_spaced(name)} {value}".replace(",", "/")


def _spaced(name: str) -> str:
    return name.replace("_", " ")
