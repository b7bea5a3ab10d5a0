"""Run records as the experiments write them, with made-up outcomes: for tests of the analysis."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ckasr.experiments.settings import Settings

LAYERS = ["stem", *(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3))]


def record(
    accuracy: float | None = 0.5,
    *,
    status: str = "finished",
    device: str = "cpu",
    dead_classes: int = 3,
    **settings: Any,
) -> dict[str, Any]:
    """One record; settings as for `Settings`. A diverged one has no outcome and short curves."""
    chosen = Settings(**settings)
    rng = np.random.default_rng([chosen.seed, round(1e6 * chosen.sparsity)])
    finished = status == "finished"
    epochs = chosen.epochs if finished else max(1, chosen.epochs // 4)
    progress = np.arange(1, epochs + 1) / chosen.epochs
    target = accuracy if accuracy is not None else 0.3
    strength = min(1.0, chosen.beta * 10)
    noise = rng.normal(0, 0.01, epochs)
    term = 20 * (1 - 0.5 * strength * progress) if chosen.beta else None
    weights = rng.normal(0, 0.08 * (1 - 0.8 * strength), 13_000)
    counts, edges = np.histogram(weights, np.linspace(-0.3, 0.3, 61))
    distance = np.abs(np.subtract.outer(np.arange(10), np.arange(10)))
    matrix = np.exp(-distance * (0.15 + strength)) - 0.02 * (distance > 7)
    kept = round((1 - chosen.sparsity) * 270_896)
    return {
        "schema": 1,
        "id": chosen.id,
        "settings": chosen.to_dict(),
        "status": status,
        "curves": {
            "phase": ["train"] * epochs,
            "epoch": list(range(1, epochs + 1)),
            "learning_rate": [0.1] * epochs,
            "loss": (4.6 * np.exp(-2 * progress) + noise).tolist(),
            "term": [None] * epochs if term is None else term.tolist(),
            "gradient_ratio": [None] * epochs
            if term is None
            else (0.01 * (1 + progress) * (1 + 5 * noise)).tolist(),
            "validation_accuracy": [
                None if chosen.validation == 0 else target * math.sqrt(p) + n
                for p, n in zip(progress, noise, strict=True)
            ],
            "seconds": [12.0] * epochs,
        },
        "validation_accuracy": accuracy if finished and chosen.validation else None,
        "test_accuracy": accuracy if finished else None,
        "sparsity": {
            "weights": 270_896,
            "kept": kept,
            "nominal": 1 - kept / 270_896,
            "effective_kept": kept // 2,
            "effective": 1 - (kept // 2) / 270_896,
            "dead_layers": [],
            "filters": 688,
            "dead_filters": 100,
            "classes": 100,
            "empty_classes": dead_classes,
            "dead_classes": dead_classes,
            "macs_dense": 40_000_000,
            "macs": 400_000,
            "layers": {},
        },
        "layer_cka": {
            "layers": LAYERS,
            "matrix": matrix.tolist(),
            "estimator": "unbiased, pooled over minibatches",
            "samples": 512,
            "batch_size": 128,
            "split": "validation",
        }
        if finished
        else None,
        "weights": {
            "histogram": {"edges": edges.round(6).tolist(), "counts": counts.tolist()},
            "frobenius_norm": 10.0,
        }
        if finished
        else None,
        "seconds": 12.0 * epochs,
        "device": device,
    }


def pairs(
    baseline: Iterable[float], treated: Iterable[float], beta: float = 1e-4, **settings: Any
) -> list[dict[str, Any]]:
    """Two arms, seeds 0, 1, ...: accuracies of the baseline and of CKA-SR."""
    arms = {0.0: baseline, beta: treated}
    return [
        record(accuracy, beta=b, seed=seed, **settings)
        for b, values in arms.items()
        for seed, accuracy in enumerate(values)
    ]


def study(
    seeds: int = 5, betas: tuple[float, ...] = (1e-4,), **settings: Any
) -> list[dict[str, Any]]:
    """A comparison like the paper's: four sparsities, with its accuracies and their spread."""
    rng = np.random.default_rng(0)
    levels = {0.95: (0.47, 0.008), 0.98: (0.337, 0.01), 0.995: (0.15, 0.02), 0.998: (0.03, 0.006)}
    records = []
    for sparsity, (mean, spread) in levels.items():
        dead = 60 if sparsity > 0.997 else 27 if sparsity > 0.99 else 0
        for seed, of_seed in enumerate(rng.normal(mean, spread, seeds)):
            for beta in (0.0, *betas):
                gain = (0.006 if beta else 0.0) + rng.normal(0, spread / 3)
                records.append(
                    record(
                        max(0.01, of_seed + gain),
                        sparsity=sparsity,
                        beta=beta,
                        seed=seed,
                        dead_classes=dead,
                        **settings,
                    )
                )
    return records
