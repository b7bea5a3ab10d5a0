"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, table 2) with the strides for CIFAR.

The network is that of torchvision, with stride 1 instead of 2 in the stem and in the second stage,
and without dropout. An image of 32x32 pixels is therefore reduced to 4x4 pixels; the original
network would reduce it to one pixel. The network has 2.2 million parameters with 10 classes.

The test accuracy on CIFAR-10 is 94.43 % in github.com/kuangliu/pytorch-cifar, whose network has the
same strides, and a convolution in the shortcut of blocks that change the number of channels. The
test accuracy on CIFAR-100 is 68.08 % after 200 epochs in github.com/weiaicunzai/pytorch-cifar100.
"""

from torch import nn

from .registry import kaiming, register

STAGES = (
    # Expansion factor, output channels, number of blocks, stride of the first block.
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
    """Build MobileNetV2: seven stages of inverted residual blocks.

    Args:
        num_classes: number of logits.
        input_shape: (channels, height, width) of the images.
    """
    from torchvision.models import MobileNetV2

    setting = [list(stage) for stage in STAGES]
    model = MobileNetV2(num_classes, inverted_residual_setting=setting, dropout=0.0)
    model.features[0][0] = nn.Conv2d(input_shape[0], 32, 3, padding=1, bias=False)
    kaiming(model)
    return model
