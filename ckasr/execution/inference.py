"""Ways to compute a masked network after training, behind one interface.

Each way is a function ``(model, masks) -> module``. The module is in eval mode and has the outputs
of the masked model in eval mode up to round-off; the model and the masks are left as they were.
Which way is the fastest depends on the network and on its sparsity: ``python -m benchmarks shrink``
measures all of them. To add one, write such a function and add it to ``INFERENCE``.
"""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from .masked import masked_copy
from .shrunk import shrink
from .sparse import sparse_execution


def sparse_copy(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a model on the CPU that computes with kept weights only.

    See `sparse_execution`, which does the same to a model in place, for training.
    """
    copied = masked_copy(model, masks)
    sparse_execution(copied, masks)
    return copied


INFERENCE: dict[str, Callable[[nn.Module, Mapping[str, Tensor]], nn.Module]] = {
    "masked": masked_copy,
    "sparse": sparse_copy,
    "shrunk": shrink,
}
