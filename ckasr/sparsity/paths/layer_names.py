"""Name of the running layer, for error messages."""

from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)


class LayerNames:
    """Context manager that tracks the running layer. ``str()`` of it is the name of this layer.

    Args:
        model: the model whose layers are tracked.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.running: list[nn.Module] = []

    def __str__(self) -> str:
        named = [name for module in self.running if (name := self.names.get(module))]
        return f"layer {named[-1]!r}" if named else "the model's forward pass"

    def __enter__(self) -> "LayerNames":
        self.handles = [
            register_module_forward_pre_hook(lambda module, args: self.running.append(module)),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _leave(self, *call: Any) -> None:
        self.running.pop()
