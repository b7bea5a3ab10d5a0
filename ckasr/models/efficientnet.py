"""EfficientNet-B0 (Tan & Le 2019, arXiv 1905.11946, table 1) with the strides for CIFAR.

The network is that of torchvision, with stride 1 instead of 2 in the stem and in the second stage,
as in `mobilenet_v2`, so that an image of 32x32 pixels is reduced to 4x4. (At 2x2, the outer weights
of the 5x5 kernels would be multiplied by padding only.) The probabilities of dropout and stochastic
depth are those of the paper, 0.2 each. The network has 4.0 million parameters with 10 classes.

The test accuracy after training on CIFAR from scratch is not known. The 98.1 % on CIFAR-10 in the
paper (table 5) is the accuracy of a network trained on ImageNet and fine-tuned on enlarged images.
"""

from torch import nn

from .registry import kaiming, register


@register("efficientnet_b0")
def efficientnet_b0(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Build EfficientNet-B0: seven stages of inverted residual blocks with squeeze and excitation.

    Args:
        num_classes: number of logits.
        input_shape: (channels, height, width) of the images.
    """
    from torchvision.models import efficientnet_b0

    model = efficientnet_b0(num_classes=num_classes)
    model.features[0][0] = nn.Conv2d(input_shape[0], 32, 3, padding=1, bias=False)
    depthwise = model.features[2][0].block[1][0]
    depthwise.stride = (1, 1)
    kaiming(model)
    return model
