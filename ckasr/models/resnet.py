"""Residual networks for CIFAR (He et al. 2015, arXiv 1512.03385, section 4.2).

The depth is 6n + 2: a stem, three stages of n blocks, and a classifier.

Names without a suffix, such as `resnet20`, have projection shortcuts (a 1x1 convolution and a batch
norm where the shape changes), as in VITA-Group/Random_Pruning, on which the experiments of CKA-SR
are based. Names with the suffix `_a` have shortcuts without parameters (option A), as in He et al.
Names with the suffix `_w32` have 32 instead of 16 channels in the first stage: GraSP (Wang et al.
2020, arXiv 2002.07376) and SNIP call `resnet32_w32` "ResNet-32". It has 1.86 million weights, four
times as many as `resnet32`, so the two must not be compared.

The test accuracies on CIFAR-10 with option A (He et al., table 6) are 91.25 %, 92.49 %, 92.83 %,
93.03 % and 93.57 % at depths 20, 32, 44, 56 and 110. No published accuracy of `resnet32_w32` was
checked.
"""

from functools import partial

import torch
from torch import Tensor, nn

from .registry import check_image, kaiming, register

DEPTHS = (20, 32, 44, 56, 110)


class PadShortcut(nn.Module):
    """Shortcut of option A: every ``stride``-th pixel, and zeros in the additional channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        new = out_channels - in_channels
        self.stride, self.padding = stride, (new // 2, new - new // 2)

    def forward(self, x: Tensor) -> Tensor:
        halved = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(halved, (0, 0, 0, 0, *self.padding))


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return a shortcut of option B: a 1x1 convolution and a batch norm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, whose sum is followed by a ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, option_a: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            shortcut = PadShortcut if option_a else projection
            self.shortcut = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, three stages of blocks, global average pooling and a linear layer.

    Args:
        num_classes: number of logits.
        input_shape: (channels, height, width) of the images.
        depth: number of layers, 6n + 2.
        width: channels of the first stage; the second has twice and the third four times as many.
        option_a: if True, shortcuts have no parameters (option A).

    Raises:
        ValueError: for a depth that is not of this form, or for inputs that are not images.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, ...],
        *,
        depth: int,
        width: int = 16,
        option_a: bool = False,
    ) -> None:
        super().__init__()
        check_image(input_shape)
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth={depth} must be 6n + 2 with n at least 1, such as 20 or 32")
        self.conv1 = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)

        def stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
            first = BasicBlock(in_channels, out_channels, stride, option_a=option_a)
            rest = (BasicBlock(out_channels, out_channels, 1) for _ in range(depth // 6 - 1))
            return nn.Sequential(first, *rest)

        self.layer1 = stage(width, width, 1)
        self.layer2 = stage(width, 2 * width, 2)
        self.layer3 = stage(2 * width, 4 * width, 2)
        self.fc = nn.Linear(4 * width, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


for _depth in DEPTHS:
    for _suffix, _width in (("", 16), ("_w32", 32)):
        register(f"resnet{_depth}{_suffix}")(partial(ResNet, depth=_depth, width=_width))
        register(f"resnet{_depth}{_suffix}_a")(
            partial(ResNet, depth=_depth, width=_width, option_a=True)
        )
