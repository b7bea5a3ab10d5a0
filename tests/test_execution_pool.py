"""Global average pooling from planes: the dense numbers, however the model writes it."""

import copy

import pytest
import torch
from test_execution import EXACT, assert_same, prepared, results
from torch import Tensor, nn
from torch.nn import functional

from ckasr.execution import sparse_execution
from ckasr.sparsity import prunable

pytest.importorskip("numba")


class Pooled(nn.Module):
    """A convolution whose activation is pooled in the given way, and read once more if `twice`."""

    def __init__(self, pool, relu: bool = True, twice: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.BatchNorm2d(6))
        self.pool, self.relu, self.twice = pool, relu, twice
        self.fc = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = torch.relu(x) if self.relu else x
        out = self.fc(self.pool(x).flatten(1))
        return out + x.amax((2, 3))[:, :4] if self.twice else out


GLOBAL = {
    "mean": lambda x: x.mean((2, 3)),
    "mean of a list, kept": lambda x: x.mean([-2, -1], keepdim=True),
    "torch.mean": lambda x: torch.mean(x, dim=(2, 3)),
    "layer": nn.AdaptiveAvgPool2d(1),
    "layer of a pair": nn.AdaptiveAvgPool2d((1, 1)),
    "function": lambda x: functional.adaptive_avg_pool2d(x, 1),
}
OTHERS = {
    "mean over the rows": lambda x: x.mean(2),
    "mean over the channels": lambda x: x.mean((1, 2)),
    "mean in another type": lambda x: x.mean((2, 3), dtype=torch.float64),
    "layer with four outputs": nn.AdaptiveAvgPool2d(2),
    "maximum": lambda x: functional.adaptive_max_pool2d(x, 1),
}


def pair(model: nn.Module, images: int = 5) -> tuple[nn.Module, nn.Module, dict, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(images, 3, 7, 5, dtype=torch.float64)
    model.double()(x)  # the lazy layer finds its size
    masks = {n: torch.rand(w.shape) < 0.3 for n, w in prunable(model).items()}
    masks["features.0.weight"][1] = False  # a channel that is constant
    dense = prepared(model, masks, torch.float64)
    return dense, copy.deepcopy(dense), masks, x


def gradients_written(handle) -> list[tuple[int, int]]:
    """Height and width of the planes that the gradients of inputs of units are written to."""
    sizes: list[tuple[int, int]] = []
    buffers = handle.units[0].workspace.buffers
    plain = buffers.take

    def take(key, *rest):
        if key[0] == "to input":
            sizes.append(key[1].shape[2:])
        return plain(key, *rest)

    buffers.take = take
    return sizes


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("kind", [*GLOBAL, *OTHERS])
def test_every_pooling_gives_the_dense_numbers(kind, relu, twice):
    dense, sparse, masks, x = pair(Pooled((GLOBAL | OTHERS)[kind], relu, twice))
    handle = sparse_execution(sparse, masks)
    for _ in range(2):  # the second step finds used buffers
        assert_same(results(sparse, x, masks), results(dense, x, masks), EXACT)
    assert not any(bound.plain_calls for bound in handle.units)


@pytest.mark.parametrize("kind", [*GLOBAL, *OTHERS])
def test_only_global_averages_run_on_the_kernel(kind):
    _, sparse, masks, x = pair(Pooled((GLOBAL | OTHERS)[kind]))
    sizes = gradients_written(sparse_execution(sparse, masks))
    sparse(x).sum().backward()
    assert ((7, 5) in sizes) == (kind in GLOBAL)


def test_a_hook_on_the_pooling_layer_is_called():
    dense, sparse, masks, x = pair(Pooled(nn.AdaptiveAvgPool2d(1)))
    seen = []
    for model in (dense, sparse):
        model.pool.register_forward_hook(lambda module, inputs, out: seen.append(out) or 2 * out)
    sparse_execution(sparse, masks)
    assert_same(results(sparse, x, masks), results(dense, x, masks), EXACT)
    assert len(seen) == 4


def test_features_changed_before_pooling_are_pooled_as_they_are_then():
    dense, sparse, masks, x = pair(Pooled(lambda x: x.mul_(2).mean((2, 3)), relu=False))
    sparse_execution(sparse, masks)
    assert_same(results(sparse, x, masks), results(dense, x, masks), EXACT)


def test_features_changed_after_pooling_are_refused_where_torch_refuses():
    def pool(x: Tensor) -> Tensor:
        means = x.mean((2, 3))
        x.mul_(2)
        return means

    dense, sparse, masks, x = pair(Pooled(pool, relu=False))
    sparse_execution(sparse, masks)
    assert_same(results(sparse, x, masks), results(dense, x, masks), EXACT)
    dense, sparse, masks, x = pair(Pooled(pool, relu=True))
    sparse_execution(sparse, masks)
    for model in (dense, sparse):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            model(x).sum().backward()
