"""Time of a training step with the CKA-SR term, relative to the same step without the term."""

import torch
from torch import nn

from ckasr import CKASR, find_stages

from .data import IMAGES, batches
from .pairwise import PairwiseTerm
from .step import MODELS, OurStep, warmup
from .timing import Timing, interleaved

BETA = 1e-4
BATCH_SIZE = 128  # of the paper; the names of the results state any other
NO_TERM = "no term"
EVERY_STEP = "ckasr, blocks, every step"
EVERY_FIFTH = "ckasr, blocks, every fifth step"
CONVOLUTIONS = "ckasr, every convolution, every step"
WHOLE_BATCH = "ckasr, blocks"
AUTHORS_EVERY_STEP = "authors' way, blocks, every step"
AUTHORS_CONVOLUTIONS = "authors' way, every convolution, every step"
AUTHORS = "authors' way, blocks"
AUTHORS_FLOAT32 = "authors' way, blocks, float32"


def convolutions(model: nn.Module) -> list[list[str]]:
    """Names of the 3x3 convolutions of the blocks of each stage: 18 in ResNet20, 30 in ResNet32."""
    return [[f"{b}.{c}" for b in stage for c in ("conv1", "conv2")] for stage in find_stages(model)]


FEW_SAMPLES = {
    NO_TERM: None,
    EVERY_STEP: lambda m: CKASR(m, BETA, every=1),
    EVERY_FIFTH: lambda m: CKASR(m, BETA, every=5),
    CONVOLUTIONS: lambda m: CKASR(m, BETA, every=1, stages=convolutions(m)),
    AUTHORS_EVERY_STEP: lambda m: PairwiseTerm(m, BETA, find_stages(m)),
    AUTHORS_CONVOLUTIONS: lambda m: PairwiseTerm(m, BETA, convolutions(m)),
}
"""Terms on 8 samples, by variant."""
ALL_SAMPLES = {
    NO_TERM: None,
    WHOLE_BATCH: lambda m: CKASR(m, BETA, every=1, samples=None),
    AUTHORS: lambda m: PairwiseTerm(m, BETA, find_stages(m), None),
    AUTHORS_FLOAT32: lambda m: PairwiseTerm(m, BETA, find_stages(m), None, torch.float32),
}
"""Terms on the whole batch, by variant."""


def measure(
    device: torch.device,
    rounds: int,
    names: tuple[str, ...] = MODELS,
    images: int = IMAGES,
    batch_size: int = BATCH_SIZE,
) -> list[Timing]:
    """Time the term on 8 samples and on the whole batch, with this package and the authors' method.

    With 8 samples every variant is timed over five steps, because one variant computes the term on
    every fifth step.
    """
    data = batches(images, device, batch_size)
    precision = "bf16" if device.type == "cuda" else "fp32"
    how = {"rounds": rounds, "device": device, "warmup": warmup(device)}
    timings = []
    for name in names:
        title = f"term {name}" + (f", batch {batch_size}" if batch_size != BATCH_SIZE else "")
        for terms, what, calls in ((FEW_SAMPLES, "", 5), (ALL_SAMPLES, ", whole batch", 1)):
            steps = {key: OurStep(name, data, precision, term) for key, term in terms.items()}
            timings += interleaved(title + what, steps, calls=calls, **how)
    return timings
