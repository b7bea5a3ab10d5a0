"""Time of a training step with the CKA-SR term, relative to the same step without the term."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from ckasr import CKASR, find_stages

from .data import IMAGES, batches
from .pairwise import PairwiseTerm
from .step import MODELS, our_step, warmup
from .timing import Timing, interleaved

BETA = 1e-4
BATCH_SIZE = 128  # of the paper; the names of the results state any other
NO_TERM = "no term"
EVERY_STEP = "ckasr, blocks, every step"
EVERY_FIFTH = "ckasr, blocks, every fifth step"
CONVOLUTIONS = "ckasr, every convolution, every step"
WHOLE_BATCH = "ckasr, blocks"
AUTHORS_EVERY_STEP = "authors' way, blocks, every step"
AUTHORS = "authors' way, blocks"
AUTHORS_FLOAT32 = "authors' way, blocks, float32"


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

    Args:
        device: device of the models.
        rounds: number of measured rounds.
        names: names of the networks.
        images: number of training images.
        batch_size: batch size.
    """
    data = batches(images, device, batch_size)
    how = {"rounds": rounds, "device": device, "warmup": warmup(device)}
    timings = []
    for name in names:
        title = f"term {name}" + (f", batch {batch_size}" if batch_size != BATCH_SIZE else "")
        few = {key: make(name, data) for key, make in _few_samples(device).items()}
        timings += interleaved(title, few, calls=5, **how)
        whole = {key: make(name, data) for key, make in _whole_batch(device).items()}
        timings += interleaved(f"{title}, whole batch", whole, **how)
    return timings


def convolutions(model: nn.Module) -> list[list[str]]:
    """Names of the 3x3 convolutions of the blocks of each stage: 18 in ResNet20, 30 in ResNet32."""
    return [[f"{b}.{c}" for b in stage for c in ("conv1", "conv2")] for stage in find_stages(model)]


def _few_samples(device: torch.device) -> dict[str, Callable[..., Callable[[], None]]]:
    fast = partial(our_step, precision="bf16" if device.type == "cuda" else "fp32")
    return {
        NO_TERM: fast,
        EVERY_STEP: partial(fast, regularizer=lambda m: CKASR(m, BETA, every=1)),
        EVERY_FIFTH: partial(fast, regularizer=lambda m: CKASR(m, BETA, every=5)),
        CONVOLUTIONS: partial(
            fast, regularizer=lambda m: CKASR(m, BETA, every=1, stages=convolutions(m))
        ),
        AUTHORS_EVERY_STEP: partial(fast, term=lambda m: PairwiseTerm(m, BETA, find_stages(m))),
        "authors' way, every convolution, every step": partial(
            fast, term=lambda m: PairwiseTerm(m, BETA, convolutions(m))
        ),
    }


def _whole_batch(device: torch.device) -> dict[str, Callable[..., Callable[[], None]]]:
    fast = partial(our_step, precision="bf16" if device.type == "cuda" else "fp32")

    def pairwise(dtype: torch.dtype) -> Callable[[nn.Module], PairwiseTerm]:
        return lambda m: PairwiseTerm(m, BETA, find_stages(m), samples=None, dtype=dtype)

    return {
        NO_TERM: fast,
        WHOLE_BATCH: partial(fast, regularizer=lambda m: CKASR(m, BETA, every=1, samples=None)),
        AUTHORS: partial(fast, term=pairwise(torch.float64)),
        AUTHORS_FLOAT32: partial(fast, term=pairwise(torch.float32)),
    }
