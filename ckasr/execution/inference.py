"""Functions that prepare a masked network for inference, with one interface.

Each function is ``(model, masks) -> module``. The returned module is in eval mode, and its outputs
equal those of the masked model in eval mode up to rounding errors. The model and the masks are not
changed. The fastest function depends on the network and on its sparsity; ``python -m benchmarks
shrink`` measures all of them. To add one, write such a function and add it to ``INFERENCE``.
"""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from .masked import masked_copy
from .shrunk import shrink
from .sparse import sparse_execution


def sparse_copy(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a model on the CPU that is computed with its kept weights only.

    See `sparse_execution`, which changes a model in place and is used for training.
    """
    copied = masked_copy(model, masks)
    sparse_execution(copied, masks)
    return copied


INFERENCE: dict[str, Callable[[nn.Module, Mapping[str, Tensor]], nn.Module]] = {
    "masked": masked_copy,
    "sparse": sparse_copy,
    "shrunk": shrink,
}
