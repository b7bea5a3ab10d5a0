"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, table 2) with the strides for CIFAR.

The network is torchvision's, with stride 1 instead of 2 in the stem and in the second stage, and
without dropout: an image of 32x32 pixels is reduced to 4x4, where the original would leave one
pixel. It has 2.2 million parameters with 10 classes.

Test accuracy on CIFAR-10: 94.43 % (github.com/kuangliu/pytorch-cifar, which has the same strides,
and a convolution in the shortcut of blocks that change the width). On CIFAR-100: 68.08 %
(github.com/weiaicunzai/pytorch-cifar100, 200 epochs).
"""

from torch import nn

from .registry import kaiming, register

STAGES = (
    # expansion, output channels, blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@register("mobilenet_v2")
def mobilenet_v2(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Seven stages of inverted residual blocks."""
    from torchvision.models import MobileNetV2

    setting = [list(stage) for stage in STAGES]
    model = MobileNetV2(num_classes, inverted_residual_setting=setting, dropout=0.0)
    model.features[0][0] = nn.Conv2d(input_shape[0], 32, 3, padding=1, bias=False)
    kaiming(model)
    return model
