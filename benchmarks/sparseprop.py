"""The layers of SparseProp (Nikdan et al. 2023, arXiv 2302.04852), if a user has it installed."""

import contextlib
import io
from importlib.util import find_spec

import torch
from torch import nn

INSTALLED = find_spec("sparseprop") is not None


def use_sparseprop(model: nn.Module, batch_size: int) -> None:
    """Replace layers by those of SparseProp where SparseProp measures that they are faster.

    This is the use that its documentation describes. Its kernels need memory in the order
    (N, C, H, W), so the dense layers use this order too.
    """
    from sparseprop.utils import swap_modules_with_sparse

    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    with contextlib.redirect_stdout(io.StringIO()):  # It prints a line for every layer.
        swap_modules_with_sparse(model, (batch_size, 3, 32, 32), inplace=True)
