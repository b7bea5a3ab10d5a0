"""The step that takes the gradients of loss and term apart: alone, masked, and on two processes."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ckasr import CKASR
from ckasr.methods import Context, Phase, TrainingState, create
from ckasr.sparsity import Masks, dense_masks, prunable
from ckasr.training.step import Step


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class OneBatch:
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def batch(self, indices: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x, self.y


LAYERS = ["first", "second"]


def step(model: nn.Module, layers: list[str], seed: int, masks: Masks | None = None) -> Step:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(10, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (10,), generator=generator)
    context = Context(model, 0.5, "erk", 0, 3, lambda: iter([(x, y)]), steps_per_epoch=1)
    masks = dense_masks(model) if masks is None else masks
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    state = TrainingState(masks, optimizer, Phase("train", 1), steps=1)
    reg = CKASR(model, 0.5, layers=layers, every=1)
    return Step(context, state, create("dense"), reg, "fp32", OneBatch(x, y))


def expected_parts(model: Net, seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients of the loss and of the weighted term, by one backward pass each."""
    parts = []
    for index in range(2):
        with CKASR(model, 0.5, layers=LAYERS, every=1) as reg:
            data = step(model, LAYERS, seed).batches
            loss = nn.functional.cross_entropy(model(data.x).float(), data.y)
            value = (loss, reg())[index]
            parts.append(
                torch.autograd.grad(value, list(model.parameters()), materialize_grads=True)
            )
    return parts[0], parts[1]


def norm(gradients: list[torch.Tensor]) -> float:
    return torch.cat([g.flatten() for g in gradients]).norm().item()


def test_the_ratio_counts_kept_weights_only():
    torch.manual_seed(0)
    model = Net().double()
    masks = {name: torch.rand(w.shape) < 0.5 for name, w in prunable(model).items()}
    of_loss, of_term = expected_parts(model, 1)
    names = [name for name, _ in model.named_parameters()]

    def kept(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        return [g * masks.get(n, 1) for n, g in zip(names, gradients, strict=True)]

    running = step(model, LAYERS, 1, Masks(model, masks))
    running((torch.arange(10),))
    wanted = norm(kept(of_term)) / norm(kept(of_loss))
    assert running.gradient_ratio.item() == pytest.approx(wanted, rel=1e-6)
    assert abs(norm(of_term) / norm(of_loss) / wanted - 1) > 0.01
    for parameter, a, b in zip(model.parameters(), of_loss, of_term, strict=True):
        torch.testing.assert_close(parameter.grad, a + b, rtol=1e-6, atol=1e-9)


def _one_of_two(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    try:
        torch.manual_seed(0)
        model = DistributedDataParallel(Net().double())
        running = step(model, [f"module.{name}" for name in LAYERS], seed=rank)
        running((torch.arange(10),))
        gradients = [p.grad for p in model.parameters()]
        torch.save((gradients, running.gradient_ratio), Path(folder, f"{rank}.pt"))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_have_the_mean_gradient_of_both(tmp_path):
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path),), nprocs=2)
    torch.manual_seed(0)
    model = Net().double()
    parts = [expected_parts(model, seed) for seed in (0, 1)]
    sums = [[a + b for a, b in zip(*both, strict=True)] for both in parts]
    wanted = [(a + b) / 2 for a, b in zip(*sums, strict=True)]
    for rank, (of_loss, of_term) in enumerate(parts):
        gradients, ratio = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(gradients, wanted, rtol=1e-6, atol=1e-9)
        assert ratio.item() == pytest.approx(norm(of_term) / norm(of_loss), rel=1e-6)
