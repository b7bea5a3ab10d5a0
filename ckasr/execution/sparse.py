"""`sparse_execution`: a masked network computed by kernels that visit only the kept weights."""

import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ckasr.sparsity import prunable
from ckasr.sparsity.masks import check_masks, unwrapped

if TYPE_CHECKING:
    from .bound import BoundUnit
    from .unit import Convolution, Unit


class SparseExecution:
    """Handle of a model under sparse execution; see :func:`sparse_execution`."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        model = unwrapped(model)
        weights = prunable(model)
        check_masks(weights, masks)
        self.model = model
        self._masks = masks
        self._forwards: list[_Forward] = []
        self.units: list[BoundUnit] = []
        self.followed: set[str] = set()
        """Names of the masked weights that the kernels compute with."""
        self.dense: list[str] = []
        """Names of the masked weights whose layers run as before."""
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
        """Set to False for a dense forward, as a method needs that reads all gradients."""
        return bool(self.units) and self._workspace.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if self.units:
            self._workspace.enabled = value

    def update(self, masks: Mapping[str, Tensor] | None = None) -> None:
        """Take over new masks, or (None) forget what belongs to masks that have changed since.

        Plans are made anew at the next forward. Between a forward and its backward the masks must
        not change. Raises ValueError as :func:`sparse_execution` does.
        """
        if masks is not None:
            check_masks(prunable(self.model), masks)
            self._masks = masks
        if self.units:
            self._workspace.forget()

    def remove(self) -> None:
        """Give every module its own forward back and let go of all memory."""
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
        from .bound import BoundUnit
        from .compiling import compile_kernels
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
                module.training = mode  # of this module alone: its own forward may ask
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
        self._workspace = Workspace(lambda name: self._masks[name], _border(units))
        bound: dict[tuple[str, ...], BoundUnit] = {}

        def bind(unit: "Unit") -> BoundUnit:
            # The same unit occurs in the graphs of both modes.
            key = unit.name, *(c.name for c in unit.convolutions)
            if key not in bound:
                bound[key] = BoundUnit(unit, self._workspace)
                self.units.append(bound[key])
                self.followed.update(c.name for c in unit.convolutions)
            return bound[key]

        for module, _, both in found:
            forward = _Forward(module, {mode: rewritten(g, bind) for mode, g in both.items()})
            module.forward = forward
            self._forwards.append(forward)
        for dtype in {c.layer.weight.dtype for unit in units for c in unit.convolutions}:
            compile_kernels(dtype)


class _Forward:
    """What a module's ``forward`` is while it is bound; copies and pickles have their own again."""

    def __init__(self, module: nn.Module, modes: dict[bool, Callable[..., Any]]) -> None:
        self.module = module
        self.modes = modes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.modes[self.module.training](*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = memo.get(id(self.module), self.module)
        return types.MethodType(type(self.module).forward, copy)

    def __reduce__(self) -> Any:
        return getattr, (self.module, "forward")  # of a module that has no forward of its own yet


def sparse_execution(model: nn.Module, masks: Mapping[str, Tensor]) -> SparseExecution:
    """Let the masked convolutions and linear layers of a model compute with kept weights alone.

    From then on, and until ``remove()`` (or the end of a ``with`` block), forward and backward of
    whatever part of the model can be followed run on the CPU by kernels whose cost grows with the
    number of kept weights: convolutions (any stride, dilation and groups, with "same" padding),
    linear layers, the batch norms, ReLUs and sums of two behind them. Everything else runs as
    before; ``repr`` of the handle says which is which. The mathematics is that of the dense network
    with its pruned weights at zero, in train and in eval mode, for float32 and float64. Parameters,
    buffers, state dict, optimiser and hooks stay the model's own.

    Args:
        model: any module on the CPU. Its pruned weights count as zero, whatever they hold.
        masks: bool mask of every prunable weight by name, as :class:`ckasr.sparsity.Masks` holds
            them. Masks that change in place are noticed; ``handle.update()`` takes others, and
            lets go of the memory of the old ones.

    Returns:
        the handle.

    Raises:
        ValueError: for a mask that is missing, unknown, of another shape, or not bool.

    Notes:
        Gradients of pruned weights are zero; a method that needs them (RigL) takes a dense step.
        The gradient that a hook sees at the output of a ReLU is zero where the ReLU is. Layers
        inside whose own hooks are set run as before. Needs numba (``pip install 'ckasr[sparse]'``);
        without it, a warning says so and the model runs dense.
    """
    return SparseExecution(model, masks)


def _composites(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with a forward of their own that have a convolution or linear layer below them."""
    for name, module in model.named_modules():
        kinds = (nn.Conv2d, nn.Linear)
        below = any(isinstance(m, kinds) for m in module.modules() if m is not module)
        if below and not isinstance(module, torch.jit.ScriptModule):
            yield name, module


def _border(units: "list[Unit]") -> int:
    """Zeros between the rows of planes: the largest shift of any convolution."""
    return max((_shift(c) for unit in units for c in unit.convolutions), default=0)


def _shift(convolution: "Convolution") -> int:
    stride, _, kernel, padding, dilation = convolution.geometry()
    reach = [
        max(-(-p // stride), (d * (k - 1) - p) // stride)
        for k, p, d in zip(kernel, padding, dilation, strict=True)
    ]
    return max(reach)
