"""The prunable weights of a model, which sparsity counts, and their names."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Input projections, which are parameters of nn.MultiheadAttention. Its output projection is a
linear layer."""
_UNSUPPORTED = (
    nn.modules.conv._ConvTransposeNd,
    nn.RNNBase,
    nn.RNNCellBase,
    torch.jit.ScriptModule,
)
_WRAPPERS = (
    nn.DataParallel,
    nn.parallel.DistributedDataParallel,
    torch.optim.swa_utils.AveragedModel,
)
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


class WeightOwner(NamedTuple):
    """The module and the attribute that contain a weight: ``getattr(module, attribute)``."""

    layer: str
    """Name of the module, without wrappers; an empty string for the model itself."""
    module: nn.Module
    attribute: str
    """``"weight"``, except for the input projections of nn.MultiheadAttention."""

    @property
    def name(self) -> str:
        """Name of the weight, as in ``model.named_parameters()``."""
        return f"{self.layer}.{self.attribute}" if self.layer else self.attribute

    @property
    def weight(self) -> nn.Parameter:
        """The parameter at present. Raises ValueError if it has been removed from the module."""
        weight = self.module._parameters.get(self.attribute)
        if weight is None:
            raise ValueError(
                f"weight {self.name!r} is no longer a parameter of its layer: call prunable() or "
                "weight_owners() again after a change of the model"
            )
        return weight


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of convolutions and of linear, bilinear and attention layers.

    Sparsity counts these weights. If several layers share a weight, it appears once, under the name
    of the first layer. The weights of nn.MultiheadAttention are its output projection and its input
    projections (``in_proj_weight``, or three weights if keys or values have another width).
    Embeddings do not count, because they are look-up tables. The weights of custom modules that do
    not use these layers cannot be recognised and do not count.

    Args:
        model: any module. Wrappers (DataParallel, DistributedDataParallel, AveragedModel,
            torch.compile) around the model and inside it are removed first.

    Returns:
        The weights by name, in the order of ``model.named_modules()``. The names are those of
        ``model.named_parameters()`` without the prefixes of wrappers, so that they are the same
        with and without a wrapper.

    Raises:
        ValueError: for a weight that is not a plain parameter (torch.nn.utils.prune and
            parametrize replace it), for a lazy layer that is not initialised yet, and for
            transposed convolutions, recurrent layers and scripted modules, which are not supported.
            The message contains the name of the layer.
    """
    return {name: owner.weight for name, owner in weight_owners(model).items()}


def weight_owners(model: nn.Module) -> dict[str, WeightOwner]:
    """Return the layer of each prunable weight, or the first of several layers that share it.

    This function maps the name of a weight to its layer and to the attribute, which is not always
    ``weight``. Keys, order and errors are those of `prunable`.
    """
    owners: dict[int, WeightOwner] = {}
    for owner in all_weight_owners(model):
        owners.setdefault(id(owner.weight), owner)
    return {owner.name: owner for owner in owners.values()}


def all_weight_owners(model: nn.Module) -> Iterator[WeightOwner]:
    """Yield the owners of all prunable weights; a shared weight has several owners."""
    for path, module in _named_modules(unwrapped(model), "", set()):
        for attribute in _weight_attributes(path, module):
            yield WeightOwner(path, module, attribute)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model without wrappers.

    The wrappers are DataParallel, DistributedDataParallel, AveragedModel and torch.compile.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(inner, nn.Module):
            model = inner
        elif isinstance(model, _WRAPPERS):
            model = model.module
        else:
            return model


def default_input_shape(model: nn.Module) -> tuple[int, ...]:
    """Return the shape of one input, from the first layer of the model.

    For a linear layer it is the number of inputs. For a 2-d convolution, an image of 32 x 32 pixels
    is assumed.

    Raises:
        ValueError: for any other first layer.
    """
    layers = (m for m in model.modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear)))
    first = next(layers, model)
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    if isinstance(first, nn.Conv2d):
        return (first.in_channels, 32, 32)
    raise ValueError(f"give input_shape: it cannot be told from a {type(first).__name__}")


def memo_without_hooks(model: nn.Module) -> dict[int, object]:
    """Return a memo with which ``copy.deepcopy`` copies the model without its hooks.

    The closure of a hook can contain a tensor of an autograd graph, which cannot be copied.
    """
    return {
        id(hooks): type(hooks)()
        for module in model.modules()
        for hooks in (getattr(module, kind) for kind in _HOOKS)
    }


def _named_modules(
    module: nn.Module, path: str, seen: set[nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    """Yield names and modules as ``named_modules()``, but without the wrappers inside the model."""
    if module in seen:
        return
    seen.add(module)
    yield path, module
    for name, child in module.named_children():
        yield from _named_modules(unwrapped(child), f"{path}.{name}" if path else name, seen)


def _weight_attributes(path: str, module: nn.Module) -> list[str]:
    """Return the names of the prunable weights among a module's own parameters."""
    called = f"layer {path!r}" if path else "the model"
    if isinstance(module, _UNSUPPORTED):
        raise ValueError(
            f"{called} is a {type(module).__name__}, whose weights are not supported: "
            "sparsity counts convolutions, linear and bilinear layers, and nn.MultiheadAttention"
        )
    if isinstance(module, nn.MultiheadAttention):
        candidates: tuple[str, ...] = _ATTENTION
    elif isinstance(module, (*CONVOLUTIONS, nn.Linear, nn.Bilinear)):
        candidates = ("weight",)
    else:
        return []
    attributes = [name for name in candidates if module._parameters.get(name) is not None]
    if not attributes:
        raise ValueError(
            f"{called} has no plain weight parameter: undo its pruning or parametrisation first"
        )
    if isinstance(module._parameters[attributes[0]], nn.parameter.UninitializedParameter):
        raise ValueError(f"{called} is not initialised yet: run the model on a batch first")
    return attributes
