"""Units of sparse execution: convolutions with the batch norms, sums and ReLUs that follow them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn

Indices = np.ndarray  # int64, one-dimensional
Sizes = tuple[int, ...]


@dataclass
class Convolution:
    """A convolution or linear layer of a unit, with its batch norm and ReLU.

    Args:
        name: name of its weight, as in the masks.
        layer: the layer.
        norm: the batch norm after it, or None.
        source: index of the convolution of the same unit whose activation it reads, or -1 - i if it
            reads input i of the unit.
        relu: whether a ReLU follows. This is used only if another convolution of the unit reads the
            activation.
    """

    name: str
    layer: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm2d | None
    source: int
    relu: bool = True

    def geometry(self) -> tuple[int, int, Sizes, Sizes, Sizes]:
        """Return stride, groups, kernel size, padding and dilation."""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return 1, 1, (1, 1), (0, 0), (1, 1)
        padding = layer.padding
        if isinstance(padding, str):
            half = [
                d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
            ]
            padding = (half[0], half[1]) if padding == "same" else (0, 0)
        return layer.stride[0], layer.groups, layer.kernel_size, padding, layer.dilation

    @cached_property
    def channels(self) -> int:
        """Number of output channels."""
        return self.layer.weight.shape[0]

    @cached_property
    def input_channels(self) -> int:
        """Number of input channels."""
        return self.layer.weight.shape[1] * self.geometry()[1]

    @property
    def keeps_size(self) -> bool:
        """Whether the output has the size of the input divided by the stride.

        The kernels support only such convolutions.
        """
        _, _, kernel, padding, dilation = self.geometry()
        return all(2 * p == d * (k - 1) for k, p, d in zip(kernel, padding, dilation, strict=True))

    def output_size(self, size: Sizes) -> tuple[int, int]:
        """Return the height and width of the output for an input of this height and width."""
        stride = self.geometry()[0]
        return -(-size[0] // stride), -(-size[1] // stride)

    def parameters(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Return weight and bias of the layer, and scale and shift of the norm; None if absent."""
        norm = self.norm
        scale, shift = (None, None) if norm is None else (norm.weight, norm.bias)
        return self.layer.weight, self.layer.bias, scale, shift


@dataclass
class Unit:
    """A part of a forward pass that one autograd function computes.

    The output is a sum of one or two terms, optionally with a ReLU.

    Args:
        name: name of its last node in the traced forward.
        convolutions: convolutions in the order of computation.
        terms: terms of the sum: an index of a convolution, or -1 - i for input i of the unit.
        relu: whether a ReLU follows the sum.
        inputs: number of input tensors.
        modules: all modules whose computation is part of the unit.
    """

    name: str
    convolutions: list[Convolution]
    terms: list[int]
    relu: bool
    inputs: int
    modules: list[nn.Module] = field(default_factory=list)

    @property
    def linear(self) -> bool:
        """Whether the tensors of the unit are (N, features) instead of (N, C, H, W)."""
        return isinstance(self.convolutions[0].layer, nn.Linear)

    def term_shapes(self, inputs: Sequence[Sequence[int]]) -> set[tuple[int, ...]]:
        """Return the shapes of the terms, without the batch dimension, for these input shapes."""
        shapes: list[tuple[int, ...]] = []
        for c in self.convolutions:
            _, *size = inputs[-1 - c.source][1:] if c.source < 0 else shapes[c.source]
            stride = c.geometry()[0]
            shapes.append((c.channels, *(-(-n // stride) for n in size)))
        return {shapes[k] if k >= 0 else tuple(inputs[-1 - k][1:]) for k in self.terms}

    def smallest_plane(self, size: tuple[int, ...]) -> int:
        """Return the number of pixels of the smallest convolution output, for this input size."""
        stride = max(c.geometry()[0] for c in self.convolutions)
        return math.prod(-(-n // stride) for n in size)


def hook_tables(module: nn.Module) -> list[Any]:
    """Return the dictionaries of a module's hooks. A module without hooks has only empty ones."""
    return [
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    ]
