"""The benchmark of inference: what it compares computes the same, and depends on its input."""

import torch

from benchmarks import shrink as shrink_benchmark

CPU = torch.device("cpu")


def test_shrunk_and_masked_compute_the_same_and_something():
    images = torch.randn(32, 3, 32, 32).to(memory_format=torch.channels_last)
    networks = shrink_benchmark.networks("resnet20", 0.998, images)
    size = {label: sum(p.numel() for p in n.parameters()) for label, n in networks.items()}
    folded, masked, shrunk = networks
    assert size[shrunk] < 0.5 * size[folded] < size[folded] < size[masked]
    with torch.inference_mode():
        want = networks[masked].double()(images.double())
        got = networks[shrunk](images)
    spread = (want - want.mean(0)).norm()
    assert spread > 1e-3 * want.norm()
    assert (got - want).norm() < 0.01 * spread  # float32


def test_every_network_is_timed_at_every_batch_size():
    timings = shrink_benchmark.measure(CPU, 1, ("resnet20",), (0.99,), (8, 1))
    assert [t.variant for t in timings] == list(
        (shrink_benchmark.FOLDED, shrink_benchmark.MASKED, shrink_benchmark.SHRUNK) * 2
    )
    assert [t.images for t in timings] == [8] * 3 + [1] * 3
    assert len({t.benchmark for t in timings}) == 2
