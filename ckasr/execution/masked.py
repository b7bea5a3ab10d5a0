"""A masked network as it is: dense layers whose pruned weights are zero."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ckasr.sparsity import prunable
from ckasr.sparsity.layers import memo_without_hooks, unwrapped
from ckasr.sparsity.masks import check_masks


def masked_copy(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the model in eval mode, without hooks, whose pruned weights are zero.

    Raises ValueError for masks that do not fit. The model is left as it was, and so are the masks.
    """
    model = unwrapped(model)
    check_masks(prunable(model), masks)
    with torch.inference_mode(False), torch.no_grad():
        copied = copy.deepcopy(model, memo_without_hooks(model)).eval()
        for name, weight in prunable(copied).items():
            weight.masked_fill_(~masks[name].to(weight.device), 0)
    return copied
