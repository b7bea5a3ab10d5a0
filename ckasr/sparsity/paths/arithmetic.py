"""Sums and products of tensors whose positive entries are those that depend on the input."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .tensors import Clip, Reach, RefusedError, Weight, nonzero, reach, spread

Factors = list[tuple[Tensor, Tensor]]


class Arithmetic:
    """Operations that the rules of `rules` use.

    No value is negative, so that values do not cancel. The gradient of an entry of a mask is then
    positive if and only if a path goes through this weight.

    Args:
        weights: names of the prunable weights, by the id of the parameter.
        constants: meaning of a positive entry. If True, the entry can differ from zero, because of
            the input or because of a constant (a bias, a position embedding). If False, the entry
            depends on the input.
        factors: list of the factors of each product of two tensors that depend on the input. The
            entries of a factor are 1 where it can differ from zero. The list is needed because a
            product depends on one factor only where the other factor is not zero. A forward pass
            with ``constants=True`` appends to the list, and the next one with ``constants=False``
            reads it.
    """

    def __init__(self, weights: Mapping[int, str], constants: bool, factors: Factors) -> None:
        self.constants = constants
        self.positions = dict.fromkeys(weights.values(), 0)
        """For each weight, the number of output entries that one of its rows contributes to."""
        self.last = ""
        """Name of the last weight that was used."""
        self._weights, self._factors, self._products = weights, factors, 0

    def weight_name(self, value: Any) -> str | None:
        """Return the name of a prunable weight; None for any other value."""
        return value.name if isinstance(value, Weight) else self._weights.get(id(value))

    def use(self, weight: Any, output: Tensor, dim: int) -> None:
        """Record that an output was computed with a weight.

        Args:
            weight: the weight.
            output: the output.
            dim: dimension of the weight that corresponds to output units.
        """
        if name := self.weight_name(weight):
            self.positions[name] += output.numel() // weight.shape[dim]
            self.last = name

    def term(self, value: Any) -> Tensor:
        """Return the contribution of a value to a sum. Raises RefusedError for an infinity."""
        if isinstance(value, Reach):
            return value
        if self.weight_name(value):
            raise RefusedError("adds a layer's weight to what depends on the input")
        value = torch.as_tensor(value, device="cpu")
        if torch.isinf(value).any():
            raise RefusedError(
                "adds an infinity, or fills by it: scaled_dot_product_attention can mask"
            )
        return nonzero(value) * float(self.constants)

    def factor(self, value: Any) -> Tensor:
        """Return the contribution of a value to a product."""
        if isinstance(value, Reach):
            return Clip.apply(value)
        return value if self.weight_name(value) else nonzero(torch.as_tensor(value, device="cpu"))

    def product(self, func: Callable[[Any, Any], Tensor], x: Any, y: Any) -> Tensor:
        """Return the result of a bilinear function of x and y."""
        both = isinstance(x, Reach) and isinstance(y, Reach)
        x, y = self.factor(x), self.factor(y)
        if not both:
            return func(x, y)
        if self.constants:
            self._factors.append((x.detach(), y.detach()))
            return func(x, y)
        nonzero_x, nonzero_y = self._factors[self._products]
        self._products += 1
        return func(x, nonzero_y) + func(nonzero_x, y)

    def plus_constant(self, x: Tensor) -> Tensor:
        """Return the sum of a value and a constant that is not zero."""
        return x + 1 if self.constants else x

    def normalised(self, x: Tensor, dims: Sequence[int], shifted: bool) -> Tensor:
        """Return the result of a normalisation: each value depends on all values.

        Args:
            x: the values.
            dims: dimensions over which the values are normalised.
            shifted: whether a bias is added.
        """
        result = spread(x, dims)
        if all(x.shape[dim] == 1 for dim in dims):
            result = result * 0  # a single value is normalised to a constant
        return self.plus_constant(result) if shifted else result

    def divided(self, x: Tensor, by: Tensor) -> Tensor:
        """Return ``x / (by + epsilon)``, which is zero where ``x`` is zero."""
        return self.product(torch.mul, x, reach(self.plus_constant(by).expand_as(x)))
