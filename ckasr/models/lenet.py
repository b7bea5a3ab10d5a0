"""LeNet-300-100, a multilayer perceptron (LeCun et al. 1998, section III.C.6).

Frankle & Carbin 2019 (arXiv 1803.03635, section 2) use this network for MNIST. They show its
accuracy only in a figure, so no reference accuracy is given here.
"""

import math

import torch
from torch import Tensor, nn

from .registry import kaiming, register


class Layer(nn.Module):
    """A linear layer and its ReLU in one module, so that a hook sees the activations."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x))


@register("lenet300")
class LeNet300(nn.Module):
    """A perceptron with hidden layers of 300 and 100 units, applied to the flattened pixels."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.hidden = nn.Sequential(Layer(math.prod(input_shape), 300), Layer(300, 100))
        self.fc = nn.Linear(100, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.hidden(x.flatten(1)))
