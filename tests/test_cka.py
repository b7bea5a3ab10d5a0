"""ckasr.cka against dcor, ckatorch and naive pairwise code, in values and gradients."""

import itertools
import math

import dcor
import numpy as np
import pytest
import torch
from ckatorch.core import cka_base
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import ckasr
from ckasr.cka import center, gram_linear, gram_rbf, hsic, unit_grams


def features(n: int = 10, dims: tuple[int, ...] = (6, 9, 4), seed: int = 0) -> list[torch.Tensor]:
    """Correlated layers in float64: each adds noise to a projection of a common input."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    return [
        base @ torch.randn(5, d, generator=generator, dtype=torch.float64)
        + 0.5 * torch.randn(n, d, generator=generator, dtype=torch.float64)
        + 3.0
        for d in dims
    ]


def song_hsic(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """HSIC_1 by Song et al.'s three-term formula, on raw features, pair by pair."""
    n = len(x)
    k, l = (z @ z.T for z in (x, y))  # noqa: E741
    k, l = (g - torch.diag(torch.diag(g)) for g in (k, l))  # noqa: E741
    trace = (k @ l).trace()
    outer = k.sum() * l.sum() / ((n - 1) * (n - 2))
    cross = 2 * (k.sum(0) @ l.sum(0)) / (n - 2)
    return (trace + outer - cross) / (n * (n - 3))


def feature_space_cka(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Biased linear CKA as the paper's eq. 3 prints it: in feature space."""
    x, y = x - x.mean(0), y - y.mean(0)
    return (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


def naive_cka(x: torch.Tensor, y: torch.Tensor, estimator: str) -> torch.Tensor:
    if estimator == "biased":
        return feature_space_cka(x, y)
    return song_hsic(x, y) / (song_hsic(x, x) * song_hsic(y, y)).sqrt()


def naive_term(stages: list[list[torch.Tensor]], variant: str) -> torch.Tensor:
    """The three losses as paper.md words them: a double loop over layers."""
    if variant == "aug":
        layers = [f for stage in stages for f in stage]
        values = [naive_cka(x, y, "biased") for x, y in itertools.combinations(layers, 2)]
        return torch.stack(values).mean()
    estimator = {"paper": "biased", "official": "unbiased"}[variant]
    return sum(naive_cka(x, y, estimator) for stage in stages for x in stage for y in stage)


def value_and_gradients(function, tensors):
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    value = function(tensors)
    return value.detach(), torch.autograd.grad(value, tensors)


def test_unbiased_hsic_equals_dcor_and_song():
    x, y, _ = features()
    expected = dcor.u_product(
        dcor.u_centered((gram_linear(x) - gram_linear(x).diag().diag()).numpy()),
        dcor.u_centered((gram_linear(y) - gram_linear(y).diag().diag()).numpy()),
    )
    ours = hsic(gram_linear(x), gram_linear(y)).item()
    assert ours == pytest.approx(expected, rel=1e-10)
    assert ours == pytest.approx(song_hsic(x, y).item(), rel=1e-10)


def test_biased_hsic_is_grettons_trace():
    x, y, _ = features()
    n = len(x)
    k, l = gram_linear(x), gram_linear(y)  # noqa: E741
    h = torch.eye(n, dtype=k.dtype) - 1 / n
    expected = (k @ h @ l @ h).trace() / (n - 1) ** 2
    torch.testing.assert_close(hsic(k, l, "biased"), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_linear_cka_equals_ckatorch(estimator):
    x, y, _ = features()
    expected = cka_base(
        x, y, kernel="linear", unbiased=estimator == "unbiased", method="fro_norm"
    ).item()
    assert ckasr.linear_cka(x, y, estimator).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [10, 40])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_values_and_gradients_equal_the_pairwise_reference(estimator, n):
    """10 samples of 6 and 9 features go by Gram matrices, 40 by products of features."""
    pair = features(n)[:2]
    ours = value_and_gradients(lambda t: ckasr.linear_cka(*t, estimator), pair)
    naive = value_and_gradients(lambda t: naive_cka(*t, estimator), pair)
    torch.testing.assert_close(ours, naive, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_rbf_cka_equals_a_direct_computation(estimator):
    x, y, _ = features()
    grams = []
    for z in (x, y):
        squared = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").square()
        off_diagonal = squared[~torch.eye(len(z), dtype=torch.bool)]
        grams.append(torch.exp(-squared / (2 * 0.8**2 * off_diagonal.median())))
    expected = (
        hsic(*grams, estimator)
        / (hsic(grams[0], grams[0], estimator) * hsic(grams[1], grams[1], estimator)).sqrt()
    )
    ours = ckasr.rbf_cka(x, y, estimator=estimator, bandwidth=0.8)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-10)


def test_the_gradient_of_rbf_takes_the_median_as_a_constant():
    x, y, _ = features(9)
    width = torch.pdist(x).median()
    leaf = x.clone().requires_grad_()
    squares = (leaf[:, None] - leaf[None, :]).square().sum(-1)
    kernels = torch.exp(-squares / (2 * width**2)), gram_rbf(y)
    hsics = [hsic(kernels[i], kernels[j]) for i, j in ((0, 1), (0, 0), (1, 1))]
    (expected,) = torch.autograd.grad(hsics[0] / (hsics[1] * hsics[2]).sqrt(), leaf)
    torch.testing.assert_close(torch.func.grad(ckasr.rbf_cka)(x, y), expected)


def test_rbf_tends_to_linear_at_large_bandwidth():
    x, y, _ = features()
    linear = ckasr.linear_cka(x, y, "biased").item()
    assert ckasr.rbf_cka(x, y, estimator="biased", bandwidth=1e3).item() == pytest.approx(
        linear, abs=1e-5
    )
    assert ckasr.rbf_cka(x, y, estimator="biased", bandwidth=0.5).item() != pytest.approx(
        linear, abs=1e-2
    )


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_matrix_contains_every_pair(estimator, kernel):
    layers = features(dims=(6, 9, 4, 20))
    matrix = ckasr.cka_matrix(layers, estimator=estimator, kernel=kernel)
    single = (
        (lambda x, y: ckasr.linear_cka(x, y, estimator))
        if kernel == "linear"
        else (lambda x, y: ckasr.rbf_cka(x, y, estimator=estimator))
    )
    for i, j in itertools.product(range(4), range(4)):
        assert matrix[i, j].item() == pytest.approx(single(layers[i], layers[j]).item(), rel=1e-12)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(4, dtype=torch.float64))


@given(n=st.integers(4, 24), d=st.integers(1, 40), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_unbiased_cka_is_bounded_and_invariant(n, d, seed):
    x, y = features(n, (d, 7), seed)
    value = ckasr.linear_cka(x, y).item()
    assert abs(value) <= 1 + 1e-12
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    moved = 2.5 * x @ rotation + torch.randn(d, generator=generator, dtype=torch.float64)
    assert ckasr.linear_cka(moved, y).item() == pytest.approx(value, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("variant", ["official", "paper", "aug"])
def test_loss_equals_the_double_loop_in_value_and_gradient(variant):
    layers = features(8, (12, 30, 5, 7, 16, 3))
    sizes = [2, 3, 1]
    naive = value_and_gradients(
        lambda t: naive_term([list(s) for s in _split(t, sizes)], variant), layers
    )
    ours = value_and_gradients(lambda t: ckasr.cka_sr_loss(_split(t, sizes), variant), layers)
    torch.testing.assert_close(ours, naive, rtol=1e-10, atol=1e-12)


def test_channels_last_changes_no_value_and_no_gradient():
    generator = torch.Generator().manual_seed(2)
    shapes = [(8, 6, 5, 5), (8, 12, 3, 3), (8, 4, 1, 1), (8, 1, 4, 4)]
    layers = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]

    def term(tensors, memory_format):
        return ckasr.cka_sr_loss([[t.to(memory_format=memory_format) for t in tensors]])

    plain = value_and_gradients(lambda t: term(t, torch.contiguous_format), layers)
    last = value_and_gradients(lambda t: term(t, torch.channels_last), layers)
    torch.testing.assert_close(last, plain, rtol=1e-10, atol=1e-13)


CALLS = {
    "linear": lambda x, y: ckasr.linear_cka(x, y),
    "linear, biased": lambda x, y: ckasr.linear_cka(x, y, "biased"),
    "rbf": lambda x, y: ckasr.rbf_cka(x, y, bandwidth=0.7),
    "rbf, biased and wide": lambda x, y: ckasr.rbf_cka(x, y, estimator="biased", bandwidth=2),
    "matrix": lambda x, y: ckasr.cka_matrix([x, y, 2 * y])[0, 2],
    "loss": lambda x, y: ckasr.cka_sr_loss([[x, y]]),
    "loss, aug": lambda x, y: ckasr.cka_sr_loss([[x, y]], "aug"),
    "loss, adjacent": lambda x, y: ckasr.cka_sr_loss([[x], [y]], "paper", pairs="adjacent"),
    "hsic": lambda x, y: ckasr.hsic(gram_linear(x), gram_rbf(y)),
}


@pytest.mark.parametrize("n", [5, 12])
@pytest.mark.parametrize("call", CALLS)
def test_function_transforms(call, n):
    """5 samples go by Gram matrices, 12 by products of features."""
    x, y, _ = features(n, (3, 4, 1))

    def value(z):
        return CALLS[call](z, y)

    leaf = x.clone().requires_grad_()
    (backward,) = torch.autograd.grad(value(leaf), leaf)
    gradient = torch.func.grad(value)
    torch.testing.assert_close(gradient(x), backward)
    torch.testing.assert_close(torch.func.jacfwd(value)(x), backward)
    batch = torch.stack([x, x.flip(0), x.square()])
    torch.testing.assert_close(
        torch.func.vmap(value)(batch), torch.stack([value(z) for z in batch])
    )
    torch.testing.assert_close(
        torch.func.vmap(gradient)(batch), torch.stack([gradient(z) for z in batch])
    )
    second = torch.func.jacrev(gradient)(x)
    torch.testing.assert_close(torch.func.jacfwd(gradient)(x), second)


@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_derivatives_are_those_of_finite_differences(estimator, n):
    x, y, _ = features(n, (3, 4, 1))
    leaf = x.clone().requires_grad_()

    def value(z):
        return ckasr.linear_cka(z, y, estimator)

    assert torch.autograd.gradcheck(value, leaf)
    assert torch.autograd.gradgradcheck(value, leaf)


def test_features_of_images_under_vmap_and_compile():
    x, y, _ = features(6)
    images = torch.stack([x, x.flip(0)])[..., None, None].expand(-1, -1, -1, 2, 2)
    similar = torch.func.vmap(lambda z: ckasr.linear_cka(z, y))(images)
    torch.testing.assert_close(similar[1], ckasr.linear_cka(x.flip(0), y))
    for call in (ckasr.linear_cka, ckasr.rbf_cka, CALLS["loss"]):
        leaf = x.clone().requires_grad_()
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(
            torch.autograd.grad(compiled(leaf, y), leaf)[0],
            torch.func.grad(lambda z, call=call: call(z, y))(x),
        )


def _split(tensors, sizes):
    iterator = iter(tensors)
    return [list(itertools.islice(iterator, size)) for size in sizes]


def test_number_of_terms_is_the_papers():
    """Identical layers have CKA 1 everywhere, so the loss counts its terms: 27 in ResNet20."""
    x = features()[0]
    for blocks, terms in ((3, 27), (5, 75), (9, 243)):
        value = ckasr.cka_sr_loss([[x] * blocks] * 3, "official")
        assert value.item() == pytest.approx(terms, rel=1e-12)
    assert ckasr.cka_sr_loss([[x] * 3] * 3, "aug").item() == pytest.approx(1, rel=1e-12)


def test_other_pairs():
    layers = features(9, (6, 9, 4, 11))
    matrix = ckasr.cka_matrix(layers)
    stages = [layers[:2], layers[2:]]
    loss = {p: ckasr.cka_sr_loss(stages, pairs=p).item() for p in ("all", "adjacent", "input")}
    assert loss["all"] == pytest.approx(matrix.sum().item(), rel=1e-12)
    assert loss["adjacent"] == pytest.approx(2 * matrix.diagonal(1).sum().item(), rel=1e-12)
    assert loss["input"] == pytest.approx(2 * matrix[0, 1:].sum().item(), rel=1e-12)
    mean = ckasr.cka_sr_loss([layers[:3], layers[3:]], "aug", pairs="within").item()
    biased = ckasr.cka_matrix(layers[:3], estimator="biased")
    expected = biased[np.triu_indices(3, 1)].mean().item()
    assert mean == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("offset", [0.0, 0.1, -7.3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", ["official", "paper", "aug"])
def test_dead_feature_gives_zero_and_no_gradient(offset, dtype, variant):
    alive = features(8)[0].to(dtype)
    dead = torch.full((8, 33), offset, dtype=dtype, requires_grad=True)
    assert ckasr.linear_cka(dead, alive, "unbiased").item() == 0
    assert ckasr.rbf_cka(dead, alive).item() == 0
    loss = ckasr.cka_sr_loss([[dead, alive, alive * 2]], variant)
    loss.backward()
    assert torch.isfinite(loss)
    assert (dead.grad == 0).all()
    torch.testing.assert_close(
        ckasr.cka_matrix([dead, alive]).diagonal(), torch.tensor([0, 1], dtype=dtype)
    )


VARIANTS = {"unbiased": "official", "biased": "paper"}


def everywhere(layers, estimator):
    """The linear CKA matrix of the three functions that compute it, and the RBF one."""
    meter = ckasr.MinibatchCKA(estimator)
    meter.update(layers)
    yield ckasr.cka_matrix(layers, estimator=estimator).double()
    yield meter.compute()
    pairs = [[ckasr.cka_sr_loss([[x], [y]], VARIANTS[estimator], pairs="adjacent") for y in layers]
             for x in layers]  # fmt: skip
    yield torch.tensor(pairs).double() / 2
    yield ckasr.cka_matrix(layers, estimator=estimator, kernel="rbf").double()


@pytest.mark.parametrize("n", [8, 80])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_layer_with_infinite_values_has_no_similarity(bad, estimator, n):
    """NaN with every layer, a dead one too; the other pairs keep their values."""
    x, broken, y = (f.float() for f in features(n))
    layers = [x, broken, y, torch.full((n, 3), 0.1)]
    whole = list(everywhere(layers, estimator))
    broken[n // 2, 1] = bad
    for matrix, before in zip(everywhere(layers, estimator), whole, strict=True):
        assert matrix[1].isnan().all()
        assert matrix[:, 1].isnan().all()
        rest = torch.tensor([0, 2, 3])
        torch.testing.assert_close(matrix[rest][:, rest], before[rest][:, rest], rtol=0, atol=0)
    for variant in ("official", "paper", "aug"):
        assert ckasr.cka_sr_loss([[x, y], [broken, y]], variant).isnan()


@pytest.mark.parametrize("n", [8, 80])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("scale", [1e-15, 1e-9, 1e11, 1e15])
def test_cka_does_not_depend_on_scale(scale, estimator, n):
    layers = [f.float() for f in features(n)]
    scaled = [layers[0] * scale, layers[1] / scale, layers[2]]
    for matrix, same in zip(
        everywhere(scaled, estimator), everywhere(layers, estimator), strict=True
    ):
        torch.testing.assert_close(matrix, same, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float32, 1e-36),
        (torch.float32, 1e36),
        (torch.float64, 1e-300),
        (torch.float64, 1e300),
    ],
)
@pytest.mark.parametrize("n", [8, 80])
def test_matrices_are_finite_for_any_scale_of_their_dtype(dtype, scale, n):
    layers = [f.to(dtype) for f in features(n)]
    scaled = [layers[0] * scale, *layers[1:]]
    for kernel in ("linear", "rbf"):
        matrix, same = (ckasr.cka_matrix(z, kernel=kernel) for z in (scaled, layers))
        torch.testing.assert_close(matrix, same, rtol=0, atol=2e-6)
    one, other = ckasr.MinibatchCKA(), ckasr.MinibatchCKA()
    # The first batch of the first layer is constant: its scale is that of the second batch.
    for batch in ([torch.ones(n, 2, dtype=dtype), *layers[1:]], layers, layers[::-1]):
        one.update(batch)
        other.update([batch[0] * scale, *batch[1:]])
    torch.testing.assert_close(one.compute(), other.compute(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("width", [24, 600])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_one_huge_sample_does_not_make_a_layer_constant(estimator, width):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, width, generator=generator)
    y = x[:, :20] + torch.randn(400, 20, generator=generator)
    x[17] *= 1e5
    grams = [center(gram_linear(z.double()), estimator) for z in (x, y)]
    expected = ((grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())).item()
    for matrix in list(everywhere([x, y], estimator))[:3]:
        assert matrix[0, 1].item() == pytest.approx(expected, abs=2e-5)
        assert matrix[0, 0].item() == pytest.approx(1, abs=2e-5)


def equidistant(n, dtype):
    return 7 * torch.eye(n, dtype=dtype) + 0.3


def all_equal_but_one(n, dtype):
    x = torch.full((n, 4), 0.7, dtype=dtype)
    x[n // 3] = torch.tensor([0.1, -0.4, 2.3, 1e3], dtype=dtype)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [16, 200])
@pytest.mark.parametrize("make", [equidistant, all_equal_but_one])
def test_a_vanishing_u_centred_gram_matrix_counts_as_a_dead_layer_everywhere(make, n, dtype):
    """Such a layer varies, but to the unbiased estimator as the sum of two row effects does."""
    generator = torch.Generator().manual_seed(0)
    empty = make(n, dtype)
    alive = torch.randn(n, 5, generator=generator, dtype=dtype)
    expected = torch.tensor([[0, 0], [0, 1]]).double()
    for matrix in everywhere([empty, alive], "unbiased"):
        torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-6)
        assert (matrix[0] == 0).all()
    for bandwidth in (0.1, 0.5, 100):
        assert ckasr.rbf_cka(empty, alive, bandwidth=bandwidth) == 0
    biased = ckasr.cka_matrix([empty, alive], estimator="biased")
    torch.testing.assert_close(biased.diagonal(), torch.ones(2, dtype=dtype))
    empty.requires_grad_()
    ckasr.cka_matrix([empty, alive]).sum().backward()
    assert (empty.grad == 0).all()


def test_rounding_errors_of_many_samples_do_not_count_as_similarity():
    """Sums over samples round by more than one number does: 20 layers of 700 samples, one apart."""
    generator = torch.Generator().manual_seed(8)
    layers = torch.full((20, 700, 3), 0.7, dtype=torch.float64)
    layers[:, 300] = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    assert (ckasr.cka_matrix(list(layers)) == 0).all()


@pytest.mark.parametrize("shape", [(2500, 30), (1200, 700)])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_float32_is_accurate_at_thousands_of_samples(shape, estimator):
    """2500 x 30 goes by products of features, 1200 x 700 by Gram matrices."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(shape, generator=generator)
    y = torch.relu(x + torch.randn(shape, generator=generator))
    wide = [z.double() - z.double().mean(0) for z in (x, y)]
    if estimator == "biased":
        expected = feature_space_cka(*wide).item()
    else:
        expected = naive_cka(*wide, "unbiased").item()
    meter = ckasr.MinibatchCKA(estimator)
    meter.update([x, y])
    loss = ckasr.cka_sr_loss([[x, y]], VARIANTS[estimator]).item()
    assert meter.compute()[0, 1].item() == pytest.approx(expected, abs=1e-6)
    assert ckasr.linear_cka(x, y, estimator).item() == pytest.approx(expected, abs=1e-6)
    assert loss == pytest.approx(2 + 2 * expected, abs=3e-6)
    assert ckasr.linear_cka(x, x, estimator).item() == pytest.approx(1, abs=1e-6)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_narrow_layers_need_no_gram_matrix(estimator):
    generator = torch.Generator().manual_seed(5)
    layers = [torch.randn(3000, d, generator=generator, requires_grad=True) for d in (6, 9, 1)]
    with LargestTensor() as largest:
        ckasr.linear_cka(*layers[:2], estimator).backward()
        ckasr.cka_matrix(layers, estimator=estimator)[0, 1].backward()
        ckasr.MinibatchCKA(estimator).update(layers)
    assert largest.elements == 3000 * 9


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool])
def test_integers_are_converted_exactly(dtype):
    generator = torch.Generator().manual_seed(6)
    counts = torch.randint(0, 2 if dtype == torch.bool else 100, (20, 7), generator=generator)
    y = torch.randn(20, 5, generator=generator).double()
    expected = ckasr.linear_cka(counts.double(), y).item()
    given = ckasr.linear_cka(counts.to(dtype), y)
    assert given.dtype == torch.float64
    assert given.item() == pytest.approx(expected, abs=1e-14)
    if dtype == torch.int64:
        for offset in (2**40, 2**62, -(2**62)):
            shifted = ckasr.cka_matrix([counts + offset, y])[0, 1]
            assert shifted.item() == pytest.approx(expected, abs=1e-14)
        # Differences that overflow int64.
        ends = torch.tensor([-(2**63), 2**63 - 1, 0, 2**62, -(2**61), 5])[:, None]
        assert ckasr.linear_cka(ends, ends.double()).item() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("bandwidth", [0.05, 0.1, 0.3, 1, 1.2, 30])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_rbf_in_float32_has_the_value_of_float64(bandwidth, estimator):
    """At 0.05 the kernel is near 1e-87 off the diagonal, at 30 near 1 - 1e-3."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(60, 300, generator=generator)
    y = x + 0.3 * torch.randn(60, 300, generator=generator)
    kernels = [gram_rbf(z.double(), bandwidth) for z in (x, y)]
    x_kernel, y_kernel = (center(kernel, estimator) for kernel in kernels)
    expected = (x_kernel * y_kernel).sum() / (x_kernel.norm() * y_kernel.norm())
    ours = ckasr.rbf_cka(x, y, estimator=estimator, bandwidth=bandwidth)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(expected.item(), rel=1e-4)
    # A tenth of the bandwidth takes the kernel out of the range of float64 as well.
    assert ckasr.rbf_cka(x, x, bandwidth=bandwidth / 10).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_rbf_at_the_widest_bandwidth_is_linear(estimator):
    x, y, _ = (f.float() for f in features(30))
    linear = ckasr.linear_cka(x, y, estimator).item()
    rbf = ckasr.rbf_cka(x, y, estimator=estimator, bandwidth=1e7)
    assert rbf.item() == pytest.approx(linear, abs=1e-6)


def test_rbf_of_mostly_equal_samples_takes_the_median_of_the_pairs_that_differ():
    """Its bandwidth would have the unit of the features, if the median distance were 0."""
    x, y = features(12)[:2]
    x[:10] = x[0]
    pairs = torch.pdist(x)
    median = pairs[pairs > 1e-6].median()
    expected = torch.exp(-(torch.cdist(x, x) ** 2) / (2 * 0.5**2 * median**2))
    torch.testing.assert_close(gram_rbf(x, 0.5), expected)
    value = ckasr.rbf_cka(x, y)
    for scale in (1e-6, 1e6):
        torch.testing.assert_close(ckasr.rbf_cka(x.float() * scale, y).item(), value.item())


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_float32_survives_large_offsets(offset):
    """Song's formula on raw float32 features gives NaN or noise here."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 16384, generator=generator) + offset
    y = 0.3 * x + torch.randn(8, 16384, generator=generator)
    exact = ckasr.linear_cka(x.double(), y.double()).item()
    assert ckasr.linear_cka(x, y).item() == pytest.approx(exact, abs=2e-4)


def test_half_precision_is_computed_in_float32():
    x, y, _ = (f.float() for f in features())
    with torch.autocast("cpu", torch.bfloat16):
        value = ckasr.cka_sr_loss([[x, y]])
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, ckasr.cka_sr_loss([[x, y]]))
    assert ckasr.linear_cka(x.bfloat16(), y.bfloat16()).dtype == torch.float32


def test_pooled_minibatches_approach_the_full_value():
    """At batches of 8 the pooled unbiased value is near the full one, the biased far above it."""
    x, y, _ = features(4096, (64, 64, 4))
    full = ckasr.linear_cka(x, y).item()
    pooled = {}
    for estimator in ("unbiased", "biased"):
        meter = ckasr.MinibatchCKA(estimator)
        for start in range(0, 4096, 8):
            meter.update([x[start : start + 8], y[start : start + 8]])
        pooled[estimator] = meter.compute()[0, 1].item()
    assert (meter.samples, meter.batches) == (4096, 512)
    assert pooled["unbiased"] == pytest.approx(full, abs=0.02)
    assert abs(pooled["biased"] - full) > 0.05


def test_pooled_single_batch_is_the_matrix():
    layers = features(12)
    for estimator in ("unbiased", "biased"):
        meter = ckasr.MinibatchCKA(estimator)
        meter.update(layers)
        torch.testing.assert_close(
            meter.compute(), ckasr.cka_matrix(layers, estimator=estimator), rtol=1e-10, atol=1e-12
        )


def test_pooled_batches_of_unequal_size_average_hsic():
    batches = [features(8, seed=1), features(20, seed=2)]
    for estimator in ("unbiased", "biased"):
        meter = ckasr.MinibatchCKA(estimator)
        for batch in batches:
            meter.update(batch)

        def mean_hsic(i, j, estimator=estimator):
            pairs = [(gram_linear(batch[i]), gram_linear(batch[j])) for batch in batches]
            return sum(hsic(x, y, estimator) for x, y in pairs) / len(pairs)

        expected = mean_hsic(0, 1) / (mean_hsic(0, 0) * mean_hsic(1, 1)).sqrt()
        assert meter.compute()[0, 1].item() == pytest.approx(expected.item(), rel=1e-10)


def test_null_law_by_full_enumeration():
    """Over all pairings of 6 samples: mean 0 and variance 2 / (n (n - 3)), exactly."""
    x, y, _ = features(6)
    units = unit_grams([x, y]).reshape(2, 6, 6)
    values = torch.stack(
        [(units[0] * units[1][list(p)][:, list(p)]).sum() for p in itertools.permutations(range(6))]
    )
    scores = ckasr.null_zscore(values, 6)
    assert scores.mean().item() == pytest.approx(0, abs=1e-12)
    assert scores.square().mean().item() == pytest.approx(1, rel=1e-12)


def test_center_rows_sum_to_zero():
    gram = gram_rbf(features(7)[0])
    for estimator in ("unbiased", "biased"):
        assert center(gram, estimator).sum(-1).abs().max() < 1e-13
    assert (center(gram, "unbiased").diagonal() == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ckasr.linear_cka(x[:3], x[:3]), "at least 4 samples, got n = 3"),
        (lambda x: ckasr.cka_sr_loss([[x[:3], x[:3]]]), "at least 4 samples"),
        (lambda x: ckasr.linear_cka(x[:1], x[:1], "biased"), "at least 2 samples"),
        (lambda x: ckasr.cka_matrix([x, x[:5]]), "same samples"),
        (lambda x: ckasr.cka_matrix([]), "at least one layer"),
        (lambda x: ckasr.cka_sr_loss([[x]], "aug"), "no pair of layers"),
        (lambda x: ckasr.cka_sr_loss([[x]], pairs="adjacent"), "no pair of layers"),
        (lambda x: ckasr.cka_sr_loss([[x]], "offical"), "nearest: official"),
        (lambda x: ckasr.cka_sr_loss([[x, x]], pairs="some"), "unknown pairs"),
        (lambda x: ckasr.linear_cka(x, x, "debiased"), "unknown estimator"),
        (lambda x: ckasr.rbf_cka(x, x, bandwidth=0), "bandwidth must be positive"),
        (lambda x: ckasr.null_zscore(0.1, 3), "at least 4 samples"),
        (lambda x: ckasr.MinibatchCKA().compute(), "no minibatch"),
        (lambda x: ckasr.rbf_cka(x, x, bandwidth=math.inf), "bandwidth must be positive"),
        (lambda x: ckasr.cka_sr_loss([[x, x]], pairs=""), "unknown pairs"),
        (lambda x: ckasr.cka_matrix([x, x[:, :0]]), r"layer 1 has no feature: shape \(10, 0\)"),
        (lambda x: ckasr.linear_cka(x, x[0, 0]), "layer 1 must have a sample dimension"),
        (lambda x: ckasr.linear_cka(x, x + 1j), "layer 1 is complex"),
        (lambda x: ckasr.cka_sr_loss([[x, x + 1j]]), "layer 1 is complex"),
        (lambda x: ckasr.MinibatchCKA().update([x + 1j]), "layer 0 is complex"),
        (lambda x: gram_rbf(x + 1j), "the input is complex"),
        (lambda x: ckasr.linear_cka(x, x.numpy()), "layer 1 must be a tensor .*, got ndarray"),
        (lambda x: ckasr.linear_cka(x, x.to_sparse()), "layer 1 is a sparse tensor"),
        (lambda x: ckasr.linear_cka(x.to(torch.uint64), x), "layer 0 is uint64"),
        (lambda x: ckasr.cka_matrix(x), r"got one tensor of shape \(10, 6\)"),
        (lambda x: ckasr.MinibatchCKA().update(x), "a list of tensors"),
        (lambda x: ckasr.cka_sr_loss([x, x]), r"pass \[\[x, y\]\]"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        call(features()[0])
    assert "\n" not in str(error.value)
