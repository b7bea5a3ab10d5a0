"""ResNet18 and ResNet50 (He et al. 2015, arXiv 1512.03385, table 1) with a stem for CIFAR.

The networks are those of torchvision. Their stem (a 7x7 convolution with stride 2, then max
pooling) would reduce an image of 32x32 pixels to 8x8, so it is replaced by a 3x3 convolution with
stride 1 without pooling. They have 11.2 and 23.5 million parameters with 10 classes. The last three
stages each halve the height and the width, so images of 8x8 pixels can be processed as well.

The test accuracies on CIFAR-10 are 93.02 % (ResNet18) and 93.62 % (ResNet50) in
github.com/kuangliu/pytorch-cifar. On CIFAR-100 they are 75.61 % and 77.39 % after 200 epochs in
github.com/weiaicunzai/pytorch-cifar100, and 78.35 % for ResNet18 in the raw data of Tanaka et al.
2020 (``ckasr.analysis.references``).
"""

from torch import nn

from .registry import kaiming, register


@register("resnet18")
def resnet18(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Build ResNet18: four stages of two basic blocks, with 64, 128, 256 and 512 channels.

    Args:
        num_classes: number of logits.
        input_shape: (channels, height, width) of the images.
    """
    from torchvision.models import resnet18

    return _for_small_images(resnet18(num_classes=num_classes), input_shape[0])


@register("resnet50")
def resnet50(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Build ResNet50: four stages of three, four, six and three bottleneck blocks.

    The stages have 256, 512, 1024 and 2048 output channels.

    Args:
        num_classes: number of logits.
        input_shape: (channels, height, width) of the images.
    """
    from torchvision.models import resnet50

    return _for_small_images(resnet50(num_classes=num_classes), input_shape[0])


def _for_small_images(model: nn.Module, channels: int) -> nn.Module:
    """Return the model with a stem that keeps the resolution, initialised as in ``resnet.py``."""
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    kaiming(model)
    return model
