"""What a record holds of the trained network besides its accuracy."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ckasr.cka import MinibatchCKA
from ckasr.regularizer import find_stages
from ckasr.sparsity import prunable

CKA_SAMPLES = 512
HISTOGRAM_BINS = 60
HISTOGRAM_LIMIT = 0.3  # of the paper's figures


@torch.no_grad()
def layer_cka(
    model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], split: str
) -> dict[str, Any]:
    """Layer-by-layer CKA of the stem and every block, in eval mode and float32.

    Unbiased, pooled over minibatches, of the first 512 images. Models without blocks are measured
    at their conv and linear layers.
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
    try:
        for x, _ in batches:
            model(x.float())
            meter.update([seen[name] for name in taps])
            if meter.samples >= CKA_SAMPLES:
                break
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    matrix = meter.compute()
    return {
        "layers": list(taps),
        "matrix": [[round(v, 6) for v in row] for row in matrix.tolist()],
        "estimator": "unbiased, pooled over minibatches",
        "samples": meter.samples,
        "batch_size": meter.samples // meter.batches,
        "split": split,
    }


def _layers(model: nn.Module) -> dict[str, tuple[nn.Module, bool]]:
    """Name -> (module, whether its input is what counts): the stem is the first block's input."""
    modules = dict(model.named_modules())
    try:
        blocks = [name for stage in find_stages(model) for name in stage]
    except ValueError:
        names = [name.removesuffix(".weight") for name in prunable(model)]
        return {name: (modules[name], False) for name in names}
    # Whatever the stem is called, its output is what the first block gets.
    return {"stem": (modules[blocks[0]], True)} | {b: (modules[b], False) for b in blocks}


@torch.no_grad()
def weight_statistics(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """Histogram and shape of the kept weights of all conv and linear layers.

    frobenius_norm: of all of them together. fraction_below_1e-2: absolute eps-sparsity, as the
    paper's theorem 1 has it; the next four are free of scale. fraction_below_tenth_rms: below a
    tenth of their layer's root mean square. kurtosis: excess, of weights over their layer's root
    mean square. hoyer: (sqrt(n) - |w|_1 / |w|_2) / (sqrt(n) - 1), mean over layers (Hoyer 2004).
    effective_rank: participation ratio of the squared singular values of a layer's matrix
    ``(out, in * kernel)``, mean over layers.
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
