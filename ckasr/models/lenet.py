"""LeNet-300-100, the multilayer perceptron of the lottery ticket papers."""

import math

import torch
from torch import Tensor, nn

from .registry import kaiming, register


class Layer(nn.Module):
    """A linear layer and its ReLU, one module, so that a hook sees the activations."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x))


@register("lenet300")
class LeNet300(nn.Module):
    """Flattened pixels, 300 and 100 hidden units, classes."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.hidden = nn.Sequential(Layer(math.prod(input_shape), 300), Layer(300, 100))
        self.fc = nn.Linear(100, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.hidden(x.flatten(1)))
