"""Saliency scores against closed forms, and the methods that prune by them before training."""

import copy
import itertools
import math
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from ckasr import data, methods, models
from ckasr.experiments import Settings, run
from ckasr.methods import score
from ckasr.methods.scores import per_class
from ckasr.sparsity import global_topk_masks, prunable

SCORES = ("magnitude", "snip", "grasp", "synflow")
CLASSES = 4


def network(activation: type[nn.Module] = nn.Tanh, seed: int = 0, bias: bool = True) -> nn.Module:
    """A float64 net with convolution, batch norm and classifier; smooth unless asked otherwise."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=bias),
        nn.BatchNorm2d(3),
        activation(),
        nn.Conv2d(3, 4, 3, bias=bias),
        activation(),
        nn.Flatten(),
        nn.Linear(4 * 4, CLASSES, bias=bias),
    ).double()
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    return net


def batch(count: int = 12, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.arange(count) % CLASSES


def gradient(net: nn.Module, x: Tensor, y: Tensor, temperature: float = 1.0) -> list[Tensor]:
    loss = nn.functional.cross_entropy(net(x) / temperature, y)
    return list(torch.autograd.grad(loss, list(prunable(net).values())))


def assert_close(a: Tensor, b: Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item())


class TestClosedForms:
    def test_magnitude_is_the_absolute_weight(self):
        net = network()
        scores = score(net, "magnitude")
        assert list(scores) == list(prunable(net))
        for name, weight in prunable(net).items():
            assert torch.equal(scores[name], weight.abs())

    @pytest.mark.parametrize("density", [0.05, 0.1, 0.37])
    def test_magnitude_masks_agree_with_torch_prune(self, density):
        net = network(seed=3)
        total = sum(w.numel() for w in prunable(net).values())
        masks = global_topk_masks(score(net, "magnitude"), round(density * total))
        other = copy.deepcopy(net)
        layers = [(m, "weight") for m in other if hasattr(m, "weight") and m.weight.ndim > 1]
        prune.global_unstructured(layers, prune.L1Unstructured, amount=1 - density)
        differ = sum(
            int((mask != layer.weight_mask.bool()).sum())
            for mask, (layer, _) in zip(masks.values(), layers, strict=True)
        )
        assert differ <= 2
        assert sum(int(mask.sum()) for mask in masks.values()) == round(density * total)

    @hypothesis_settings(max_examples=10)
    @given(seed=st.integers(0, 1000), chunk=st.integers(1, 20), relu=st.booleans())
    def test_snip_is_weight_times_gradient(self, seed, chunk, relu):
        net, (x, y) = network(nn.ReLU if relu else nn.Tanh, seed), batch(seed=seed)
        scores = score(net, "snip", x, y, chunk=chunk)
        net.eval()
        for name, g in zip(prunable(net), gradient(net, x, y), strict=True):
            assert_close(scores[name], (prunable(net)[name] * g).abs())

    def test_snip_in_train_mode_uses_the_batch_statistics(self):
        net, (x, y) = network(), batch()
        scores = score(net, "snip", x, y, train_mode=True)
        net.train()
        for name, g in zip(prunable(net), gradient(net, x, y), strict=True):
            assert_close(scores[name], (prunable(net)[name] * g).abs())

    @hypothesis_settings(max_examples=5)
    @given(seed=st.integers(0, 1000), temperature=st.sampled_from([1.0, 200.0]))
    def test_grasp_is_a_central_difference_of_the_gradient_norm(self, seed, temperature):
        """Scaling a weight by 1 + t changes |g|^2 / 2 at the rate of its score."""
        net, (x, y) = network(seed=seed).eval(), batch(seed=seed)
        scores = score(net, "grasp", x, y, temperature=temperature)
        generator = torch.Generator().manual_seed(seed)

        def half_norm(name: str, direction: Tensor, t: float) -> float:
            moved = copy.deepcopy(net)
            with torch.no_grad():
                prunable(moved)[name].mul_(1 + t * direction)
            return sum(g.square().sum().item() for g in gradient(moved, x, y, temperature)) / 2

        for name, weight in prunable(net).items():
            one = torch.zeros(weight.numel(), dtype=torch.float64)
            one[torch.randint(weight.numel(), (), generator=generator)] = 1
            for direction in (torch.ones_like(weight), one.view_as(weight)):
                t = 1e-4
                ends = half_norm(name, direction, t), half_norm(name, direction, -t)
                expected = (ends[0] - ends[1]) / (2 * t)
                actual = (scores[name] * direction).sum().item()
                scale = scores[name].abs().max().item()
                assert actual == pytest.approx(expected, rel=1e-5, abs=1e-5 * scale)

    def test_grasp_equals_the_full_hessian(self):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False))
        net.double()
        x, y = torch.randn(9, 3, dtype=torch.float64), torch.arange(9) % 3
        scores = score(net, "grasp", x, y, temperature=1.0, chunk=4)

        def loss(flat: Tensor) -> Tensor:
            first, second = flat[:12].view(4, 3), flat[12:].view(3, 4)
            return nn.functional.cross_entropy(torch.tanh(x @ first.T) @ second.T, y)

        flat = torch.cat([w.detach().flatten() for w in prunable(net).values()])
        g = torch.autograd.functional.jacobian(loss, flat)
        hessian = torch.autograd.functional.hessian(loss, flat)
        assert_close(torch.cat([s.flatten() for s in scores.values()]), flat * (hessian @ g))

    def test_grasp_in_train_mode_multiplies_each_half_by_the_whole_gradient(self):
        """The authors' two loops: gradients of both halves summed, then a product for each."""
        net, (x, y) = network(), batch()
        scores = score(net, "grasp", x, y, train_mode=True, chunk=6, temperature=200.0)
        net.train()
        weights = list(prunable(net).values())
        whole = [0.0] * len(weights)
        for half in (slice(0, 6), slice(6, 12)):
            parts = gradient(net, x[half], y[half], 200.0)
            whole = [a + g for a, g in zip(whole, parts, strict=True)]
        product = 0.0
        for half in (slice(0, 6), slice(6, 12)):
            loss = nn.functional.cross_entropy(net(x[half]) / 200.0, y[half])
            parts = torch.autograd.grad(loss, weights, create_graph=True)
            product = product + sum((a * g).sum() for a, g in zip(whole, parts, strict=True))
        for name, hg in zip(prunable(net), torch.autograd.grad(product, weights), strict=True):
            assert_close(scores[name], prunable(net)[name] * hg / 4)  # ours: means, not sums

    @pytest.mark.parametrize(
        ("count", "chunk", "sizes"),
        [(13, 12, [7, 6]), (12, 12, [12]), (14, 4, [4, 4, 3, 3]), (9, 4, [3, 3, 3])],
    )
    def test_batch_statistics_are_of_equal_chunks(self, count, chunk, sizes):
        """A small rest would have the statistics of a few images, a rest of one has none."""
        net, (x, y) = network(), batch(count)
        scores = score(net, "snip", x, y, train_mode=True, chunk=chunk)
        whole = score(net, "grasp", x, y, train_mode=True, chunk=chunk)
        assert all(s.isfinite().all() for s in whole.values())
        net.train()
        total = [0.0] * len(scores)
        for part in torch.arange(count).split(sizes):
            share = len(part) / count
            parts = gradient(net, x[part], y[part])
            total = [a + share * g for a, g in zip(total, parts, strict=True)]
        for name, g in zip(scores, total, strict=True):
            assert_close(scores[name], (prunable(net)[name] * g).abs())

    @hypothesis_settings(max_examples=10)
    @given(
        seed=st.integers(0, 1000),
        widths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    )
    def test_synflow_conserves_the_layer_totals(self, seed, widths):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Conv2d(2, widths[0], 3, bias=False), nn.ReLU(), nn.Flatten()]
        sizes = [16 * widths[0], *widths[1:], 3]
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
        net = nn.Sequential(*layers)
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm1d):  # as after training
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
        scores = score(net, "synflow", torch.zeros(1, 2, 6, 6))
        totals = torch.stack([s.sum() for s in scores.values()])
        assert (totals > 0).all()
        assert_close(totals, totals[0].expand_as(totals))

    def test_synflow_is_the_sum_over_paths(self):
        first, second = nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)
        net = nn.Sequential(first, nn.ReLU(), second)
        scores = score(net, "synflow", torch.zeros(1, 3))
        a, b = first.weight.detach().double().abs(), second.weight.detach().double().abs()
        assert_close(scores["0.weight"], a * b.sum(0)[:, None])
        assert_close(scores["2.weight"], b * a.sum(1)[None, :])
        keep = torch.tensor([[True, False], [True, True]])
        masks = {"0.weight": torch.ones(2, 3, dtype=torch.bool), "2.weight": keep}
        left = score(net, "synflow", torch.zeros(1, 3), masks=masks)
        assert_close(left["0.weight"], a * (b * keep).sum(0)[:, None])

    def test_synflow_sees_no_data_and_survives_depth(self):
        net = models.create("resnet110", num_classes=10)
        x = torch.randn(2, 3, 8, 8)
        scores = score(net, "synflow", x)
        for name, other in score(net, "synflow", 100 * x).items():
            assert torch.equal(scores[name], other)
            assert (other > 0).any()


@pytest.mark.parametrize("method", SCORES)
@pytest.mark.parametrize("training", [False, True])
def test_scoring_leaves_the_model_as_it_was(method, training):
    net, (x, y) = network(nn.ReLU).float(), batch()
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[3].weight.grad = torch.ones_like(net[3].weight)
    before = copy.deepcopy(net)
    options = {"train_mode": training} if method in ("snip", "grasp") else {}
    with torch.no_grad():
        scores = score(net, method, x.float(), y, **options)
    for (name, value), old in zip(
        net.state_dict().items(), before.state_dict().values(), strict=True
    ):
        assert torch.equal(value, old), name
    for (name, p), old in zip(net.named_parameters(), before.parameters(), strict=True):
        assert p.requires_grad == old.requires_grad, name
        assert (p.grad is not None) == (name == "3.weight"), name
    assert torch.equal(net[3].weight.grad, torch.ones_like(net[3].weight))
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert net.state_dict()["0.weight"].dtype == torch.float32
    for name, weight in prunable(net).items():
        assert scores[name].shape == weight.shape
        assert scores[name].dtype == torch.float64
        assert not scores[name].requires_grad


class Net(nn.Module):
    """Layers and a forward pass."""

    def __init__(self, forward, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self.layers, x)


def tensors(*shape: int, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(8, *shape, generator=generator), torch.arange(8) % classes


def assert_same_scores(net: nn.Module, other: nn.Module, method: str, x: Tensor, y: Tensor) -> None:
    other.load_state_dict(net.state_dict())
    others = score(other, method, x, y)
    for name, value in score(net, method, x, y).items():
        assert value.any()
        assert_close(value, others[name])


def plain(m: nn.ModuleList, x: Tensor) -> Tensor:
    return m[1](torch.relu(m[0](x)))


def with_a_buffer(m: nn.ModuleList, x: Tensor) -> Tensor:
    hidden = torch.zeros(len(x), 6, dtype=torch.float32)
    hidden[:] = m[0](x)
    hidden.add_(torch.ones(6)).sub_(1.0)
    return m[1](hidden.relu())


def under_autocast(m: nn.ModuleList, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return plain(m, x)


class TestWhatModelsDo:
    @pytest.mark.parametrize("method", ["snip", "grasp"])
    @pytest.mark.parametrize(
        "forward",
        [
            lambda m, x: plain(m, x.float()),
            lambda m, x: m[1](torch.relu(m[0](x.to(torch.float32)).half()).type_as(x)),
            with_a_buffer,
            under_autocast,
        ],
    )
    def test_casts_within_round_nothing(self, forward, method):
        layers = nn.Linear(5, 6), nn.Linear(6, CLASSES)
        assert_same_scores(
            Net(plain, *layers), Net(forward, *copy.deepcopy(layers)), method, *tensors(5)
        )

    @pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
    def test_tokens_stay_integers(self, method):
        torch.manual_seed(0)
        net = Net(
            lambda m, x: m[2](torch.relu(m[1](m[0](x).mean(1)))),
            nn.Embedding(9, 5, padding_idx=0),
            nn.Linear(5, 6),
            nn.Linear(6, CLASSES),
        )
        tokens = torch.arange(8 * 3).view(8, 3) % 9
        scores = score(net, method, tokens, tensors(1)[1])
        assert list(scores) == ["layers.1.weight", "layers.2.weight"]
        assert all(value.any() for value in scores.values())
        if method == "synflow":  # as if all embeddings were ones
            weights = [w.detach().double().abs() for w in prunable(net).values()]
            for layer in net.layers[1:]:
                nn.init.zeros_(layer.bias)
            first = score(net, method, tokens)["layers.1.weight"]
            assert_close(first, weights[0] * weights[1].sum(0)[:, None])

    def test_uint8_inputs_are_cast_by_the_model(self):
        layers = nn.Linear(5, 6), nn.Linear(6, CLASSES)
        net = Net(lambda m, x: plain(m, x.float() / 255), *layers)
        x = torch.arange(40, dtype=torch.uint8).view(8, 5)
        found = score(net, "snip", x, tensors(5)[1])
        expected = score(Net(plain, *layers), "snip", x.double() / 255, tensors(5)[1])
        for name, value in found.items():
            assert_close(value, expected[name])

    @pytest.mark.parametrize("method", ["snip", "grasp"])
    def test_attention_is_scored_as_written_out(self, method):
        def fused(m, x):
            q, k, v = m[0](x)[:, None].chunk(3, -1)
            x = nn.functional.scaled_dot_product_attention(q, k, v)
            return m[1](x[:, 0].mean(1))

        def written(m, x):
            q, k, v = m[0](x).chunk(3, -1)
            return m[1]((torch.softmax(q @ k.mT / 2, -1) @ v).mean(1))

        layers = nn.Linear(4, 12), nn.Linear(4, CLASSES)
        assert_same_scores(
            Net(fused, *layers), Net(written, *copy.deepcopy(layers)), method, *tensors(3, 4)
        )

    @pytest.mark.parametrize("method", ["snip", "grasp"])
    def test_the_projections_of_attention_are_scored(self, method):
        net = Net(
            lambda m, x: m[1](m[0](x, x, x, need_weights=False)[0].mean(1)),
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.Linear(4, CLASSES),
        )
        scores = score(net, method, *tensors(3, 4))
        assert scores["layers.0.in_proj_weight"].any()
        assert scores["layers.0.out_proj.weight"].any()

    @pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
    def test_the_random_generator_stays_as_it_was(self, method):
        def forward(m, x):
            return m[2](nn.functional.dropout(m[1](m[0](x)), 0.3))  # in eval mode too

        net = Net(forward, nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, CLASSES))
        options = {} if method == "synflow" else {"train_mode": True}
        before = torch.get_rng_state()
        first = score(net, method, *tensors(5), **options)
        assert torch.equal(torch.get_rng_state(), before)
        second = score(net, method, *tensors(5), **options)
        assert all(torch.equal(value, second[name]) for name, value in first.items())

    @pytest.mark.parametrize("method", SCORES)
    def test_wrappers_and_tied_tables_keep_the_names_of_the_masks(self, method):
        table = nn.Embedding(CLASSES, 6)
        net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, CLASSES))
        net[2].weight = table.weight
        model = nn.Sequential()
        model.add_module("table", table)
        model.add_module("net", nn.DataParallel(net))
        model.forward = model.net.forward
        assert list(score(model, method, *tensors(5))) == ["net.0.weight", "net.2.weight"]
        assert list(prunable(model)) == ["net.0.weight", "net.2.weight"]

    @pytest.mark.parametrize("method", ["snip", "synflow"])
    @pytest.mark.parametrize("inference", [False, True])
    def test_compiled_parts_and_inference_mode_make_no_difference(self, method, inference):
        net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, CLASSES))
        compiled = nn.Sequential(torch.compile(net[:2]), copy.deepcopy(net[2]))
        compiled[1].compile()
        x, y = tensors(5)
        with torch.inference_mode(inference):
            found = score(compiled, method, x.double(), y)
        expected = score(net, method, x.double(), y)
        assert list(found) == ["0.0.weight", "1.weight"]
        for value, other in zip(found.values(), expected.values(), strict=True):
            assert torch.equal(value, other)


class Quotient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x.sum(1, keepdim=True))


class Negative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * -1


class TestLinearFlow:
    @pytest.mark.parametrize(
        "activation",
        [
            nn.ReLU6(),
            nn.ReLU6(inplace=True),
            nn.Hardtanh(0, 1e-3),
            nn.LeakyReLU(0.1),
            nn.PReLU(),
            nn.Sequential(nn.Dropout(0.5), nn.Identity()),
        ],
        ids=str,
    )
    def test_functions_that_keep_positive_values_count_as_relu(self, activation):
        layers = nn.Linear(5, 600), nn.Linear(600, CLASSES)
        net, other = (
            nn.Sequential(copy.deepcopy(layers[0]), between, copy.deepcopy(layers[1]))
            for between in (nn.ReLU(), activation)
        )
        for (name, value), capped in zip(
            score(net, "synflow", torch.zeros(1, 5)).items(),
            score(other, "synflow", torch.zeros(1, 5)).values(),
            strict=True,
        ):
            assert value.all(), name
            assert torch.equal(value, capped)

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            (nn.Tanh(), "uses tanh"),
            (nn.GELU(), "uses gelu"),
            (nn.Softmax(1), "uses softmax"),
            (nn.LogSoftmax(1), "uses log_softmax"),
            (nn.LayerNorm(6), "uses layer_norm"),
            (nn.BatchNorm1d(6, track_running_stats=False), "uses batch_norm by the statistics"),
            (nn.Hardtanh(0.5, 1), "uses hardtanh with limits that cut"),
            (nn.GLU(), "uses glu"),
            (Quotient(), "uses div with more than one factor that depends"),
            (Negative(), "makes values negative"),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )
    def test_layers_that_break_the_linear_flow_are_refused_by_name(self, layer, message):
        net = nn.Sequential(nn.Linear(5, 6), nn.Sequential(layer), nn.LazyLinear(CLASSES))
        net(torch.randn(2, 5))
        with pytest.raises(ValueError, match=f"layer '1.0' {message}") as error:
            score(net, "synflow", torch.zeros(1, 5))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("forward", "message"),
        [
            (lambda m, x: m[1](m[0](x) - x), "the model's forward pass uses sub"),
            (lambda m, x: m[1](m[0](x) * x), "uses mul with more than one factor"),
            (lambda m, x: m[1](x @ (m[0].weight - m[0].weight.mean())), "applies mean to a weight"),
            (lambda m, x: m[1](x + m[0].weight[0]), "uses add of a weight"),
        ],
    )
    def test_nonlinear_operations_in_the_forward_pass_are_refused(self, forward, message):
        net = Net(forward, nn.Linear(5, 5), nn.Linear(5, CLASSES))
        with pytest.raises(ValueError, match=message):
            score(net, "synflow", torch.zeros(1, 5))

    def test_an_infinity_in_a_pruned_place_does_not_matter(self):
        net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
        masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(net).items()}
        masks["0.weight"][0, 0] = False
        before = score(net, "synflow", torch.zeros(1, 2), masks=masks)
        net[0].weight.data[0, 0] = torch.inf
        after = score(net, "synflow", torch.zeros(1, 2), masks=masks)
        assert all(torch.equal(value, after[name]) for name, value in before.items())


class TestImpossible:
    def test_grasp_without_a_class(self):
        net, (x, y) = network(), batch()
        with pytest.raises(ValueError, match="lacks class 3"):
            score(net, "grasp", x[y < 3], y[y < 3])

    def test_no_batch(self):
        with pytest.raises(ValueError, match="'snip' needs inputs"):
            score(network(), "snip")
        with pytest.raises(ValueError, match="'grasp' needs targets"):
            score(network(), "grasp", batch()[0])

    def test_labels_that_do_not_fit(self):
        x, y = batch()
        with pytest.raises(ValueError, match="12 inputs but 11 targets"):
            score(network(), "snip", x, y[:-1])

    def test_empty_chunks(self):
        with pytest.raises(ValueError, match="chunk=0 must be at least 1"):
            score(network(), "snip", *batch(), chunk=0)

    def test_unknown_score(self):
        with pytest.raises(LookupError, match=r"no score called 'synflo'.*synflow"):
            score(network(), "synflo", batch()[0])

    @pytest.mark.parametrize("method", SCORES)
    def test_no_prunable_layer(self, method):
        with pytest.raises(ValueError, match="no conv or linear weight"):
            score(nn.BatchNorm2d(2), method, *batch())

    def test_overflow(self):
        net = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(4)))
        for layer in net:
            nn.init.constant_(layer.weight, 1e38)
        with pytest.raises(ValueError, match=r"layer '\d.weight' are not finite"):
            score(nn.Sequential(*net, *copy.deepcopy(net), *net), "synflow", torch.ones(1, 2))

    @pytest.mark.parametrize("options", [{"samples": 500}, {"samples": 0}])
    def test_more_images_of_a_class_than_there_are(self, options, tmp_path):
        settings = Settings(dataset="digits", model="resmlp", method="grasp", sparsity=0.9)
        with pytest.raises(ValueError, match="samples"):
            digits(tmp_path, settings, method_options=options)

    def test_a_sparsity_that_leaves_nothing(self, tmp_path):
        with pytest.raises(ValueError, match="leaves none of 37504 weights"):
            digits(tmp_path, method="synflow", sparsity=0.99999)

    @pytest.mark.parametrize(("method", "option"), [("synflow", "steps"), ("grasp", "temperature")])
    def test_bad_options(self, method, option):
        with pytest.raises(ValueError, match=f"{option} of method '{method}' is 0"):
            methods.create(method, {option: 0})


def test_per_class_takes_turns_or_goes_class_by_class():
    x = torch.arange(10.0).view(10, 1, 1, 1)
    y = torch.tensor([1, 1, 0, 2, 1, 0, 2, 0, 2, 2])
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    images, labels = per_class(iter(batches), 3, 2)
    assert images.flatten().tolist() == [2, 0, 3, 5, 1, 6]
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    images, labels = per_class(iter(batches), 3, 2, class_major=True)
    assert images.flatten().tolist() == [2, 5, 0, 1, 3, 6]
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="class 0 has 3 of the 4"):
        per_class(iter(batches), 3, 4)


def digits(results: Path, settings: Settings | None = None, **changes):
    values = {"sparsity": 0.98, "epochs": 1, "validation": 200, "batch_size": 32}
    if settings is None:
        settings = Settings(dataset="digits", model="resmlp", **(values | changes))
    else:
        settings = Settings.from_dict(settings.to_dict() | values | changes)
    return run(settings, results, device="cpu", progress=None)


METHODS = [
    ("magnitude", {}),
    ("snip", {}),
    ("snip", {"train_mode": False}),
    ("grasp", {}),
    ("grasp", {"train_mode": False}),
    ("grasp", {"official": True}),
    ("synflow", {"steps": 20}),
]


@pytest.mark.parametrize("beta", [0.0, 1e-3])
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_every_method_trains_with_and_without_the_term(tmp_path, method, options, beta):
    record = digits(tmp_path, method=method, method_options=options, beta=beta)
    assert record["status"] == "finished"
    assert record["sparsity"]["kept"] == round(0.02 * record["sparsity"]["weights"])
    assert (record["curves"]["term"][0] is not None) == (beta > 0)
    assert record["test_accuracy"] is not None


@pytest.fixture(scope="module")
def floor(tmp_path_factory):
    """Uniform random masks: what any choice by data or by paths must beat at 98 %."""
    results = tmp_path_factory.mktemp("floor")
    return digits(results, method="random", distribution="uniform", epochs=4)


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
def test_beats_random_masks_on_digits(tmp_path, method, floor):
    record = digits(tmp_path, method=method, epochs=4)
    assert record["test_accuracy"] > floor["test_accuracy"]
    assert record["sparsity"]["effective_kept"] > floor["sparsity"]["effective_kept"]


def test_synflow_keeps_weights_on_live_paths_only(tmp_path, floor):
    sparsity = digits(tmp_path, method="synflow")["sparsity"]
    assert sparsity["dead_layers"] == []
    assert sparsity["dead_classes"] == 0
    assert sparsity["effective_kept"] >= 0.98 * sparsity["kept"]
    assert floor["sparsity"]["effective_kept"] < 0.6 * floor["sparsity"]["kept"]


def test_synflow_never_revives_a_weight():
    """Six of seven units lose what enters them, so that what leaves them scores zero as well."""
    net = nn.Sequential(nn.Linear(2, 7, bias=False), nn.Linear(7, 1, bias=False))
    for layer in net:
        nn.init.constant_(layer.weight, 0.1)
    with torch.no_grad():
        net[0].weight[0] = net[1].weight[:, 0] = 10
    batches = [(torch.zeros(1, 2), torch.zeros(1))]
    context = methods.Context(net, 0.82, "erk", 0, 1, lambda: iter(batches), steps_per_epoch=1)
    # 21 weights, then 9 (one unit, six weights of the classifier), then 4.
    masks = methods.create("synflow", {"steps": 2}).prepare(context)
    assert masks["0.weight"].nonzero().tolist() == [[0, 0], [0, 1]]
    assert masks["1.weight"].nonzero().tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("steps", [3, 10])
def test_synflow_rounds_what_it_prunes_down(steps, monkeypatch):
    """As the authors' code, so that it keeps the count of the next integer above; the end exact."""
    seen, real = [], methods.scores.synflow

    def spy(model, x, *, masks):
        seen.append(sum(int(mask.sum()) for mask in masks.values()))
        return real(model, x, masks=masks)

    monkeypatch.setattr(methods.scores, "synflow", spy)
    context = context_of("lenet300", 0.9)
    masks = methods.create("synflow", {"steps": steps}).prepare(context)
    total = sum(mask.numel() for mask in masks.values())
    densities = [0.1 ** (step / steps) for step in range(steps)]
    assert seen == [math.ceil(d * total) for d in densities]
    assert seen != [round(d * total) for d in densities]
    assert sum(int(mask.sum()) for mask in masks.values()) == context.kept


def test_grasp_scores_by_batch_statistics_unless_told_otherwise():
    context = context_of("resnet20", 0.95)
    x, y = per_class(context.samples(), 10, 10)
    for options, train_mode in (({}, True), ({"train_mode": False}, False)):
        masks = methods.create("grasp", options).prepare(context)
        expected = score(context.model, "grasp", x, y, train_mode=train_mode)
        assert_same(masks, global_topk_masks(expected, context.kept))
    with pytest.raises(ValueError, match="exclude each other"):
        methods.create("grasp", {"official": True, "train_mode": False})


def assert_same(masks, others) -> None:
    for name, mask in masks.items():
        assert torch.equal(mask, others[name]), name


def test_the_official_grasp_has_two_parts_of_an_odd_batch(monkeypatch):
    asked = []
    grasp = methods.scores.grasp
    monkeypatch.setattr(
        methods.scores,
        "grasp",
        lambda *a, **k: asked.append((len(a[1]), k["chunk"])) or grasp(*a, **k),
    )
    context = context_of("lenet300", 0.5)
    images = [(x[y < 9], y[y < 9]) for x, y in context.samples()]
    net = models.create("lenet300", num_classes=9, input_shape=tuple(images[0][0].shape[1:]))
    context = methods.Context(net, 0.5, "erk", 0, 9, lambda: iter(images), steps_per_epoch=1)
    methods.create("grasp", {"official": True, "samples": 1}).prepare(context)
    ((count, chunk),) = asked
    assert count == 9
    assert math.ceil(count / chunk) == 2


def test_the_three_forms_of_grasp_give_three_masks():
    masks = []
    for options in ({}, {"train_mode": False}, {"official": True}):
        context = context_of("resnet20", 0.9)
        found = methods.create("grasp", {"samples": 4, **options}).prepare(context)
        masks.append(torch.cat([m.flatten() for m in found.values()]))
        assert masks[-1].sum() == context.kept
    for a, b in itertools.combinations(masks, 2):
        assert 0.1 < (a & b).sum() / (a | b).sum() < 0.9


@pytest.mark.cifar
def test_snip_by_batch_statistics_keeps_more_classes(cifar):
    """Before training the running statistics normalise nothing, and the network predicts a few."""
    empty = {}
    for train_mode in (False, True):
        context = context_of("resnet20", 0.95, cifar)
        snip = methods.create("snip", {"samples": 1, "train_mode": train_mode})
        empty[train_mode] = int((~snip.prepare(context)["fc.weight"].any(1)).sum())
    assert empty[False] > 50
    assert empty[True] < 25


def test_layer_collapse_is_reported(tmp_path):
    """Magnitude prunes a layer that was drawn with small weights; SynFlow does not."""
    for method, collapses in (("magnitude", True), ("synflow", False)):
        context = context_of("lenet300", 0.95)
        with torch.no_grad():
            context.model.hidden[1].linear.weight.mul_(1e-3)
        masks = methods.create(method).prepare(context)
        empty = [name for name, mask in masks.items() if not mask.any()]
        assert empty == (["hidden.1.linear.weight"] if collapses else [])
    with pytest.warns(RuntimeWarning, match="layer collapse: phase 'train' starts with no weight"):
        record = digits(tmp_path, method="magnitude", sparsity=0.9999)
    assert record["sparsity"]["kept"] == 4
    assert record["sparsity"]["dead_layers"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        digits(tmp_path, method="synflow", sparsity=0.9)


def context_of(model: str, sparsity: float, dataset: data.Dataset | None = None) -> methods.Context:
    torch.manual_seed(0)
    dataset = dataset or data.load("digits")
    classes = dataset.num_classes
    net = models.create(model, num_classes=classes, input_shape=dataset.input_shape)
    batches = data.ImageBatches(
        dataset.train_images,
        dataset.train_labels,
        mean=dataset.mean,
        std=dataset.std,
        batch_size=64,
    )
    return methods.Context(net, sparsity, "erk", 0, classes, batches.in_order, len(batches))
