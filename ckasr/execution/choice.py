"""Choice between dense and sparse execution of a training phase.

The choice does not depend on the speed of the machine, so that a run can be repeated exactly.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Literal, get_args

from torch import Tensor, nn

from ckasr import devices
from ckasr.choices import check_choice
from ckasr.sparsity import prunable

Execution = Literal["auto", "dense", "sparse"]
EXECUTIONS: tuple[str, ...] = get_args(Execution)

DENSEST = 0.2
"""Largest density at which sparse execution is chosen. For ResNet20, sparse execution is 1.3 times
as fast as dense execution at this density (measured by `python -m benchmarks sparse`)."""


def choose(
    execution: str, model: nn.Module, masks: Mapping[str, Tensor], precision: str
) -> tuple[str, str]:
    """Return ``"dense"`` or ``"sparse"`` for a model with these masks, and the reason.

    Args:
        execution: ``"dense"``, ``"sparse"`` or ``"auto"``. With ``"auto"``, sparse execution is
            chosen for a network with convolutions whose density is at most ``DENSEST``, if it
            trains on a CPU in fp32 and numba is installed.
        model: the network.
        masks: bool mask of every prunable weight, by name.
        precision: ``"fp32"``, ``"tf32"`` or ``"bf16"``.

    Raises:
        ValueError: if the execution is unknown, or if ``"sparse"`` is impossible.
    """
    check_choice("execution", execution, Execution)
    if execution == "dense":
        return "dense", "asked for"
    device = devices.of(model)
    obstacle = None
    if not device.has_sparse_kernels:
        obstacle = f"the model is on {device}, the kernels are for a CPU"
    elif precision != "fp32":
        obstacle = f"precision is {precision}, the kernels compute in fp32"
    elif find_spec("numba") is None:
        obstacle = "numba is not installed (pip install 'ckasr[sparse]')"
    if execution == "sparse":
        if obstacle:
            raise ValueError(f"execution sparse is impossible: {obstacle}")
        return "sparse", "asked for"
    if obstacle:
        return "dense", obstacle
    convolutions = any(isinstance(module, nn.Conv2d) for module in model.modules())
    weights = prunable(model)
    kept = sum(int(masks[name].sum()) for name in weights)
    density = kept / sum(weight.numel() for weight in weights.values())
    reason = f"density {density:.3g}"
    if not convolutions:
        return "dense", f"{reason}, no convolutions"
    return ("sparse" if density <= DENSEST else "dense"), f"{reason}, sparse up to {DENSEST:g}"


def summary(phases: Mapping[str, str]) -> str:
    """Return the execution as text: one word if all phases have the same one, else one per phase.

    Args:
        phases: ``"dense"`` or ``"sparse"``, by the name of the phase.
    """
    if len(set(phases.values())) <= 1:
        return next(iter(phases.values()), "dense")
    return ", ".join(f"{name} {execution}" for name, execution in phases.items())
