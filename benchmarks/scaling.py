"""Time of the term, forward and backward, against numbers of layers and samples and batch size."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ckasr import CKASR, cka_sr_loss
from ckasr.cka.inputs import check_samples

from .pairwise import PairwiseTerm, pairwise_term
from .step import MakeTerm
from .timing import Timing, clock_of, in_turn, interleaved, once, summary

PAIRWISE, OURS = "authors' way", "ckasr"
LOSSES = {PAIRWISE: pairwise_term, OURS: cka_sr_loss}
STAGES = ((16, 32, 32), (32, 16, 16), (64, 8, 8))  # shapes of the stages of the CIFAR ResNets
CALLS = 8  # Number of calls per round; one call is too short for the accuracy of the clock.


def measure(
    device: torch.device,
    rounds: int,
    layers: Sequence[int] = (9, 18, 27, 36, 45, 54),
    samples: Sequence[int] = (4, 8, 16, 32, 64, 128),
    batches: Sequence[int] = (64, 128, 256, 512),
) -> list[Timing]:
    """Time the term against the number of layers, the number of samples and the batch size.

    For different numbers of layers (with 8 samples) and of samples (with 9 layers), the term runs
    alone, on features with the shapes of a ResNet's three stages. For different batch sizes, it
    runs in a network of 9 layers. See `features` for what is allowed.
    """
    timings = []
    for what, x, stages in alone(layers, samples, device):
        variants = {name: partial(_gradients, loss, stages) for name, loss in LOSSES.items()}
        timings += interleaved(f"scaling {what}", variants, rounds=rounds, device=device, x=x)
    for batch in batches:
        timings += _in_network(device, rounds, batch)
    return timings


def alone(
    layers: Sequence[int], samples: Sequence[int], device: torch.device
) -> Iterator[tuple[str, int, list[list[Tensor]]]]:
    """What varies, its value, and `features`: all numbers of layers, then all of samples."""
    for count in layers:
        yield "layers", count, features(count, 8, device)
    for count in samples:
        yield "samples", count, features(9, count, device)


def features(depth: int, samples: int, device: torch.device) -> list[list[Tensor]]:
    """Random features with gradients and the shapes of a ResNet's three stages, by stage.

    Raises ValueError if ``depth``, the number of layers, is no multiple of 3, and below 4 samples.
    """
    if depth < 1 or depth % 3:
        raise ValueError(
            f"{depth} layers cannot be divided equally among 3 stages: choose a multiple of 3"
        )
    check_samples(samples, "unbiased")
    generator = torch.Generator().manual_seed(0)

    def feature(*shape: int) -> Tensor:
        return torch.randn(samples, *shape, generator=generator).to(device).requires_grad_()

    return [[feature(*shape) for _ in range(depth // 3)] for shape in STAGES]


def _gradients(loss: Callable[..., Tensor], stages: list[list[Tensor]]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(stages), [feature for stage in stages for feature in stage])


def _in_network(device: torch.device, rounds: int, batch: int) -> list[Timing]:
    """Time the term in a network: the time with the term minus that of the same round without."""
    one_stage = [[str(number) for number in range(9)]]
    terms = {
        "none": None,
        PAIRWISE: lambda model: PairwiseTerm(model, 1e-4, one_stage),
        OURS: lambda model: CKASR(model, 1e-4, every=1, stages=one_stage),
    }
    calls = {name: _network(batch, device, term) for name, term in terms.items()}
    seconds = in_turn(calls, rounds, lambda call: once(call, device, CALLS), warmup=2)
    bare = seconds.pop("none")
    added = {n: [v - b for v, b in zip(s, bare, strict=True)] for n, s in seconds.items()}
    return summary("scaling batch", added, clock=clock_of(device), x=batch)


def _network(batch: int, device: torch.device, term: MakeTerm) -> Callable[[], None]:
    model = nn.Sequential(*(nn.ReLU() for _ in range(9)))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 16, 16, 16, generator=generator).to(device)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    penalty = term(model) if term else None

    def call() -> None:
        loss = model(x).square().mean()
        torch.autograd.grad(loss + penalty.compute() if penalty else loss, x)

    return call
