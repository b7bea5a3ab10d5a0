"""`sparse_execution`: compute a masked network with kernels that use only the kept weights."""

import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ckasr.sparsity import prunable
from ckasr.sparsity.layers import unwrapped
from ckasr.sparsity.masks import check_masks

if TYPE_CHECKING:
    from .bound import BoundUnit
    from .unit import Convolution, Unit


STORAGES = ("float32", "bfloat16")


class SparseExecution:
    """Handle of a model under sparse execution; see :func:`sparse_execution`."""

    def __init__(
        self, model: nn.Module, masks: Mapping[str, Tensor], storage: str = "float32"
    ) -> None:
        if storage not in STORAGES:
            raise ValueError(f"storage {storage!r} is unknown: choose {', '.join(STORAGES)}")
        model = unwrapped(model)
        weights = prunable(model)
        check_masks(weights, masks)
        self.model = model
        self.storage = storage
        self._masks = masks
        self._forwards: list[_Forward] = []
        self.units: list[BoundUnit] = []
        self.followed: set[str] = set()
        """Names of the masked weights that the kernels compute with."""
        self.dense: list[str] = []
        """Names of the masked weights whose layers are computed by PyTorch."""
        try:
            import numba  # noqa: F401
        except ModuleNotFoundError:
            warnings.warn(
                "sparse execution needs numba (pip install 'ckasr[sparse]'): this model runs dense",
                RuntimeWarning,
                stacklevel=3,
            )
        else:
            self._bind()
        self.dense = [name for name in weights if name not in self.followed]

    @property
    def enabled(self) -> bool:
        """Whether the sparse kernels are used. Set it to False for a dense forward and backward."""
        return bool(self.units) and self._workspace.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if self.units:
            self._workspace.enabled = value

    def update(self, masks: Mapping[str, Tensor] | None = None) -> None:
        """Replace the masks, or free the memory of masks that have changed in place.

        Call it between a backward and the next forward. The next forward prepares the kernels for
        the new masks.

        Args:
            masks: new masks; None if the masks of the handle were changed in place.

        Raises:
            ValueError: as :func:`sparse_execution`.
        """
        if masks is not None:
            check_masks(prunable(self.model), masks)
            self._masks = masks
        if self.units:
            self._workspace.forget()

    def remove(self) -> None:
        """Restore the original ``forward`` of every module, and free all memory."""
        for forward in self._forwards:
            if forward.module.__dict__.get("forward") is forward:
                del forward.module.forward
        if self.units:
            self._workspace.forget()
        self._forwards, self.units = [], []

    def __enter__(self) -> "SparseExecution":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        lines = [f"SparseExecution of {type(self.model).__name__}"]
        for bound in self.units:
            names = ", ".join(c.name.removesuffix(".weight") for c in bound.unit.convolutions)
            late = f" ({bound.plain_calls} calls ran dense)" if bound.plain_calls else ""
            lines.append(f"  sparse: {names}{late}")
        lines += [f"  as before: {name.removesuffix('.weight')}" for name in self.dense]
        return "\n".join(lines)

    def _bind(self) -> None:
        """Find the units of the model, compile the kernels, and replace the forwards of modules."""
        from .bound import BoundUnit
        from .compiling import compile_kernels
        from .pool import BoundPool
        from .trace import Found, follow, inlined, rewritten
        from .workspace import Workspace

        found: list[tuple[nn.Module, str, dict[bool, Found]]] = []
        for name, module in _composites(self.model):
            parent = name.rpartition(".")[0]
            if name and inlined(module) and any(parent == other for _, other, _ in found):
                continue
            prefix = f"{name}." if name else ""
            both: dict[bool, Found] = {}
            training = module.training
            for mode in (True, False):
                module.training = mode  # its forward may depend on the mode
                if (graph := follow(module, prefix, self._masks.keys())) is not None:
                    both[mode] = graph
            module.training = training
            if len(both) == 2:
                found.append((module, name, both))
        units = [
            unit
            for _, _, both in found
            for graph in both.values()
            for unit, _ in graph.units.values()
        ]
        if not units:
            return
        half = self.storage == "bfloat16"
        self._workspace = Workspace(lambda name: self._masks[name], _border(units), half)
        bound: dict[tuple[str, ...], BoundUnit] = {}

        def bind(unit: "Unit") -> BoundUnit:
            # The graphs of train and eval mode contain the same unit.
            key = unit.name, *(c.name for c in unit.convolutions)
            if key not in bound:
                bound[key] = BoundUnit(unit, self._workspace)
                self.units.append(bound[key])
                self.followed.update(c.name for c in unit.convolutions)
            return bound[key]

        pool = partial(BoundPool, self._workspace)
        for module, _, both in found:
            modes = {mode: rewritten(graph, bind, pool) for mode, graph in both.items()}
            forward = _Forward(module, modes)
            module.forward = forward
            self._forwards.append(forward)
        for dtype in {c.layer.weight.dtype for unit in units for c in unit.convolutions}:
            compile_kernels(dtype, half and dtype == torch.float32)


class _Forward:
    """Replacement of a module's ``forward``. Copies and pickles of the module have the original."""

    def __init__(self, module: nn.Module, modes: dict[bool, Callable[..., Any]]) -> None:
        self.module = module
        self.modes = modes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.modes[self.module.training](*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = memo.get(id(self.module), self.module)
        return types.MethodType(type(self.module).forward, copy)

    def __reduce__(self) -> Any:
        return getattr, (self.module, "forward")  # unpickled before the module has an attribute


def sparse_execution(
    model: nn.Module, masks: Mapping[str, Tensor], storage: str = "float32"
) -> SparseExecution:
    """Compute the masked convolutions and linear layers of a model with their kept weights only.

    CPU kernels replace the forward and backward of all supported parts of the model, until
    ``remove()`` is called or the ``with`` block ends. The cost of the kernels is proportional to
    the number of kept weights. Supported are convolutions (any stride, dilation and groups, with
    "same" padding) and linear layers, together with the batch norms, ReLUs and sums of two tensors
    that follow them. All other parts are computed by PyTorch; the ``repr`` of the handle lists both
    kinds of layers.

    Up to rounding, outputs and gradients are those of the dense network whose pruned weights are
    zero, in train mode and in eval mode, for float32 and float64. The parameters, buffers, state
    dict and hooks of the model and the optimiser are not replaced.

    Args:
        model: any module on the CPU. Its pruned weights count as zero, whatever their values are.
        masks: bool mask of every prunable weight, by name, as in :class:`ckasr.sparsity.Masks`.
            Masks may be changed in place. ``handle.update()`` replaces them, and frees the memory
            of the old masks.
        storage: ``"float32"`` or ``"bfloat16"``, the type in which internal tensors of float32
            models are stored: outputs of convolutions before their batch norm, and gradients
            between two convolutions of a block. ``"bfloat16"`` needs half the memory for them and
            is faster, but less accurate. Arithmetic, statistics and all tensors that PyTorch
            receives are float32.

    Returns:
        A handle with the methods ``update`` and ``remove``; it is also a context manager.

    Raises:
        ValueError: if a mask is missing, belongs to no weight, has another shape than its weight,
            or is not bool, or if the storage is unknown.

    Notes:
        The gradients of pruned weights are zero. A method that needs them (RigL) must set
        ``handle.enabled = False`` for a step. At the output of a ReLU, a hook receives a gradient
        that is zero wherever the output is zero. A block runs on PyTorch if a layer inside it has
        hooks. The package numba is needed (``pip install 'ckasr[sparse]'``); without it, a
        RuntimeWarning is issued and the model is computed densely.
    """
    return SparseExecution(model, masks, storage)


def _composites(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that contain a convolution or linear layer."""
    for name, module in model.named_modules():
        kinds = (nn.Conv2d, nn.Linear)
        below = any(isinstance(m, kinds) for m in module.modules() if m is not module)
        if below and not isinstance(module, torch.jit.ScriptModule):
            yield name, module


def _border(units: "list[Unit]") -> int:
    """Return the number of zeros between the rows of planes: the largest shift of a convolution."""
    return max((_shift(c) for unit in units for c in unit.convolutions), default=0)


def _shift(convolution: "Convolution") -> int:
    """Return the largest shift of a convolution, in rows or columns of the planes it reads."""
    stride, _, kernel, padding, dilation = convolution.geometry()
    reach = [
        max(-(-p // stride), (d * (k - 1) - p) // stride)
        for k, p, d in zip(kernel, padding, dilation, strict=True)
    ]
    return max(reach)
