"""What sparse execution computes at a time: convolutions with what follows them, as units."""

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
    """A convolution or linear layer with what follows it.

    Args:
        name: of its weight among the masks.
        layer: the layer.
        norm: the batch norm behind it, if there is one.
        source: number of the convolution of the same unit whose activation it reads, or -1 - i for
            the unit's input i.
        relu: whether a ReLU follows; only for a convolution that another one of the unit reads.
    """

    name: str
    layer: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm2d | None
    source: int
    relu: bool = True

    def geometry(self) -> tuple[int, int, Sizes, Sizes, Sizes]:
        """Stride, groups, kernel size, padding and dilation."""
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
        return self.layer.weight.shape[0]

    @cached_property
    def input_channels(self) -> int:
        return self.layer.weight.shape[1] * self.geometry()[1]

    @property
    def keeps_size(self) -> bool:
        """Whether the output has the size of the input, up to the stride, which kernels need."""
        _, _, kernel, padding, dilation = self.geometry()
        return all(2 * p == d * (k - 1) for k, p, d in zip(kernel, padding, dilation, strict=True))

    def output_size(self, size: Sizes) -> tuple[int, int]:
        """Height and width of the output for an input of this size."""
        stride = self.geometry()[0]
        return -(-size[0] // stride), -(-size[1] // stride)

    def parameters(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Weight and bias of the layer, scale and shift of the norm."""
        norm = self.norm
        scale, shift = (None, None) if norm is None else (norm.weight, norm.bias)
        return self.layer.weight, self.layer.bias, scale, shift


@dataclass
class Unit:
    """What one autograd function computes: a sum of one or two terms, and a ReLU behind it.

    Args:
        name: of its last node in the traced forward.
        convolutions: in the order of computation.
        terms: of the sum: numbers of convolutions, and -1 - i for the unit's input i.
        relu: whether a ReLU follows the sum.
        inputs: number of input tensors.
        modules: all modules that are computed within the unit, in whatever way.
    """

    name: str
    convolutions: list[Convolution]
    terms: list[int]
    relu: bool
    inputs: int
    modules: list[nn.Module] = field(default_factory=list)

    @property
    def linear(self) -> bool:
        """Whether its tensors are (N, features)."""
        return isinstance(self.convolutions[0].layer, nn.Linear)

    def term_shapes(self, inputs: Sequence[Sequence[int]]) -> set[tuple[int, ...]]:
        """Shapes of the terms of the sum, without the batch, for inputs of these shapes."""
        shapes: list[tuple[int, ...]] = []
        for c in self.convolutions:
            _, *size = inputs[-1 - c.source][1:] if c.source < 0 else shapes[c.source]
            stride = c.geometry()[0]
            shapes.append((c.channels, *(-(-n // stride) for n in size)))
        return {shapes[k] if k >= 0 else tuple(inputs[-1 - k][1:]) for k in self.terms}

    def smallest_plane(self, size: tuple[int, ...]) -> int:
        """Pixels of the smallest output of its convolutions, for inputs of this size."""
        stride = max(c.geometry()[0] for c in self.convolutions)
        return math.prod(-(-n // stride) for n in size)


def hook_tables(module: nn.Module) -> list[Any]:
    """The dictionaries in which a module keeps its hooks: one that is not empty must be called."""
    return [
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    ]
