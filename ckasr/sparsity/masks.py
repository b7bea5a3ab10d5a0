"""Which weights live: drawing masks, and holding a model to them.

A *mask* is a bool tensor of its weight's shape, True where the weight stays. Masks cover every
weight that `prunable` names (a layer left dense has a mask of ones); biases and norms are never
masked.
"""

import difflib
import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from .densities import Shapes, allocate

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""The projections that nn.MultiheadAttention holds itself; the output's is a layer of its own."""
_REFUSED = (nn.modules.conv._ConvTransposeNd, nn.RNNBase, nn.RNNCellBase, torch.jit.ScriptModule)
_WRAPPERS = (
    nn.DataParallel,
    nn.parallel.DistributedDataParallel,
    torch.optim.swa_utils.AveragedModel,
)
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""An integer type of as many bytes as a floating-point type."""


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that sparsity counts: of every convolution, linear, bilinear and attention layer.

    A key is the parameter's name in ``model.named_parameters()``, without what wrappers
    (DataParallel, DistributedDataParallel, AveragedModel, torch.compile) put before it, so that a
    wrapped model has the names of the model itself. The order is that of ``named_modules()``. A
    weight that several layers share appears once, under the name of the first of them. Of
    nn.MultiheadAttention the input projections count (``in_proj_weight``, or three weights where
    keys or values have another width) and the output projection. Embeddings are look-up tables
    and do not count.

    Raises ValueError, with the layer's name, for a layer whose weight is no plain parameter
    (torch.nn.utils.prune and parametrize replace it) or is not initialised yet (lazy layers), and
    for transposed convolutions, recurrent layers and scripted modules, which are not supported.
    Weights
    that a module of another kind holds and multiplies by itself cannot be seen, and do not count.
    """
    weights: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for path, module in _named_modules(unwrapped(model), "", set()):
        for attribute in _attributes(path, module):
            weight = module._parameters[attribute]
            if id(weight) not in seen:
                seen.add(id(weight))
                weights[f"{path}.{attribute}" if path else attribute] = weight
    return weights


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel, AveragedModel and torch.compile."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, _WRAPPERS):
            model = model.module
        else:
            return model


def _named_modules(
    module: nn.Module, path: str, seen: set[nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    """As ``module.named_modules()``, but wrappers within the model leave no trace in the names."""
    if module in seen:
        return
    seen.add(module)
    yield path, module
    for name, child in module.named_children():
        yield from _named_modules(unwrapped(child), f"{path}.{name}" if path else name, seen)


def _attributes(path: str, module: nn.Module) -> list[str]:
    """Which of a module's own parameters are weights that count."""
    if isinstance(module, _REFUSED):
        raise ValueError(
            f"{_called(path)} is a {type(module).__name__}, whose weights are not supported: "
            "sparsity counts convolutions, linear and bilinear layers, and nn.MultiheadAttention"
        )
    if isinstance(module, nn.MultiheadAttention):
        attributes = [name for name in _ATTENTION if module._parameters.get(name) is not None]
        if not attributes:
            raise ValueError(_no_parameter(path))
        return attributes
    if not isinstance(module, (*CONVOLUTIONS, nn.Linear, nn.Bilinear)):
        return []
    weight = module._parameters.get("weight")
    if weight is None:
        raise ValueError(_no_parameter(path))
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(f"{_called(path)} is not initialised yet: run the model on a batch first")
    return ["weight"]


def _no_parameter(path: str) -> str:
    return (
        f"{_called(path)} has no plain weight parameter: undo its pruning or parametrisation first"
    )


def _called(path: str) -> str:
    return f"layer {path!r}" if path else "the model"


def dense_masks(model: nn.Module) -> "Masks":
    """Masks of ones: where every method starts."""
    return Masks(
        model, {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(model).items()}
    )


def random_masks(shapes: Shapes, densities: Mapping[str, float], seed: int) -> dict[str, Tensor]:
    """Random masks with exact counts (`allocate`), on the CPU.

    Each layer ranks its weights by its own generator, keyed by the seed and the layer's name, and
    keeps the first ones. So the ranking depends on no other layer, on no other random draw and on
    no device, and the masks of one seed are nested: a sparser one is a subset of a denser one.
    Raises ValueError as `allocate` does.
    """
    counts = allocate(densities, shapes)
    masks = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(_key(seed, name))
        scores = torch.rand(tuple(shape), generator=generator, dtype=torch.float64)
        masks[name] = _keep_highest(scores, counts[name])
    return masks


def topk_masks(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Masks that keep each layer's `counts[name]` highest scores; ties go to the first index.

    Raises ValueError for a NaN score, a layer without count, or a count the layer cannot hold.
    """
    for name, score in scores.items():
        _check_scores(name, score)
        if name not in counts:
            raise ValueError(f"no count for layer {name!r}: give one for every score")
        _check_count(counts[name], score.numel(), f"layer {name!r}")
    return {name: _keep_highest(score, counts[name]) for name, score in scores.items()}


def global_topk_masks(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Masks that keep the `count` highest scores of all layers together.

    Ties go to the layer that comes first, and in it to the first index. Raises ValueError for no
    scores, a NaN score, or a count that the network cannot hold.
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
    """The masks of a model, and what holds its weights to them.

    Built once the model is on its device and in its memory format; reads as a mapping from name
    to bool mask. Those bool tensors are the truth. A method that moves weights (RigL, SET, GMP)
    changes them in place and calls `refresh`, or hands new ones to `update`: every tensor keeps
    its address, so a captured CUDA graph of the step stays valid.

    Where a layer's parameter is replaced by another of the same shape (as by
    ``load_state_dict(assign=True)``), its mask holds for the new one; layers that shared a weight
    keep its mask even if they share it no longer.

    Raises ValueError for a mask that is missing, unknown, of another shape, or not bool.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self.version = 0
        """Counts the changes of the masks."""
        weights = prunable(model)
        check_masks(weights, masks)
        names = {id(weight): name for name, weight in weights.items()}
        # Every module that holds a weight of ours: two or more where they share it.
        self._holders = [
            (names[id(module._parameters[attribute])], module, attribute)
            for path, module in _named_modules(unwrapped(model), "", set())
            for attribute in _attributes(path, module)
        ]
        self._masks = {
            name: masks[name].to(weight.device, copy=True) for name, weight in weights.items()
        }
        # Multiplied into the weights: a product of equal strides and bytes is one fused kernel
        # over all layers, a product with a bool is one kernel a layer.
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
        """Take over bool masks that were changed in place; no host synchronisation."""
        self.version += 1
        for name, factor in self._factors.items():
            factor.copy_(self._masks[name])

    @torch.no_grad()
    def update(self, masks: Mapping[str, Tensor]) -> None:
        """Copy new masks, for all layers or some, into the ones that are held."""
        check_masks({name: self._masks[name] for name in masks if name in self}, masks)
        for name, mask in masks.items():
            self._masks[name].copy_(mask)
        self.refresh()

    @torch.no_grad()
    def apply(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Zero the pruned weights, and their entries in the optimiser's state, in place.

        To be called after every optimiser step: weight decay and momentum move a pruned weight
        even where its gradient is zero. Any state tensor of the weight's shape is masked
        (momentum, Adam's moments). Pruned entries become zero whatever they were, infinities and
        NaN included. No host synchronisation, fit for capture in a CUDA graph. Raises ValueError
        where a layer no longer has a parameter of its mask's shape.
        """
        targets: list[Tensor] = []
        factors: list[Tensor] = []
        for name, weight in self._weights():
            tensors = [weight]
            if optimizer is not None:
                tensors += [
                    state
                    for state in optimizer.state.get(weight, {}).values()
                    if isinstance(state, Tensor) and state.shape == weight.shape
                ]
            # Their bits as integers, as 0 times infinity is NaN, but 0 times any integer is 0.
            targets += [tensor.view(_BITS[tensor.element_size()]) for tensor in tensors]
            factors += [self._factors[name]] * len(tensors)
        torch._foreach_mul_(targets, factors)

    def _weights(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that the layers hold now, each with the name of its mask."""
        found: dict[nn.Parameter, str] = {}
        for name, module, attribute in self._holders:
            weight = module._parameters.get(attribute)
            if weight is None or weight.shape != self._masks[name].shape:
                raise ValueError(
                    f"weight {name!r} is no longer a parameter of shape "
                    f"{tuple(self._masks[name].shape)}: make new masks for the changed model"
                )
            found[weight] = name
        return [(name, weight) for weight, name in found.items()]


def check_masks(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `masks` holds one bool mask of the right shape for each weight."""
    for name in masks:
        if name not in weights:
            near = difflib.get_close_matches(name, weights, n=3) or list(weights)[:3]
            raise ValueError(
                f"mask for unknown layer {name!r}: the nearest names are {', '.join(near)}"
            )
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
