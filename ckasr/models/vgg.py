"""VGG16 and VGG19 with batch norm (Simonyan & Zisserman 2014, arXiv 1409.1556, table 1, D and E).

As in most work on CIFAR, global average pooling and one linear layer take the place of the three
fully connected layers, and four max poolings are left, as in the VGG19 of GraSP (Wang et al. 2020,
arXiv 2002.07376): 14.7 and 20.0 million parameters with 10 classes. A pooling of an odd size rounds
up, so that MNIST (28x28) and images of 8x8 pixels fit; at 32x32 nothing is rounded.

Test accuracy on CIFAR-10: 92.64 % (VGG16, github.com/kuangliu/pytorch-cifar). On CIFAR-100: 72.93 %
(VGG16) and 72.23 % (VGG19), github.com/weiaicunzai/pytorch-cifar100, which has the three fully
connected layers (34 and 39 million parameters). For VGG19 on CIFAR-10 no number was checked.
"""

from functools import partial

import torch
from torch import Tensor, nn

from .registry import kaiming, register

WIDTHS = (64, 128, 256, 512, 512)


class Layer(nn.Module):
    """A 3x3 convolution, its batch norm and ReLU: one module, so that a hook sees activations."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class VGG(nn.Module):
    """Five stages with max pooling between them, global average pooling, a linear layer.

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
