"""A residual perceptron with Gaussian noise, in which the information about the input is finite.

In a deterministic network, a feature map of continuous inputs has infinite mutual information with
the input, or as much as the input's entropy for finitely many inputs (Saxe et al. 2018; Goldfeld et
al. 2019). Here each layer adds noise to a signal of fixed power, so the network cannot avoid the
noise by making its features larger, and the mutual information has bounds that can be computed
(``ckasr/experiments/information.py``). The network was designed for this project, so there is no
reference accuracy.
"""

import math

import torch
from torch import Tensor, nn

from .registry import kaiming, register


class GaussianNoise(nn.Module):
    """Adds independent normal noise to each entry in train mode; does nothing in eval mode.

    The noise comes from torch's global random generator.

    Args:
        std: standard deviation of the noise.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        return x + self.std * torch.randn_like(x) if self.training else x


class NoisyBlock(nn.Module):
    """``norm(x + linear2(ReLU(linear1(x))))`` plus noise.

    The layer norm has no parameters, so its output for each sample has mean 0 and mean square 1
    over the features.

    Args:
        width: number of features.
        std: standard deviation of the noise.
    """

    def __init__(self, width: int, std: float) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.noise = GaussianNoise(std)

    def forward(self, x: Tensor) -> Tensor:
        return self.noise(self.norm(x + self.linear2(torch.relu(self.linear1(x)))))


@register("noisy_mlp")
class NoisyMLP(nn.Module):
    """A noisy residual perceptron, applied to the flattened pixels.

    It consists of a noisy stem of ``width`` units, ``depth`` noisy blocks and a linear classifier.

    Args:
        num_classes: number of classes.
        input_shape: shape of one input.
        width: number of features of each layer.
        depth: number of residual blocks.
        std: standard deviation of the noise, relative to a signal of power 1 per feature.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, ...],
        *,
        width: int = 32,
        depth: int = 3,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Linear(math.prod(input_shape), width),
            nn.LayerNorm(width, elementwise_affine=False),
            GaussianNoise(std),
        )
        self.blocks = nn.Sequential(*(NoisyBlock(width, std) for _ in range(depth)))
        self.fc = nn.Linear(width, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x.flatten(1))))
