"""The report: live weights against graph search and derivatives, known counts, what is refused."""

import itertools
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_networks import (
    MODELS,
    SMOOTH,
    Written,
    bernoulli,
    linears,
    masked,
    ones,
    shapes_of,
)
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ckasr import models
from ckasr.sparsity import allocate, layer_densities, prunable, random_masks, report
from ckasr.sparsity.paths import live_weights

Node = tuple[object, ...]
Edge = tuple[Node, Node, tuple[object, ...] | None]  # from, to, (weight name, *index)


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


def shortcut(m: nn.Module, x: Tensor) -> Tensor:
    if hasattr(m, "project"):
        return m.project(x)
    return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 1))


def with_skips(m: nn.Module, x: Tensor) -> Tensor:
    x = functional.relu(m.bn1(m.conv1(x)))
    y = m.conv3(functional.gelu(m.bn2(m.conv2(x))))
    return m.fc(m.pool(functional.relu(y + shortcut(m, x))).flatten(1))


def skips(pool: nn.Module, shortcut: str) -> nn.Module:
    """Every construction that a residual convnet uses, small enough to be written out."""
    layers = {
        "conv1": nn.Conv2d(2, 3, 3, padding=1, bias=False),
        "bn1": nn.BatchNorm2d(3),
        "conv2": nn.Conv2d(3, 4, 3, stride=2, padding=1),
        "bn2": nn.GroupNorm(1, 4),
        "conv3": nn.Conv2d(4, 4, 3, padding=1),
        "pool": pool,
        "fc": nn.Linear(4, 3),
    }
    if shortcut == "B":
        layers["project"] = nn.Conv2d(3, 4, 1, stride=2)
    return Written(with_skips, **layers)


def skips_edges(masks: dict[str, Tensor], shortcut: str) -> list[Edge]:
    edges = conv_edges("image", "a", "conv1.weight", masks["conv1.weight"], 4)
    edges += conv_edges("a", "before", "conv2.weight", masks["conv2.weight"], 4, stride=2)
    # The group norm's mean and variance make each value depend on all others.
    edges += [(("before", *place), ("norm",), None) for place in grid(4, 2)]
    edges += [(("norm",), ("b", *place), None) for place in grid(4, 2)]
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
    model = skips(pool, shortcut)
    masks = bernoulli(model, density, seed)
    inputs = [("image", *place) for place in grid(2, 4)]
    expected, ahead = search(
        skips_edges(masks, shortcut), inputs, [("out", c) for c in range(3)], masks
    )
    live = live_weights(model, masks, (2, 4, 4)).weights
    assert all(torch.equal(live[name], expected[name]) for name in masks)

    found = report(model, masks, (2, 4, 4))
    assert found["dead_classes"] == sum(("out", c) not in ahead for c in range(3))
    hidden = [name for name in masks if name != "fc.weight"]
    assert found["filters"] == sum(len(masks[name]) for name in hidden)
    assert found["dead_filters"] == sum(
        not expected[name][o].any() for name in hidden for o in range(len(masks[name]))
    )
    assert found["effective_kept"] == sum(int(weights.sum()) for weights in expected.values())


# --- what a real network depends on ----------------------------------------------------------


def depends(model: nn.Module, masks: dict[str, Tensor], input_shape) -> dict[str, Tensor]:
    """Live weights of the real network, by its derivatives at random weights.

    A weight of a layer is live if, at some place, the derivative of its input by the model's input
    and that of the model's output by its output both differ from zero.
    """
    for p in model.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    with torch.no_grad():
        for name, weight in prunable(model).items():
            weight.copy_(torch.randn(weight.shape).double() * masks[name])
    into: dict[str, Tensor] = {}
    out_of: dict[str, Tensor] = {}

    def seen(name: str):
        def hook(module, args, output):
            if not output.requires_grad:
                into[name] = forward_ad.unpack_dual(args[0]).tangent
                out_of[name] = torch.zeros_like(output)
            else:
                output.register_hook(lambda grad: out_of.__setitem__(name, grad))

        return hook

    layers = {name: model.get_submodule(name.removesuffix(".weight")) for name in masks}
    for name, layer in layers.items():
        layer.register_forward_hook(seen(name))
    x = torch.randn(1, *input_shape).double()
    with torch.no_grad(), forward_ad.dual_level():
        model(forward_ad.make_dual(x, torch.randn_like(x)))
    output = model(x)
    (output * torch.randn(output.shape)).sum().backward()
    live = {}
    for name, layer in layers.items():
        at, grad = ((tensor[name].abs() > 1e-13).double() for tensor in (into, out_of))
        if isinstance(layer, nn.Linear):
            places = grad.flatten(0, -2).T @ at.flatten(0, -2)
        else:
            places = torch.nn.grad.conv2d_weight(
                at, masks[name].shape, grad, layer.stride, layer.padding, groups=layer.groups
            )
        live[name] = masks[name] & (places > 0)
    return live


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("density", [0.15, 0.4, 1.0])
def test_live_weights_are_those_that_the_real_network_depends_on(name, density):
    make, shape = SMOOTH[name]
    for seed in range(6):
        torch.manual_seed(seed)
        model = make().double().eval()
        masks = bernoulli(model, density, seed)
        live = live_weights(model, masks, shape).weights
        expected = depends(model, masks, shape)
        for layer in masks:
            assert torch.equal(live[layer], expected[layer]), (layer, seed)


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


@pytest.mark.parametrize("name", MODELS)
def test_a_dense_network_is_all_alive(name):
    model = models.create(name, num_classes=10, input_shape=MODELS[name])
    found = report(model, ones(model), MODELS[name])
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
def test_without_a_shape_it_follows_from_the_first_layer(name, images, told):
    model = models.create(name, num_classes=10, input_shape=images)
    assert report(model, ones(model)) == report(model, ones(model), told)


def test_a_first_layer_from_which_the_shape_does_not_follow():
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


def test_at_99_8_percent_most_classes_of_cifar100_have_no_weight():
    """The published expectation: 553 weights, 52 of them in the classifier, 59 empty classes."""
    model = models.create("resnet20", num_classes=100)
    shapes = shapes_of(model)
    densities = layer_densities(shapes, 0.002, "erk")
    counts = allocate(densities, shapes)
    assert sum(counts.values()) == 553
    assert counts["fc.weight"] == 52
    drawn = [random_masks(shapes, densities, s) for s in range(12)]
    empty = [int((~masks["fc.weight"].any(1)).sum()) for masks in drawn]
    # The chance that a row of 64 misses all 52 of 6400 places: expected 59.2, spread 2.9 a draw.
    assert sum(empty) / 12 == pytest.approx(59.2, abs=2.5)
    for masks, classes in zip(drawn[:2], empty[:2], strict=True):
        each = report(model, masks, (3, 32, 32))
        assert (each["kept"], each["empty_classes"]) == (553, classes)
        assert each["effective_kept"] < each["kept"]
        assert each["dead_classes"] >= each["empty_classes"]


@settings(max_examples=5)
@given(st.integers(0, 2**31), st.floats(0.004, 0.01))
def test_weights_off_every_path_make_no_difference_to_the_real_network(seed, density):
    model = models.create("resnet20", num_classes=10).double().eval()
    shapes = shapes_of(model)
    masks = random_masks(shapes, layer_densities(shapes, density, "erk"), seed)
    live = live_weights(model, masks, (3, 32, 32)).weights
    assert any((live[name] != mask).any() for name, mask in masks.items())
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        outputs = [masked(model, chosen)(images) for chosen in (masks, live)]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)


# --- robustness ------------------------------------------------------------------------------


def test_the_weights_themselves_do_not_matter():
    model = models.create("resnet20", num_classes=10)
    masks = bernoulli(model, 0.05, 1)
    before = report(model, masks, (3, 32, 32))
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(float("nan"))
    with torch.no_grad():
        assert report(model.bfloat16(), masks, (3, 32, 32)) == before


def test_a_unit_that_carries_a_constant_reaches_nothing():
    """A shift, a position embedding, and activations with f(0) > 0."""
    model = Written(
        lambda m, x: functional.softplus(m.fc(torch.sigmoid(m.first(x) * 1e-6 + m.position[0]))),
        first=nn.Linear(2, 2),
        position=nn.ParameterList([torch.randn(2)]),
        fc=nn.Linear(2, 2),
    )
    masks = {
        "first.weight": torch.tensor([[True, True], [False, False]]),
        "fc.weight": torch.eye(2).bool(),
    }
    found = report(model, masks, (2,))
    assert found["effective_kept"] == 3
    assert found["dead_filters"] == 1
    assert (found["empty_classes"], found["dead_classes"]) == (0, 1)


def test_tokens_and_inference_mode():
    model = Written(
        lambda m, x: m.fc(m.one(m.table(x.long())).amax(1)),
        table=nn.Embedding(9, 4, padding_idx=0),
        one=nn.Linear(4, 5),
        fc=nn.Linear(5, 3),
    )
    masks = ones(model)
    masks["one.weight"][2] = False
    with torch.inference_mode():
        found = report(model, masks, (7,))
    assert found["effective_kept"] == 4 * 4 + 3 * 4
    assert found["macs_dense"] == 7 * 20 + 15


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
def test_saturating_activations_norms_and_dropout_do_not_hide_paths(last):
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
def test_unsupported_networks_are_refused(model, shape, message):
    with pytest.raises(ValueError, match=message):
        report(model, ones(model), shape)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return 2 * grad


SCRIPTED = torch.jit.script(functional.softsign)


def assigned(x: Tensor) -> Tensor:
    buffer = torch.zeros(len(x), 3)
    buffer[:] = x
    return buffer


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda x: x if x.sum() > 0 else -x, "uses gt"),
        (lambda x: x if x.any() else -x, "uses any"),
        (lambda x: x * float(x.mean()), "uses __float__"),
        (lambda x: x[:, x[0].long()], "indexes by the input in getitem"),
        (lambda x: x.gather(1, x.long()), "indexes by the input in gather"),
        (lambda x: torch.fft.rfft(x).real, "uses fft_rfft"),
        (lambda x: torch.from_numpy(x.detach().numpy()), "uses numpy"),
        (lambda x: -Doubled.apply(x), "gets what the autograd.Function 'Doubled' computed"),
        (lambda x: -SCRIPTED(x), "gets what a scripted or compiled function computed"),
        (assigned, "assigns to a constant"),
        (lambda x: torch.zeros(len(x), 3).add_(x), r"into a constant \(add\)"),
        (lambda x: torch.add(x, x, out=torch.empty(2, 3)), r"into a constant \(add\)"),
        (lambda x: x.view(torch.int64), "reads values as another type"),
        (lambda x: x.masked_fill(torch.eye(3)[:2] > 0, -torch.inf), "an infinity"),
        (lambda x: x.reshape(7, -1), "cannot be followed in reshape"),
    ],
)
def test_an_operation_that_cannot_be_followed_is_refused_by_layer(operation, message):
    model = nn.Sequential(
        nn.Linear(4, 3), nn.ReLU(), Written(lambda m, x: operation(x)), nn.Linear(3, 2)
    )
    with pytest.raises(ValueError, match=f"layer '2' .*{message}") as error:
        report(model, ones(model), (4,))
    assert "\n" not in str(error.value)
    after = torch.relu(torch.zeros(1))  # the mode is off again, and no module is followed
    assert type(after) is Tensor
    assert not torch.nn.modules.module._global_forward_pre_hooks


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda m, x: m.fc(x @ (m.one.weight - m.one.weight.mean())), "applies mean to the weight"),
        (lambda m, x: m.fc(m.two(torch.ones(4)) + x), "applies linear to the weight 'two.weight'"),
        (lambda m, x: m.fc(x + m.one.weight[0]), "adds a layer's weight"),
        (lambda m, x: m.fc(-Doubled.apply(x)), "the model's forward pass gets what the autogr"),
        (lambda m, x: Doubled.apply(m.fc(x)), "the model's output gets what the autograd.Function"),
        (lambda m, x: SCRIPTED(m.fc(x)), "the model's output gets what a scripted"),
        (lambda m, x: (m.fc(x), x), "the model's output is a tuple"),
        (lambda m, x: torch.zeros(len(x), 3), "the model's output does not depend on its input"),
    ],
)
def test_a_weight_used_in_another_way_is_refused(forward, message):
    model = Written(forward, **linears(4, 4, 4, 4))
    with pytest.raises(ValueError, match=message):
        report(model, ones(model), (4,))


def test_other_uses_of_a_weight_that_are_followed():
    """Scaled, transposed, without gradient, in a checkpoint, in a wrapper."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = functional.linear(x, m.one.weight * 0.5)
        with torch.no_grad():
            x = torch.matmul(x, m.two.weight.T)
        x = checkpoint(lambda x: torch.tanh(m.three(x)), x, use_reentrant=False)
        return m.fc(x.detach())

    layers = {name: nn.Linear(4, 4) for name in ("one", "two", "three")}
    model = Written(forward, **layers, fc=nn.Linear(4, 3))
    masks = ones(model)
    masks["one.weight"][0] = False  # no row of it, so no column 0 of the next
    masks["fc.weight"][:, 1] = False  # no column of it, so no row 1 of the last but one
    found = report(nn.DataParallel(model), masks, (4,))
    left = {name: layer["effective"] for name, layer in found["layers"].items()}
    assert left == {"one.weight": 12, "two.weight": 12, "three.weight": 12, "fc.weight": 9}
    assert found["macs_dense"] == 3 * 16 + 12


@pytest.mark.parametrize("last", [functional.log_softmax, functional.softmax])
def test_a_softmax_at_the_end_does_not_revive_dead_classes(last):
    model = Written(lambda m, x: last(m.fc(m.two(m.one(x))), 1), **linears())
    masks = ones(model)
    masks["fc.weight"][1] = False
    assert report(model, masks, (4,))["dead_classes"] == 1


@pytest.mark.parametrize("model", [nn.Sequential(), nn.BatchNorm1d(4)])
def test_a_model_without_layers_is_refused(model):
    with pytest.raises(ValueError, match="no conv or linear weight"):
        report(model, {}, (4,))
