"""Masks on a GPU: captured once, changed in place, never waiting for the device."""

import pytest
import torch
from torch import nn

from ckasr.sparsity import Masks, prunable, random_masks

pytestmark = pytest.mark.gpu


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10)
    )


def half(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    shapes = {name: weight.shape for name, weight in prunable(model).items()}
    return random_masks(shapes, dict.fromkeys(shapes, 0.5), seed)


def test_a_captured_graph_follows_masks_changed_in_place():
    model = network().cuda()
    masks = Masks(model, half(model, 0))
    masks.apply()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        masks.apply()
    masks.update(half(model, 1))
    for weight in prunable(model).values():
        torch.nn.init.ones_(weight)
    graph.replay()
    for name, weight in prunable(model).items():
        assert torch.equal(weight.detach(), masks[name].float())


def test_nothing_waits_for_the_device():
    model = network().cuda()
    masks = Masks(model, half(model, 0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    model(torch.randn(4, 3, 6, 6, device="cuda")).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
        masks.apply(optimizer)
        masks["0.weight"].logical_not_()
        masks.refresh()
        masks.apply(optimizer)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    pruned = ~masks["0.weight"]
    assert (model[0].weight[pruned] == 0).all()
