"""The benchmark of filter pruning: the small network computes the same with less work."""

import pytest
import torch

from benchmarks import structured

pytest.importorskip("torch_pruning")
CPU = torch.device("cpu")


def test_the_small_network_computes_the_same_with_less():
    networks = structured.networks("resnet20", 0.5, CPU)
    dense, masked, small = networks.values()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        want, got = masked(images), small(images)
        assert not torch.allclose(dense(images), want)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
    kept = [sum(p.numel() for p in n.parameters() if p.dim() > 1) for n in (dense, small)]
    assert 0.45 * kept[0] < kept[1] <= 0.5 * kept[0]
    work = [structured.multiply_adds(n, CPU) for n in networks.values()]
    assert work[0] == work[1] > work[2]


def test_every_network_is_timed_at_every_batch_size():
    timings = structured.measure(CPU, 1, ("resnet20",), (0.5,), (8, 1))
    assert [t.variant for t in timings] == [*(["dense", "masked", "small network"] * 2)]
    assert [t.images for t in timings] == [8] * 3 + [1] * 3
    assert len({t.benchmark for t in timings}) == 2
