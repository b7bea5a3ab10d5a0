"""What the CKA-SR term costs, as a share of a training step without it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ckasr import CKASR, find_stages, models

from .pairwise import PairwiseTerm
from .timing import Timing, interleaved

BETA = 1e-4


def measure(device: torch.device, rounds: int) -> list[Timing]:
    """ResNet20 and ResNet32, batch 128, 8 samples, float32: a step without the term, with it over
    the blocks and over every convolution, each ours and pairwise; the whole batch, ours."""
    timings = []
    for name in ("resnet20", "resnet32"):
        variants = {
            "no term": _step(name, device, None),
            "blocks, ckasr": _step(name, device, lambda m: CKASR(m, BETA, every=1)),
            "blocks, pairwise": _step(
                name, device, lambda m: PairwiseTerm(m, BETA, find_stages(m))
            ),
            "every convolution, ckasr": _step(
                name, device, lambda m: CKASR(m, BETA, every=1, stages=convolutions(m))
            ),
            "every convolution, pairwise": _step(
                name, device, lambda m: PairwiseTerm(m, BETA, convolutions(m))
            ),
            "blocks, whole batch, ckasr": _step(
                name, device, lambda m: CKASR(m, BETA, every=1, samples=None)
            ),
        }
        timings += interleaved(f"term {name}", variants, rounds=rounds, device=device)
    return timings


def convolutions(model: nn.Module) -> list[list[str]]:
    """The 3x3 convolutions of each stage's blocks: 18 in ResNet20, 30 in ResNet32."""
    return [[f"{b}.{c}" for b in stage for c in ("conv1", "conv2")] for stage in find_stages(model)]


def _step(
    name: str,
    device: torch.device,
    regularizer: Callable[[nn.Module], Callable[[], Tensor]] | None,
) -> Callable[[], None]:
    torch.manual_seed(0)
    model = models.create(name, num_classes=100).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    x = torch.randn(128, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    y = torch.randint(0, 100, (128,), device=device)
    reg = regularizer(model) if regularizer else None

    def step() -> None:
        loss = nn.functional.cross_entropy(model(x), y)
        if reg is not None:
            loss = loss + reg()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
