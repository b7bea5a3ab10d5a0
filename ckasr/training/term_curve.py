"""Measurement of the CKA-SR term after each epoch, without effect on the training.

During training, only runs with a term compute the term. For a comparison over the epochs, it is
measured in the same way in all runs, including the baseline.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ckasr import devices
from ckasr.cka import cka_sr_loss
from ckasr.features import own_batch_dim, tensor_of
from ckasr.layers import named_layers
from ckasr.sparsity.layers import unwrapped

TERM_SAMPLES = 128
"""Number of samples from which the term is measured."""


@torch.no_grad()
def queued_term(
    model: nn.Module, stages: Sequence[Sequence[str]], inputs: Tensor, precision: str
) -> Tensor | None:
    """Return the CKA-SR term without the factor beta, without waiting for the device.

    The value is the ``official`` term (``ckasr.cka_sr_loss``) of all given samples. The model runs
    in eval mode, so that the measurement uses no random numbers, changes no buffers, and has no
    effect on the training.

    Args:
        model: the model.
        stages: names of the layers to compare, one list per stage. Layers that the forward pass
            does not call are ignored.
        inputs: a batch of inputs ``(n, ...)`` on the device of the model, ``n >= 4``.
        precision: precision as in ``Step``. The term itself is computed in float32.

    Returns:
        A scalar on the device, or None if the forward pass calls none of the layers.
    """
    inner = unwrapped(model)
    features: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            # The output is copied, because the layers that follow may work in place.
            features[name] = tensor_of(name, output).clone().movedim(own_batch_dim(module) or 0, 0)

        return hook

    layers = named_layers(inner, [list(stage) for stage in stages])
    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    training = model.training
    model.eval()
    device = devices.of(model)
    device.set_precision(precision)
    try:
        with device.autocast(precision):
            inner(inputs)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    groups = [[features[name].float() for name in stage if name in features] for stage in stages]
    groups = [group for group in groups if group]
    return cka_sr_loss(groups) if groups else None
