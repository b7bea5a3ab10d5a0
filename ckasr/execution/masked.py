"""Dense inference of a masked network: layers are dense, and pruned weights are zero."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ckasr.sparsity import prunable
from ckasr.sparsity.layers import memo_without_hooks, unwrapped
from ckasr.sparsity.masks import check_masks


def masked_copy(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the model in eval mode, without hooks, whose pruned weights are zero.

    Args:
        model: the model; it is not changed.
        masks: bool mask of every prunable weight, by name.

    Raises:
        ValueError: if a mask is missing, belongs to no weight, has another shape than its weight,
            or is not bool.
    """
    model = unwrapped(model)
    check_masks(prunable(model), masks)
    with torch.inference_mode(False), torch.no_grad():
        copied = copy.deepcopy(model, memo_without_hooks(model)).eval()
        for name, weight in prunable(copied).items():
            weight.masked_fill_(~masks[name].to(weight.device), 0)
    return copied
