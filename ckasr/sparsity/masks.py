"""Masks: which weights of a model are kept, and functions that create and apply masks.

A *mask* is a bool tensor of the shape of its weight, which is True where the weight is kept. Every
weight of `prunable` has a mask; the mask of a dense layer is True everywhere. Biases and the
parameters of norms have no masks.
"""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ckasr.names import nearest

from .densities import Shapes, allocate
from .layers import all_weight_owners, prunable

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer type by the number of bytes of a floating-point type."""


def dense_masks(model: nn.Module) -> "Masks":
    """Return masks that keep every weight of a model."""
    return Masks(
        model, {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(model).items()}
    )


def random_masks(shapes: Shapes, densities: Mapping[str, float], seed: int) -> dict[str, Tensor]:
    """Return random masks with exact numbers of kept weights, on the CPU.

    The weights of each layer are ranked at random, and the first ones are kept. Each layer has its
    own random generator, whose seed depends on ``seed`` and on the name of the layer. The mask of a
    layer therefore does not depend on other layers, on other random numbers or on the device. For
    the same seed, the mask of a lower density is a subset of that of a higher density.

    Args:
        shapes: shape of each weight, by name.
        densities: share of weights to keep, by name, as `layer_densities` returns it. `allocate`
            converts the densities to numbers of weights.
        seed: seed of the masks.

    Raises:
        ValueError: as `allocate`.
    """
    counts = allocate(densities, shapes)
    masks = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(_key(seed, name))
        scores = torch.rand(tuple(shape), generator=generator, dtype=torch.float64)
        masks[name] = _keep_highest(scores, counts[name])
    return masks


def topk_masks(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Return masks that keep the weights with the highest scores of each layer.

    Among equal scores, those with the lowest indices are kept.

    Args:
        scores: score of every weight, by the name of the weight tensor.
        counts: number of weights to keep, by name.

    Raises:
        ValueError: for a NaN score, for a layer without a count, and for a count that is negative
            or larger than the layer.
    """
    for name, score in scores.items():
        _check_scores(name, score)
        if name not in counts:
            raise ValueError(f"no count for layer {name!r}: give one for every score")
        _check_count(counts[name], score.numel(), f"layer {name!r}")
    return {name: _keep_highest(score, counts[name]) for name, score in scores.items()}


def global_topk_masks(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return masks that keep the weights with the highest scores of all layers together.

    Among equal scores, those of the first layers are kept, and within a layer those with the lowest
    indices.

    Args:
        scores: score of every weight, by the name of the weight tensor.
        count: number of weights to keep.

    Raises:
        ValueError: if there are no scores, for a NaN score, and for a count that is negative or
            larger than the number of weights.
    """
    if not scores:
        raise ValueError("no scores: there is no layer to choose weights from")
    for name, score in scores.items():
        _check_scores(name, score)
    flat = torch.cat([score.detach().flatten().double() for score in scores.values()])
    _check_count(count, flat.numel(), "the network")
    parts = _keep_highest(flat, count).split([score.numel() for score in scores.values()])
    return {
        name: part.reshape(score.shape)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }


class Masks(Mapping[str, Tensor]):
    """The masks of a model. `apply` sets the pruned weights to zero after every optimiser step.

    This class is a mapping from the name of a weight to its bool mask. Move the model to its device
    and its memory format before you create the masks. To change a mask, change its tensor in place
    and call `refresh`, or pass new masks to `update`. The addresses of all tensors remain the same,
    so that a CUDA graph that has captured `apply` remains valid.

    If a parameter is replaced by another one of the same shape, for example by
    ``load_state_dict(assign=True)``, the new parameter is masked. If layers have shared a weight
    and no longer do so, the weight of each layer is masked.

    Args:
        model: any module, with or without a wrapper.
        masks: bool mask of every prunable weight, by name. The masks are copied.

    Raises:
        ValueError: for a mask that is missing, that belongs to no weight, that has another shape
            than its weight, or that is not bool.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self.version = 0
        """Number of times that the masks have been set."""
        weights = prunable(model)
        check_masks(weights, masks)
        names = {id(weight): name for name, weight in weights.items()}
        self._owners = [(names[id(owner.weight)], owner) for owner in all_weight_owners(model)]
        self._masks = {
            name: masks[name].to(weight.device, copy=True) for name, weight in weights.items()
        }
        # With factors of the weights' strides and element sizes, one fused kernel multiplies all
        # layers. With bool masks, each layer would need its own kernel.
        self._factors = {
            name: torch.empty_like(weight, dtype=_BITS[weight.element_size()], requires_grad=False)
            for name, weight in weights.items()
        }
        self.refresh()

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    @torch.no_grad()
    def refresh(self) -> None:
        """Use masks that were changed in place. Call this after every change of a mask tensor.

        It does not synchronise with the device.
        """
        self.version += 1
        for name, factor in self._factors.items():
            factor.copy_(self._masks[name])

    @torch.no_grad()
    def update(self, masks: Mapping[str, Tensor]) -> None:
        """Copy new masks into the tensors of this object.

        Args:
            masks: bool masks of some or all weights, by name.

        Raises:
            ValueError: for a mask that belongs to no weight, that has another shape than its
                weight, or that is not bool.
        """
        check_masks({name: self._masks[name] for name in masks if name in self}, masks)
        for name, mask in masks.items():
            self._masks[name].copy_(mask)
        self.refresh()

    @torch.no_grad()
    def apply(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Set the pruned weights, and their entries in the optimiser's state, to zero in place.

        Call this method after every optimiser step, because weight decay and momentum change a
        pruned weight even if its gradient is zero. In the optimiser's state, every tensor of the
        weight's shape is masked, such as the momentum or the moments of Adam. Infinities and NaN
        are also set to zero. The method does not synchronise with the device, so that a CUDA graph
        can capture it.

        Args:
            optimizer: optimiser whose state is masked; None: only the weights are masked.

        Raises:
            ValueError: if a layer no longer has a parameter of the shape of its mask.
        """
        targets: list[Tensor] = []
        factors: list[Tensor] = []
        for weight, name in self._current_weights().items():
            tensors: list[Tensor] = [weight]
            if optimizer is not None:
                tensors += [
                    state
                    for state in optimizer.state.get(weight, {}).values()
                    if isinstance(state, Tensor) and state.shape == weight.shape
                ]
            # The bits are multiplied as integers, because 0 times infinity would be NaN.
            targets += [tensor.view(_BITS[tensor.element_size()]) for tensor in tensors]
            factors += [self._factors[name]] * len(tensors)
        torch._foreach_mul_(targets, factors)

    def _current_weights(self) -> dict[nn.Parameter, str]:
        """Return the present parameters of the layers, with the names of their masks."""
        found: dict[nn.Parameter, str] = {}
        for name, owner in self._owners:
            weight = owner.module._parameters.get(owner.attribute)
            shape = self._masks[name].shape
            if weight is None or weight.shape != shape:
                raise ValueError(
                    f"weight {name!r} is no longer a parameter of shape {tuple(shape)}: "
                    "make new masks for the changed model"
                )
            found[weight] = name
        return found


def check_masks(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless ``masks`` has one bool mask of the right shape for each weight."""
    for name in masks:
        if name not in weights:
            raise ValueError(f"mask for unknown layer {name!r}{nearest(name, weights)}")
    for name, weight in weights.items():
        if name not in masks:
            raise ValueError(f"no mask for layer {name!r}: a dense layer has a mask of ones")
        mask = masks[name]
        if mask.dtype != torch.bool or mask.shape != weight.shape:
            raise ValueError(
                f"mask of layer {name!r} is {mask.dtype} {tuple(mask.shape)}: "
                f"it must be torch.bool {tuple(weight.shape)}"
            )


def _key(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"mask of layer {name}, seed {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _keep_highest(scores: Tensor, count: int) -> Tensor:
    order = torch.argsort(scores.detach().flatten(), descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[:count]] = True
    return mask.reshape(scores.shape)


def _check_scores(name: str, score: Tensor) -> None:
    if torch.isnan(score).any():
        raise ValueError(f"score of layer {name!r} holds NaN: nothing can be ranked by it")


def _check_count(count: int, size: int, what: str) -> None:
    if not 0 <= count <= size:
        raise ValueError(f"{what} cannot keep {count} weights: it has {size}")
