"""Shrinking: what is removed, what must stay, and that the result is an ordinary module."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_networks import (
    MODELS,
    Written,
    as_trained,
    assert_same,
    bernoulli,
    exact_masks,
    masked,
    ones,
    shapes_of,
)
from torch import Tensor, fx, nn
from torch.nn import functional

from ckasr import models
from ckasr.execution import shrink
from ckasr.sparsity import prunable

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def widths(model: nn.Module) -> dict[str, int]:
    return {name: weight.shape[0] for name, weight in prunable(model).items()}


# --- the models of this project --------------------------------------------------------------


@pytest.mark.parametrize(
    ("sparsity", "distribution"),
    [(0, "erk"), *((s, d) for s in (0.9, 0.99, 0.998) for d in ("erk", "uniform")), (1, "erk")],
)
@pytest.mark.parametrize("name", MODELS)
def test_exact_folded_and_smaller(name, sparsity, distribution):
    shape = MODELS[name]
    model = models.create(name, num_classes=10, input_shape=shape).double()
    masks = exact_masks(model, sparsity, distribution)
    as_trained(model, masks, shape)
    small = shrink(model, masks, shape)
    x = torch.randn(16, *shape).double()
    spread = assert_same(small, masked(model, masks), x)
    assert not any(isinstance(m, NORMS) for m in small.modules())
    if sparsity <= 0.9:
        assert spread > 1e-3  # the comparison is not one of constants
    if sparsity == 0:
        assert shapes_of(small) == shapes_of(model)
    if sparsity >= 0.998:
        assert parameters(small) < 0.5 * parameters(model)
    if sparsity == 1:
        assert torch.equal(small(x)[0], model.fc.bias)
        assert parameters(small) < 0.02 * parameters(model)


@pytest.mark.parametrize("name", ["resnet20", "resnet20_a", "resmlp"])
def test_float32_error_is_not_larger_than_with_folding_alone(name):
    from torch.fx.experimental.optimization import fuse

    shape = MODELS[name]
    model = models.create(name, num_classes=10, input_shape=shape)
    masks = exact_masks(model, 0.99)
    reference = masked(as_trained(model, masks, shape), masks)
    x = torch.randn(64, *shape)
    with torch.no_grad():
        exact = copy.deepcopy(reference).double()(x.double())
        folded = (fuse(reference)(x) - exact).norm()
        shrunk = (shrink(model, masks, shape)(x) - exact).norm()
    assert shrunk <= 1.5 * folded


@pytest.mark.parametrize("name", ["resnet20", "resmlp"])
def test_without_shifts_no_filter_without_inputs_stays(name):
    shape = MODELS[name]
    model = models.create(name, num_classes=10, input_shape=shape)  # fresh norms shift nothing
    small = shrink(model, exact_masks(model, 0.99), shape)
    ends = ("conv1.weight", "linear1.weight")
    inner = [weight for layer, weight in prunable(small).items() if layer.endswith(ends)]
    assert len(inner) > 3
    for weight in inner:
        assert (weight != 0).flatten(1).any(1).all() or len(weight) == 1


# --- what may go -----------------------------------------------------------------------------


def pair(activation: nn.Module | None = None) -> tuple[nn.Sequential, dict[str, Tensor]]:
    """Two padded convolutions; of the first one's four filters the second has no weights."""
    first = nn.Conv2d(1, 4, 3, padding=1, bias=False)
    model = nn.Sequential(
        first,
        nn.BatchNorm2d(4),
        activation or nn.ReLU(),
        nn.Conv2d(4, 2, 3, padding=1),
        nn.Flatten(),
    ).double()
    masks = ones(model)
    masks["0.weight"][1] = False
    return model, masks


def test_a_constant_filter_stays_as_the_border_shows_it():
    model, masks = pair()
    model[1].bias.data[1] = 0.7
    x = torch.randn(3, 1, 6, 6).double()
    small = shrink(model, masks, (1, 6, 6))
    assert_same(small, masked(model, masks), x)
    assert widths(small)["0.weight"] == 4
    # What removing it and moving its constant into the next bias would give:
    moved = masked(model, masks)
    with torch.no_grad():
        moved[3].bias += 0.7 * moved[3].weight[:, 1].sum((1, 2))
        moved[3].weight[:, 1] = 0
        wrong = (moved(x) - masked(model, masks)(x)).reshape(3, 2, 6, 6).abs()
    assert wrong[:, :, 1:-1, 1:-1].max() < 1e-12
    assert wrong[:, :, 0].min() > 1e-3


@pytest.mark.parametrize(
    ("activation", "shift", "stays"),
    [
        (nn.ReLU(), 0.7, True),
        (nn.ReLU(), 0.0, False),
        (nn.ReLU(), -0.7, False),
        (nn.ReLU(inplace=True), -0.7, False),
        (nn.Identity(), -0.7, True),
        (nn.Identity(), 0.0, False),
        (nn.GELU(), -0.7, True),
        (nn.GELU(), 0.0, False),
        (nn.Sigmoid(), 0.0, True),
        (nn.LayerNorm([4, 6, 6]), 0.0, True),
    ],
)
def test_a_filter_without_inputs_is_removed_if_its_output_is_zero(activation, shift, stays):
    model, masks = pair(activation)
    model[1].bias.data[1] = shift
    small = shrink(model.double(), masks, (1, 6, 6))
    assert_same(small, masked(model, masks), torch.randn(3, 1, 6, 6).double())
    assert widths(small) == {"0.weight": 4 if stays else 3, "3.weight": 2}


def test_a_filter_with_negative_weights_on_nonnegative_inputs_gives_zero():
    """Its inputs are at least 0, its weights and its shift at most 0: the ReLU leaves nothing."""
    model = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
    ).double()
    with torch.no_grad():
        model[2].weight.uniform_(0.5, 1)
        model[2].weight[:2] *= -1
        model[2].bias.copy_(torch.tensor([-0.1, 0.1, -0.1, 0.1]))
    small = shrink(model, ones(model))
    assert_same(small, masked(model, ones(model)), torch.randn(99, 3).double())
    assert widths(small) == {"0.weight": 4, "2.weight": 3, "4.weight": 2}


@settings(max_examples=60)
@given(st.integers(0, 2**31))
def test_signs_are_followed_through_layers_with_and_without_relu(seed):
    generator = torch.Generator().manual_seed(seed)

    def drawn_of(values: list[float], *shape: int) -> Tensor:
        index = torch.randint(len(values), shape, generator=generator)
        return torch.tensor(values, dtype=torch.float64)[index]

    layers: list[nn.Module] = []
    for relu in drawn_of([0, 1], 5).tolist():
        linear = nn.Linear(3, 3).double()
        linear.weight.data = drawn_of([-1, -1, 0, 1], 3, 3)
        linear.bias.data = drawn_of([-0.5, 0, 0, 0.5], 3)
        layers += [linear, nn.ReLU() if relu else nn.Identity()]
    model = nn.Sequential(*layers)
    assert_same(shrink(model, ones(model)), model, torch.randn(99, 3).double())


def test_an_unused_filter_is_removed_with_the_filters_that_only_it_uses():
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, 4, 1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 3),
    ).double()  # fmt: skip
    masks = ones(model)
    masks["2.weight"][0] = False  # a constant, read
    masks["2.weight"][1:, :2] = False  # channels 0 and 1 are read by nobody but filter 0, so not
    masks["6.weight"][:, 3 * 9 :] = False  # the last filter is not read
    masks["2.weight"][1:3, 4] = False  # channel 4 is read by the last filter only
    model[2].bias.data[0] = 0.3
    small = shrink(model, masks, (2, 6, 6))
    assert_same(small, masked(model, masks), torch.randn(5, 2, 6, 6).double())
    assert widths(small) == {"0.weight": 2, "2.weight": 3, "6.weight": 3}
    assert small.get_submodule("6").in_features == 3 * 9


def stream() -> nn.Module:
    """A stem, two residual convolutions and a head: four channels that sums join."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = functional.relu(m.stem(x), inplace=True)
        out = m.one(x)
        out += x
        x = torch.relu(out)
        return m.fc(torch.relu(x + m.two(x)).mean((2, 3)))

    return Written(
        forward,
        stem=nn.Conv2d(1, 4, 3, padding=1),
        one=nn.Conv2d(4, 4, 3, padding=1),
        two=nn.Conv2d(4, 4, 3, padding=1),
        fc=nn.Linear(4, 3),
    ).double()


@pytest.mark.parametrize(
    ("unread", "silent", "stays"),
    [
        ((), ("stem", "one", "two"), 3),  # nobody writes it
        ((), ("stem", "one"), 4),  # the last one does, and is read
        ((), ("one", "two"), 4),
        (("one", "two", "fc"), (), 3),  # nobody reads it
        (("two", "fc"), (), 4),
        (("one", "two"), (), 4),
        (("fc",), ("stem", "one"), 3),  # read only where it is zero
    ],
)
def test_a_channel_of_a_residual_stream_is_removed_if_all_branches_allow_it(unread, silent, stays):
    model = stream()
    masks = ones(model)
    for name in unread:
        masks[f"{name}.weight"][:, 2] = False
    for name in silent:
        masks[f"{name}.weight"][2] = False
        getattr(model, name).bias.data[2] = -0.1
    small = shrink(model, masks)
    assert_same(small, masked(model, masks), torch.randn(4, 1, 8, 8).double())
    assert widths(small) == {
        "stem.weight": stays, "one.weight": stays, "two.weight": stays, "fc.weight": 3,
    }  # fmt: skip


def test_option_a_shortcuts_lose_their_zeros_too():
    """Of the padded channels go those that the block does not write; the rest keep their order."""
    block = models.resnet.BasicBlock(2, 6, 2, option_a=True)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), block, nn.Flatten(), nn.Linear(6 * 9, 5)).double()
    masks = ones(model)
    as_trained(model, masks, (3, 8, 8))
    for row in (0, 4):
        masks["1.conv2.weight"][row] = False
        block.bn2.bias.data[row] = -9
    small = shrink(model, masks, (3, 8, 8))
    assert_same(small, masked(model, masks), torch.randn(4, 3, 8, 8).double())
    assert widths(small)["1.conv2.weight"] == 4


# --- other networks ---------------------------------------------------------------------------


class Drawn(nn.Module):
    """A small network of drawn parts: norm, activation, skip, padding, pooling and head."""

    def __init__(self, activation: str, pool: str, head: str, skip: bool, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, padding_mode="zeros")
        self.conv3 = nn.Conv2d(4, 6, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(6)
        self.activation = getattr(functional, activation)
        self.pool = {"max": nn.MaxPool2d(2), "avg": nn.AvgPool2d(2, padding=1), "": nn.Identity()}[
            pool
        ]
        self.head, self.skip, self.stride = head, skip, stride
        self.fc = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.bn1(self.conv1(x)))
        if self.skip:
            x = self.activation(self.conv2(x) + x)
        short = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 1, 1))
        x = self.pool(torch.relu(self.bn3(self.conv3(x)) + short))
        return self.fc(x.mean((-2, -1)) if self.head == "mean" else torch.flatten(x, 1))


@settings(max_examples=50)
@given(
    st.builds(
        Drawn,
        activation=st.sampled_from(["relu", "gelu", "tanh", "relu6", "sigmoid", "softplus"]),
        pool=st.sampled_from(["max", "avg", ""]),
        head=st.sampled_from(["mean", "flatten"]),
        skip=st.booleans(),
        stride=st.integers(1, 2),
    ),
    st.floats(0, 0.6),
    st.integers(0, 2**31),
)
def test_exact_for_any_small_network(model, density, seed):
    torch.manual_seed(seed)
    model.double()(torch.randn(1, 2, 6, 6).double())
    masks = bernoulli(model, density, seed)
    as_trained(model, masks, (2, 6, 6))
    small = shrink(model, masks, (2, 6, 6))
    assert_same(small, masked(model, masks), torch.randn(16, 2, 6, 6).double())


def test_a_network_of_torchvision():
    from torchvision.models import resnet  # in-place ReLUs and sums, a max pool, a flatten

    model = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10).double()
    masks = bernoulli(model, 0.002, 0)
    as_trained(model, masks, (3, 32, 32))
    small = shrink(model, masks)
    assert_same(small, masked(model, masks), torch.randn(4, 3, 32, 32).double())
    assert parameters(small) < 0.7 * parameters(model)


# --- the result is an ordinary module --------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, but still works
@pytest.mark.parametrize("name", ["resnet20_a", "lenet300", "resmlp"])
def test_it_can_be_saved_and_scripted(name, tmp_path):
    shape = MODELS[name]
    model = models.create(name, num_classes=10, input_shape=shape)
    small = shrink(model, exact_masks(model, 0.99), shape)
    assert isinstance(small, fx.GraphModule)
    x = torch.randn(4, *shape)
    torch.save(small, tmp_path / "small.pt")
    others = {
        "loaded": torch.load(tmp_path / "small.pt", weights_only=False),
        "copied": copy.deepcopy(small),
        "scripted": torch.jit.script(small),
        "exported": torch.export.export(small, (x,)).module(),
    }
    for other in others.values():
        assert torch.equal(other(x), small(x))


def test_the_memory_format_and_the_type_are_kept():
    model = models.create("resnet20", num_classes=10)
    for kind in (torch.channels_last, torch.contiguous_format):
        small = shrink(model.to(memory_format=kind), exact_masks(model, 0.99))
        assert all(p.is_contiguous(memory_format=kind) for p in small.parameters() if p.ndim == 4)
    with torch.inference_mode():
        small = shrink(model.bfloat16(), exact_masks(model, 0.99))
        assert small(torch.zeros(1, 3, 32, 32).bfloat16()).dtype == torch.bfloat16


@pytest.mark.gpu
def test_it_stays_on_its_device():
    model = models.create("resnet20", num_classes=10).double().cuda()
    masks = exact_masks(model, 0.998)
    small = shrink(model, masks)
    assert {p.device.type for p in small.parameters()} == {"cuda"}
    assert_same(small, masked(model, masks), torch.randn(4, 3, 32, 32).double().cuda())


# --- bad input -------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else -self.fc(x)


def overwriting(method: bool) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        before = m.one(x)
        view = before.flatten(1)
        if method:
            view.add_(m.two(x))
        else:
            view += m.two(x)
        return m.fc(before)

    return Written(forward, one=nn.Linear(4, 4), two=nn.Linear(4, 4), fc=nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Sequential(nn.ReLU(), Branching()), (4,), "module '1' cannot be followed"),
        (Branching(), (4,), "Branching cannot be followed"),
        (overwriting(True), (4,), "'fc' reads 'one', which another operation has"),
        (overwriting(False), (4,), "Written cannot be followed: .* something else"),
        (nn.Linear(4, 2), (5,), r"does not take one tensor of shape \(1, 5\)"),
        (nn.Bilinear(4, 4, 2), (4,), "does not take one tensor"),
        (nn.Conv1d(4, 2, 1), None, "give input_shape"),
        (nn.ReLU(), None, "give input_shape"),
    ],
)
def test_bad_input_is_one_line(model, shape, message):
    with pytest.raises(ValueError, match=message) as error:
        shrink(model, ones(model), shape)
    assert "\n" not in str(error.value)
