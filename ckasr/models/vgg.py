"""VGG16 and VGG19 with batch norm (Simonyan & Zisserman 2014, arXiv 1409.1556, table 1, D and E).

As in most work on CIFAR, global average pooling and one linear layer replace the three fully
connected layers, and there are four instead of five max poolings, as in the VGG19 of GraSP (Wang et
al. 2020, arXiv 2002.07376). The networks have 14.7 and 20.0 million parameters with 10 classes. Max
pooling rounds an odd size up, so that images of 28x28 (MNIST) and 8x8 pixels can be processed; at
32x32 nothing is rounded.

The test accuracy of VGG16 on CIFAR-10 is 92.64 % in github.com/kuangliu/pytorch-cifar. On CIFAR-100
the accuracies are 72.93 % (VGG16) and 72.23 % (VGG19) in github.com/weiaicunzai/pytorch-cifar100,
whose networks have the three fully connected layers (34 and 39 million parameters). No published
accuracy of VGG19 on CIFAR-10 was checked.
"""

from functools import partial

import torch
from torch import Tensor, nn

from .registry import kaiming, register

WIDTHS = (64, 128, 256, 512, 512)


class Layer(nn.Module):
    """A 3x3 convolution, a batch norm and a ReLU in one module, so that a hook sees activations."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class VGG(nn.Module):
    """Five stages with max pooling between them, global average pooling and a linear layer.

    Args:
        num_classes: number of logits.
        input_shape: (channels, height, width) of the images.
        depths: number of convolutions in each stage.
    """

    def __init__(
        self, num_classes: int, input_shape: tuple[int, int, int], *, depths: tuple[int, ...]
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        channels = input_shape[0]
        for depth, width in zip(depths, WIDTHS, strict=True):
            if parts:
                parts.append(nn.MaxPool2d(2, ceil_mode=True))
            layers = [Layer(channels if k == 0 else width, width) for k in range(depth)]
            parts.append(nn.Sequential(*layers))
            channels = width
        self.features = nn.Sequential(*parts)
        self.fc = nn.Linear(channels, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


register("vgg16")(partial(VGG, depths=(2, 2, 3, 3, 3)))
register("vgg19")(partial(VGG, depths=(2, 2, 4, 4, 4)))
