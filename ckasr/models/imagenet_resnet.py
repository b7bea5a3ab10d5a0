"""ResNet18 and ResNet50 (He et al. 2015, arXiv 1512.03385, table 1) with a stem for CIFAR.

The networks are torchvision's. Their stem (7x7 convolution with stride 2, then max pooling) would
reduce an image of 32x32 pixels to 8x8; a 3x3 convolution with stride 1 and no pooling takes its
place. They have 11.2 and 23.5 million parameters with 10 classes. Images of 8x8 pixels fit: each of
the last three stages halves the image.

Test accuracy on CIFAR-10: 93.02 % (ResNet18) and 93.62 % (ResNet50), github.com/kuangliu/
pytorch-cifar. On CIFAR-100: 75.61 % and 77.39 %, github.com/weiaicunzai/pytorch-cifar100 (200
epochs); 78.35 % for ResNet18 in the raw data of Tanaka et al. 2020 (``ckasr.analysis.references``).
"""

from torch import nn

from .registry import kaiming, register


@register("resnet18")
def resnet18(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Four stages of two basic blocks, widths 64 to 512."""
    from torchvision.models import resnet18

    return _for_small_images(resnet18(num_classes=num_classes), input_shape[0])


@register("resnet50")
def resnet50(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Four stages of three, four, six and three bottleneck blocks, widths 256 to 2048."""
    from torchvision.models import resnet50

    return _for_small_images(resnet50(num_classes=num_classes), input_shape[0])


def _for_small_images(model: nn.Module, channels: int) -> nn.Module:
    """The model with a stem that keeps the resolution, initialised as the CIFAR ResNets are."""
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    kaiming(model)
    return model
