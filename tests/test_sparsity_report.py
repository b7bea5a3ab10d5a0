"""The report: live weights against brute-force graph search, known counts, an untouched model."""

import copy
import itertools
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from ckasr import models
from ckasr.sparsity import allocate, layer_densities, prunable, random_masks, report
from ckasr.sparsity.report import _trace

Node = tuple[object, ...]
Edge = tuple[Node, Node, tuple[object, ...] | None]  # from, to, (weight name, *index)


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in prunable(model).items()}


def ones(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes_of(model).items()}


def bernoulli(model: nn.Module, density: float, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(shape, generator=generator) < density
        for name, shape in shapes_of(model).items()
    }


def live_weights(model: nn.Module, masks: dict[str, Tensor], input_shape) -> dict[str, Tensor]:
    return _trace(model, prunable(model), masks, input_shape).live


# --- brute force -----------------------------------------------------------------------------


def reachable(start: Iterable[Node], edges: Iterable[Edge]) -> set[Node]:
    after: dict[Node, list[Node]] = {}
    for source, target, _ in edges:
        after.setdefault(source, []).append(target)
    seen, todo = set(start), list(start)
    while todo:
        for node in after.get(todo.pop(), []):
            if node not in seen:
                seen.add(node)
                todo.append(node)
    return seen


def search(edges: list[Edge], inputs, outputs, masks) -> tuple[dict[str, Tensor], set[Node]]:
    """Live weights and reached nodes of the network written out unit by unit."""
    ahead = reachable(inputs, edges)
    back = reachable(outputs, [(target, source, label) for source, target, label in edges])
    live = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    for source, target, label in edges:
        if label is not None and source in ahead and target in back:
            live[label[0]][label[1:]] = True
    return live, ahead


def grid(channels: int, size: int) -> list[tuple[int, int, int]]:
    return list(itertools.product(range(channels), range(size), range(size)))


def linear_edges(source: str, target: str, name: str, mask: Tensor) -> list[Edge]:
    return [((source, i), (target, o), (name, o, i)) for o, i in mask.nonzero().tolist()]


def conv_edges(source, target, name, mask, size, stride=1, pad=1) -> list[Edge]:
    edges = []
    out = (size + 2 * pad - mask.shape[-1]) // stride + 1
    for o, i, ky, kx in mask.nonzero().tolist():
        for y, x in itertools.product(range(out), range(out)):
            at = (y * stride + ky - pad, x * stride + kx - pad)
            if min(at) >= 0 and max(at) < size:
                edges.append(((source, i, *at), (target, o, y, x), (name, o, i, ky, kx)))
    return edges


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=5),
    st.floats(0.1, 0.9),
    st.integers(0, 2**31),
)
def test_mlps_against_every_path_written_out(widths, density, seed):
    layers = [
        layer
        for a, b in itertools.pairwise(widths)
        for layer in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())
    ]
    model = nn.Sequential(*layers[:-2])
    masks = bernoulli(model, density, seed)
    expected = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    for path in itertools.product(*map(range, widths)):
        steps = list(zip(masks, path[1:], path[:-1], strict=True))
        if all(masks[name][o, i] for name, o, i in steps):
            for name, o, i in steps:
                expected[name][o, i] = True
    live = live_weights(model, masks, (widths[0],))
    assert all(torch.equal(live[name], expected[name]) for name in masks)


class Skips(nn.Module):
    """Every construction that a residual convnet uses, small enough to be written out."""

    def __init__(self, pool: nn.Module, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.bn2 = nn.GroupNorm(1, 4)
        self.conv3 = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.GELU()
        self.project = nn.Conv2d(3, 4, 1, stride=2) if shortcut == "B" else None
        self.pool = pool
        self.fc = nn.Linear(4, 3)

    def shortcut(self, x: Tensor) -> Tensor:
        return (
            self.project(x)
            if self.project
            else functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        y = self.conv3(self.act(self.bn2(self.conv2(x))))
        x = functional.relu(y + self.shortcut(x))
        return self.fc(self.pool(x).flatten(1))


def skips_edges(masks: dict[str, Tensor], shortcut: str) -> list[Edge]:
    edges = conv_edges("image", "a", "conv1.weight", masks["conv1.weight"], 4)
    edges += conv_edges("a", "b", "conv2.weight", masks["conv2.weight"], 4, stride=2)
    edges += conv_edges("b", "c", "conv3.weight", masks["conv3.weight"], 2)
    if shortcut == "B":
        weight = masks["project.weight"]
        edges += conv_edges("a", "c", "project.weight", weight, 4, stride=2, pad=0)
    else:
        edges += [(("a", c, 2 * y, 2 * x), ("c", c, y, x), None) for c, y, x in grid(3, 2)]
    edges += [(("c", c, y, x), ("pooled", c), None) for c, y, x in grid(4, 2)]
    return edges + linear_edges("pooled", "out", "fc.weight", masks["fc.weight"])


@settings(max_examples=60)
@given(
    st.sampled_from([nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(1)]),
    st.sampled_from("AB"),
    st.floats(0.03, 0.6),
    st.integers(0, 2**31),
)
def test_convolutions_and_skips_against_the_network_written_out(pool, shortcut, density, seed):
    model = Skips(pool, shortcut)
    masks = bernoulli(model, density, seed)
    inputs = [("image", *place) for place in grid(2, 4)]
    expected, ahead = search(
        skips_edges(masks, shortcut), inputs, [("out", c) for c in range(3)], masks
    )
    live = live_weights(model, masks, (2, 4, 4))
    assert all(torch.equal(live[name], expected[name]) for name in masks)

    found = report(model, masks, (2, 4, 4))
    assert found["dead_classes"] == sum(("out", c) not in ahead for c in range(3))
    hidden = [name for name in masks if name != "fc.weight"]
    assert found["filters"] == sum(len(masks[name]) for name in hidden)
    assert found["dead_filters"] == sum(
        not expected[name][o].any() for name in hidden for o in range(len(masks[name]))
    )
    assert found["effective_kept"] == sum(int(weights.sum()) for weights in expected.values())


# --- the numbers of a report -----------------------------------------------------------------


def test_every_number_of_a_small_network_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    conv, fc = torch.zeros(2, 1, 3, 3, dtype=torch.bool), torch.zeros(3, 8, dtype=torch.bool)
    conv[0, 0, 1, 1] = conv[1, 0, 0, 0] = True  # filter 1 looks up and left: 1 pixel of 4 is not 0
    fc[0, 3] = True  # class 0 reads filter 0
    fc[1, 4] = True  # class 1 reads filter 1 where it only sees padding
    assert report(model, {"0.weight": conv, "3.weight": fc}, (1, 2, 2)) == {
        "weights": 42,
        "kept": 4,
        "nominal": 1 - 4 / 42,
        "effective_kept": 2,
        "effective": 1 - 2 / 42,
        "dead_layers": [],
        "filters": 2,
        "dead_filters": 1,
        "classes": 3,
        "empty_classes": 1,
        "dead_classes": 2,
        "macs_dense": 18 * 4 + 24,
        "macs": 2 * 4 + 2,
        "layers": {
            "0.weight": {"shape": [2, 1, 3, 3], "kept": 2, "effective": 1},
            "3.weight": {"shape": [3, 8], "kept": 2, "effective": 1},
        },
    }


def test_layer_collapse_kills_a_chain_but_not_a_residual_network():
    chain = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    masks = ones(chain)
    masks["1.weight"][:] = False
    found = report(chain, masks, (4,))
    assert found["kept"] == 32
    assert found["effective_kept"] == 0
    assert found["dead_layers"] == ["0.weight", "1.weight", "2.weight"]
    assert (found["empty_classes"], found["dead_classes"]) == (0, 4)

    network = models.create("resnet20", num_classes=10)
    masks = ones(network)
    masks["layer2.1.conv1.weight"][:] = False
    found = report(network, masks, (3, 32, 32))
    assert found["dead_layers"] == ["layer2.1.conv1.weight", "layer2.1.conv2.weight"]
    assert found["dead_classes"] == 0
    assert found["effective_kept"] == found["kept"] - 32 * 32 * 9


@pytest.mark.parametrize("name", models.names())
def test_a_dense_network_is_all_alive(name):
    shape = (1, 8, 8) if name == "resmlp" else (3, 32, 32)
    model = models.create(name, num_classes=10, input_shape=shape)
    found = report(model, ones(model), shape)
    assert found["kept"] == found["effective_kept"] == found["weights"]
    assert found["nominal"] == found["effective"] == 0
    assert found["dead_layers"] == []
    assert found["dead_filters"] == found["empty_classes"] == found["dead_classes"] == 0
    assert found["macs"] == found["macs_dense"]


@pytest.mark.parametrize(
    ("name", "images", "told"),
    [
        ("resnet20", (3, 32, 32), (3, 32, 32)),
        ("resmlp", (1, 8, 8), (64,)),
        ("lenet300", (1, 28, 28), (784,)),
    ],
)
def test_without_a_shape_the_first_layer_tells_it(name, images, told):
    model = models.create(name, num_classes=10, input_shape=images)
    assert report(model, ones(model)) == report(model, ones(model), told)


def test_a_first_layer_that_does_not_tell_the_shape():
    line = nn.Conv1d(1, 2, 3)
    with pytest.raises(ValueError, match="give input_shape: it cannot be told from a Conv1d"):
        report(line, ones(line))


def test_multiply_adds_of_resnet20():
    # The stem and 6 + 5 + 5 convolutions of 2304 weights on 32x32, 9216 on 16x16, 36864 on 8x8
    # positions; the first of a stage reads half as many channels; two projections; 64 x 10.
    stage = 2304 * 1024
    expected = 432 * 1024 + 6 * stage + 2 * (5 * stage + stage // 2) + 2 * 512 * 256 + 640
    found = report(model := models.create("resnet20", num_classes=10), ones(model), (3, 32, 32))
    assert found["macs_dense"] == expected
    half = ones(model)
    half["layer3.2.conv2.weight"][:32] = False
    assert expected - report(model, half, (3, 32, 32))["macs"] == 36864 // 2 * 64


def test_at_998_per_mille_most_classes_of_cifar100_have_no_weight():
    """The published expectation: 553 weights, 52 of them in the classifier, 59 empty classes."""
    model = models.create("resnet20", num_classes=100)
    shapes = shapes_of(model)
    densities = layer_densities(shapes, 0.002, "erk")
    counts = allocate(densities, shapes)
    assert sum(counts.values()) == 553
    assert counts["fc.weight"] == 52
    found = [report(model, random_masks(shapes, densities, s), (3, 32, 32)) for s in range(12)]
    assert all(each["kept"] == 553 for each in found)
    # The chance that a row of 64 misses all 52 of 6400 places: expected 59.2, spread 2.9 a draw.
    assert sum(each["empty_classes"] for each in found) / 12 == pytest.approx(59.2, abs=2.5)
    for each in found:
        assert each["effective_kept"] < each["kept"]
        assert each["dead_classes"] >= each["empty_classes"]


@settings(max_examples=5)
@given(st.integers(0, 2**31), st.floats(0.004, 0.01))
def test_weights_off_every_path_make_no_difference_to_the_real_network(seed, density):
    model = models.create("resnet20", num_classes=10).double().eval()
    shapes = shapes_of(model)
    masks = random_masks(shapes, layer_densities(shapes, density, "erk"), seed)
    live = live_weights(model, masks, (3, 32, 32))
    assert any((live[name] != mask).any() for name, mask in masks.items())
    images = torch.rand(
        4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    outputs = []
    for chosen in (masks, live):
        network = copy.deepcopy(model)
        with torch.no_grad():
            for name, weight in prunable(network).items():
                weight.mul_(chosen[name])
            outputs.append(network(images))
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)


# --- robustness ------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was():
    model = models.create("resnet20", num_classes=10)
    model.layer2.eval()
    calls: list[str] = []
    held = []

    def hook(module, args, output):
        calls.append("hook")
        held.append(output)  # a closure over a graph: nothing that deepcopy could copy

    model.conv1.register_forward_hook(hook)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = {name: param.grad.clone() for name, param in model.named_parameters()}
    flags = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    kinds = [type(module) for module in model.modules()]
    calls.clear()
    masks = bernoulli(model, 0.3, 0)
    given_masks = {name: mask.clone() for name, mask in masks.items()}

    report(model, masks, (3, 32, 32))

    assert calls == []
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(p.grad, grads[name]) for name, p in model.named_parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert [module.training for module in model.modules()] == flags
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(mask, given_masks[name]) for name, mask in masks.items())


def test_the_weights_themselves_do_not_matter():
    model = models.create("resnet20", num_classes=10)
    masks = bernoulli(model, 0.05, 1)
    before = report(model, masks, (3, 32, 32))
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(float("nan"))
    with torch.no_grad():
        assert report(model.bfloat16(), masks, (3, 32, 32)) == before


class Constants(nn.Module):
    """Units that carry constants: shifts, a position embedding, activations with f(0) > 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.gain = nn.Parameter(torch.full((2,), 1e-6))
        self.position = nn.Parameter(torch.randn(2))
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.first(x) * self.gain + self.position)
        return functional.softplus(self.fc(x))


def test_a_unit_that_carries_a_constant_reaches_nothing():
    masks = {
        "first.weight": torch.tensor([[True, True], [False, False]]),
        "fc.weight": torch.eye(2).bool(),
    }
    found = report(Constants(), masks, (2,))
    assert found["effective_kept"] == 3
    assert found["dead_filters"] == 1
    assert (found["empty_classes"], found["dead_classes"]) == (0, 1)


def test_a_layer_that_never_runs_is_dead_and_costs_nothing():
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].unused = nn.Linear(4, 4)
    found = report(model, ones(model), (3,))
    assert found["dead_layers"] == ["0.unused.weight"]
    assert found["macs_dense"] == 6


@pytest.mark.parametrize("dead", [0, 1])
def test_the_number_of_paths_does_not_overflow(dead):
    width, depth = 64, 200  # 64 ** 200 is beyond float64, and infinity times a dead unit is NaN
    deep = nn.Sequential(
        *(m for _ in range(depth) for m in (nn.Linear(width, width), nn.ReLU())),
        nn.Linear(width, 3),
    )
    masks = ones(deep)
    for mask in list(masks.values())[:-1]:
        mask[:dead] = False
    found = report(deep, masks, (width,))
    alive = width - dead
    assert found["effective_kept"] == width * alive + (depth - 1) * alive**2 + 3 * alive


@pytest.mark.parametrize(
    "last", [nn.ReLU6(), nn.Sigmoid(), nn.Softmax(1), nn.LogSoftmax(1), nn.Dropout(0.9)]
)
def test_activations_that_saturate_normalise_or_drop_hide_no_path(last):
    model = nn.Sequential(nn.Linear(9, 3), nn.ReLU6(), nn.Dropout(0.9), nn.Linear(3, 2), last)
    found = report(model, ones(model), (9,))
    assert found["effective_kept"] == found["weights"]
    assert found["dead_classes"] == 0


def test_a_shared_weight_counts_once_and_is_used_twice():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2))
    model[2].weight = model[0].weight
    found = report(model, ones(model), (3,))
    assert found["weights"] == 15
    assert found["macs_dense"] == 24


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3)), (1, 8, 8), r"shape \(2, 2, 6, 6\).*classifier"),
        (nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))), (4,), "classifier"),
        (nn.TransformerEncoderLayer(4, 2), (3, 4), "is attention"),
        (
            nn.Sequential(nn.MaxPool2d(2, dilation=2), nn.Flatten(), nn.Linear(4, 2)),
            (1, 4, 4),
            "layer '0' is a dilated pooling",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(model, shape, message):
    with pytest.raises(ValueError, match=message):
        report(model, ones(model), shape)


def test_masks_that_do_not_fit_are_refused():
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"no mask for layer '0\.weight'"):
        report(model, {}, (3,))
