"""A residual multilayer perceptron, for tests and examples on the 8x8 digits.

It has skip connections and batch norms, as a ResNet has, and a training step takes milliseconds. It
was designed for this project, so there is no reference accuracy.
"""

import math

import torch
from torch import Tensor, nn

from .registry import kaiming, register


class Block(nn.Module):
    """ReLU(x + norm(linear(ReLU(norm(linear(x)))))), with linear layers of one width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The batch norms that follow have biases.
        self.linear1 = nn.Linear(width, width, bias=False)
        self.bn1 = nn.BatchNorm1d(width)
        self.linear2 = nn.Linear(width, width, bias=False)
        self.bn2 = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.linear1(x)))
        return torch.relu(x + self.bn2(self.linear2(out)))


@register("resmlp")
class ResMLP(nn.Module):
    """A stem of ``width`` units, ``depth`` residual blocks and a classifier on flattened pixels."""

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, ...],
        *,
        width: int = 64,
        depth: int = 4,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Linear(math.prod(input_shape), width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.fc = nn.Linear(width, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x.flatten(1))))
