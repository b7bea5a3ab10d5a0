"""What a record holds of the trained network besides its accuracy."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ckasr.cka import MinibatchCKA
from ckasr.data import Batch
from ckasr.regularizer import find_stages
from ckasr.sparsity import prunable, report
from ckasr.sparsity.layers import weight_owners

CKA_SAMPLES = 512
"""Samples that layer-by-layer CKA is measured on."""
HISTOGRAM_BINS = 60
HISTOGRAM_LIMIT = 0.3
"""As in the figures of the paper."""


def sparsity_report(
    model: nn.Module, masks: Mapping[str, Tensor], example: Tensor, classes: int
) -> dict[str, object]:
    """Return ``ckasr.sparsity.report``, or only its counts if paths cannot be followed.

    Paths start at inputs of a floating-point type, and attention modules and some operations cannot
    be followed. The counts then have the reason in ``not_followed``.

    Args:
        model: the model.
        masks: masks of its prunable weights.
        example: a batch of one input.
        classes: number of classes.
    """
    if not example.is_floating_point():
        return _counts(masks, classes, f"the inputs are {example.dtype}")
    try:
        return report(model, masks, example.shape[1:])
    except ValueError as error:
        return _counts(masks, classes, str(error))


def _counts(masks: Mapping[str, Tensor], classes: int, reason: str) -> dict[str, object]:
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    total = sum(mask.numel() for mask in masks.values())
    return {
        "weights": total,
        "kept": sum(kept.values()),
        "nominal": 1 - sum(kept.values()) / total,
        "classes": classes,
        "layers": {
            name: {"shape": list(mask.shape), "kept": kept[name]} for name, mask in masks.items()
        },
        "not_followed": reason,
    }


@torch.no_grad()
def layer_cka(model: nn.Module, batches: Iterable[Batch], split: str) -> dict[str, Any] | None:
    """Return the layer-by-layer CKA of the stem and every block, in eval mode and float32.

    It is unbiased and pooled over minibatches, for the first 512 samples. A model without blocks is
    measured at its conv and linear layers. Layers that the forward pass does not call are left out;
    None if no layer is called.

    Args:
        model: the model.
        batches: batches of the samples.
        split: name of the split they are from, for the record.
    """
    taps = _layers(model)
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda _, args, output, name=name, stem=stem: seen.__setitem__(
                name, args[0] if stem else output
            )
        )
        for name, (module, stem) in taps.items()
    ]
    training = model.training
    model.eval()
    meter = MinibatchCKA("unbiased")
    layers: list[str] = []
    try:
        for x, _ in batches:
            model(x)
            layers = layers or [name for name in taps if isinstance(seen.get(name), Tensor)]
            if not layers:
                return None
            meter.update([seen[name] for name in layers])
            if meter.samples >= CKA_SAMPLES:
                break
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    matrix = meter.compute()
    return {
        "layers": layers,
        "matrix": [[round(v, 6) for v in row] for row in matrix.tolist()],
        "estimator": "unbiased, pooled over minibatches",
        "samples": meter.samples,
        "batch_size": meter.samples // meter.batches,
        "split": split,
    }


def _layers(model: nn.Module) -> dict[str, tuple[nn.Module, bool]]:
    """Return modules by name, each with whether to take its input instead of its output.

    The stem is taken as the input of the first block, whatever it is called.
    """
    try:
        blocks = [name for stage in find_stages(model) for name in stage]
    except ValueError:
        return {owner.layer: (owner.module, False) for owner in weight_owners(model).values()}
    modules = dict(model.named_modules())
    return {"stem": (modules[blocks[0]], True)} | {b: (modules[b], False) for b in blocks}


@torch.no_grad()
def weight_statistics(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a histogram and statistics of the kept weights of all conv and linear layers.

    The statistics are, of which the last four do not depend on the scale of a layer:

    - ``frobenius_norm``: norm of all these weights together;
    - ``fraction_below_1e-2``: share of weights below 0.01 (the eps-sparsity of theorem 1);
    - ``fraction_below_tenth_rms``: share of weights below a tenth of their layer's root mean
      square;
    - ``kurtosis``: excess kurtosis of the weights, each divided by its layer's root mean square;
    - ``hoyer``: (sqrt(n) - |w|_1 / |w|_2) / (sqrt(n) - 1), mean over layers (Hoyer 2004);
    - ``effective_rank``: participation ratio of the squared singular values of a layer's matrix
      ``(out, in * kernel)``, mean over layers.

    The result is empty if no weight is kept.
    """
    values, scaled, hoyer, ranks = [], [], [], []
    for name, weight in prunable(model).items():
        kept = weight.detach().double()[masks[name]].cpu()
        if not len(kept) or not kept.any():
            continue
        values.append(kept)
        scaled.append(kept / kept.square().mean().sqrt())
        root = len(kept) ** 0.5
        if len(kept) > 1:
            hoyer.append(((root - kept.abs().sum() / kept.norm()) / (root - 1)).item())
        energy = torch.linalg.svdvals(weight.detach().double().flatten(1).cpu()).square()
        ranks.append((energy.sum() ** 2 / energy.square().sum()).item())
    if not values:
        return {}
    w, z = torch.cat(values), torch.cat(scaled)
    edges = torch.linspace(-HISTOGRAM_LIMIT, HISTOGRAM_LIMIT, HISTOGRAM_BINS + 1).double()
    counts = torch.histogram(w, edges).hist.long()
    return {
        "histogram": {
            "edges": [round(e, 6) + 0.0 for e in edges.tolist()],
            "counts": counts.tolist(),
        },
        "frobenius_norm": w.norm().item(),
        "fraction_below_1e-2": (w.abs() < 1e-2).double().mean().item(),
        "fraction_below_tenth_rms": (z.abs() < 0.1).double().mean().item(),
        "kurtosis": (z**4).mean().item() / z.square().mean().item() ** 2 - 3,
        "hoyer": sum(hoyer) / len(hoyer) if hoyer else None,
        "effective_rank": sum(ranks) / len(ranks),
    }
