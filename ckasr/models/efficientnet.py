"""EfficientNet-B0 (Tan & Le 2019, arXiv 1905.11946, table 1) with the strides for CIFAR.

The network is torchvision's, with stride 1 instead of 2 in the stem and in the second stage, as in
`mobilenet_v2`: an image of 32x32 pixels is reduced to 4x4. (At 2x2, the outer weights of the 5x5
kernels would see nothing but padding.) Dropout and stochastic depth (0.2 each) are the paper's. It
has 4.0 million parameters with 10 classes.

Test accuracy, trained on CIFAR from scratch: not known. The paper's 98.1 % on CIFAR-10 (table 5) is
of a network trained on ImageNet and fine-tuned on enlarged images.
"""

from torch import nn

from .registry import kaiming, register


@register("efficientnet_b0")
def efficientnet_b0(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Seven stages of inverted residual blocks with squeeze and excitation."""
    from torchvision.models import efficientnet_b0

    model = efficientnet_b0(num_classes=num_classes)
    model.features[0][0] = nn.Conv2d(input_shape[0], 32, 3, padding=1, bias=False)
    depthwise = model.features[2][0].block[1][0]
    depthwise.stride = (1, 1)
    kaiming(model)
    return model
