"""The benchmark of inference: what it compares computes the same, and depends on its input."""

from importlib.util import find_spec

import torch

from benchmarks import shrink as shrink_benchmark

CPU = torch.device("cpu")


def test_all_ways_compute_the_same_nonzero_output():
    images = torch.randn(32, 3, 32, 32).to(memory_format=torch.channels_last)
    networks = shrink_benchmark.networks("resnet20", 0.998, images)
    size = {label: sum(p.numel() for p in n.parameters()) for label, n in networks.items()}
    folded, masked, *others, shrunk = networks
    assert size[shrunk] < 0.5 * size[folded] < size[folded] < size[masked]
    with torch.no_grad():
        outputs = {way: networks[way](images) for way in (*others, shrunk)}
        want = networks[masked].double()(images.double())
    spread = (want - want.mean(0)).norm()
    assert spread > 1e-3 * want.norm()
    for got in outputs.values():
        assert (got - want).norm() < 0.01 * spread  # float32


def test_every_network_is_timed_at_every_batch_size():
    timings = shrink_benchmark.measure(CPU, 1, ("resnet20",), (0.99,), (8, 1))
    sparse = [shrink_benchmark.SPARSE] if find_spec("numba") else []
    ways = [shrink_benchmark.FOLDED, shrink_benchmark.MASKED, *sparse, shrink_benchmark.SHRUNK]
    assert [t.variant for t in timings] == ways * 2
    assert [t.images for t in timings] == [8] * len(ways) + [1] * len(ways)
    assert len({t.benchmark for t in timings}) == 2
