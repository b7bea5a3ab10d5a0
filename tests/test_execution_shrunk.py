"""Shrinking: the same function in float64 for any network, what goes, and what must stay."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional

from ckasr import CKASR, models
from ckasr.execution import shrink
from ckasr.sparsity import Masks, layer_densities, prunable, random_masks

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
INPUTS = {
    "resnet20": (3, 8, 8),
    "resnet20_a": (3, 16, 16),
    "lenet300": (1, 16, 16),
    "resmlp": (1, 8, 8),
}


def drawn(model: nn.Module, sparsity: float, distribution: str = "erk") -> dict[str, Tensor]:
    shapes = {name: weight.shape for name, weight in prunable(model).items()}
    return random_masks(shapes, layer_densities(shapes, 1 - sparsity, distribution), 0)


def ones(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(model).items()}


def masked(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """The reference: a copy in eval mode with its pruned weights at zero, and nothing else done."""
    copied = copy.deepcopy(model).eval()
    Masks(copied, masks).apply()
    return copied


def as_trained(model: nn.Module, masks: dict[str, Tensor], input_shape) -> nn.Module:
    """In place: random shifts and scales, some negative, and statistics of the masked network."""
    for module in model.modules():
        if isinstance(module, NORMS):
            module.momentum = None
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.5)
                nn.init.normal_(module.bias, 0, 0.5)
    with torch.no_grad():
        Masks(model, masks).apply()
        model.train()(torch.randn(32, *input_shape, dtype=next(model.parameters()).dtype))
        for name, weight in prunable(model).items():  # pruned, but no longer zero
            weight += torch.randn_like(weight) * ~masks[name]
    return model


def assert_same(small: nn.Module, reference: nn.Module, x: Tensor) -> Tensor:
    """Equal to 1e-10 of what varies with the input, which is returned (1e-12 of all: round-off)."""
    with torch.no_grad():
        got, want = small(x), reference(x)
    spread = (want - want.mean(0)).norm()
    assert got.shape == want.shape
    assert (got - want).norm() <= 1e-10 * spread + 1e-12 * want.norm()
    return spread


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def widths(model: nn.Module) -> dict[str, int]:
    return {name: weight.shape[0] for name, weight in prunable(model).items()}


# --- the models of this project --------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["erk", "uniform"])
@pytest.mark.parametrize("sparsity", [0.9, 0.99, 0.998])
@pytest.mark.parametrize("name", INPUTS)
def test_exact_and_smaller(name, sparsity, distribution):
    shape = INPUTS[name]
    model = models.create(name, num_classes=10, input_shape=shape).double()
    masks = drawn(model, sparsity, distribution)
    as_trained(model, masks, shape)
    small = shrink(model, masks, shape)
    spread = assert_same(small, masked(model, masks), torch.randn(16, *shape).double())
    if sparsity == 0.9:
        assert spread > 1e-3  # the comparison is not one of constants
    if sparsity == 0.998:
        assert parameters(small) < 0.5 * parameters(model)
    assert not any(isinstance(m, NORMS) for m in small.modules())


@pytest.mark.parametrize("name", INPUTS)
def test_a_dense_network_is_folded_and_keeps_its_width(name):
    shape = INPUTS[name]
    model = models.create(name, num_classes=10, input_shape=shape).double()
    as_trained(model, ones(model), shape)
    small = shrink(model, ones(model), shape)
    assert_same(small, masked(model, ones(model)), torch.randn(16, *shape).double())
    assert widths(small) == widths(model)
    assert {n: w.shape for n, w in prunable(small).items()} == {
        n: w.shape for n, w in prunable(model).items()
    }
    assert not any(isinstance(m, NORMS) for m in small.modules())


@pytest.mark.parametrize("name", ["resnet20", "resnet20_a", "resmlp"])
def test_in_float32_no_worse_than_folding_alone(name):
    from torch.fx.experimental.optimization import fuse

    shape = INPUTS[name]
    model = models.create(name, num_classes=10, input_shape=shape)
    masks = drawn(model, 0.99)
    reference = masked(as_trained(model, masks, shape), masks)
    x = torch.randn(64, *shape)
    with torch.no_grad():
        exact = copy.deepcopy(reference).double()(x.double())
        folded = (fuse(reference)(x) - exact).norm()
        shrunk = (shrink(model, masks, shape)(x) - exact).norm()
    assert shrunk <= 1.5 * folded


@pytest.mark.parametrize("name", INPUTS)
def test_without_any_weight_the_output_is_constant(name):
    shape = INPUTS[name]
    model = models.create(name, num_classes=10, input_shape=shape).double()
    as_trained(model, ones(model), shape)
    nothing = {name: mask & False for name, mask in ones(model).items()}
    small = shrink(model, nothing, shape)
    x = torch.randn(4, *shape).double()
    assert_same(small, masked(model, nothing), x)
    assert torch.equal(small(x)[0], model.fc.bias)
    assert parameters(small) < 0.02 * parameters(model)


@pytest.mark.parametrize("name", ["resnet20", "resmlp"])
def test_without_shifts_no_filter_without_inputs_stays(name):
    shape = INPUTS[name]
    model = models.create(name, num_classes=10, input_shape=shape)  # fresh norms shift nothing
    small = shrink(model, drawn(model, 0.99), shape)
    ends = ("conv1.weight", "linear1.weight")
    inner = [weight for layer, weight in prunable(small).items() if layer.endswith(ends)]
    assert len(inner) > 3
    for weight in inner:
        assert (weight != 0).flatten(1).any(1).all() or len(weight) == 1


def test_the_given_model_stays_as_it_was():
    model = models.create("resnet20", num_classes=10)
    masks = drawn(model, 0.99)
    reg = CKASR(model, 1e-4, every=1)  # its hooks hold a graph, which cannot be copied
    model.train()
    model(torch.randn(8, 3, 32, 32)).sum().backward()
    reg()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    kept = {name: mask.clone() for name, mask in masks.items()}
    calls = []
    model.conv1.register_forward_hook(lambda *_: calls.append(1))
    small = shrink(model, masks)
    small(torch.zeros(1, 3, 32, 32))
    assert not calls
    assert model.training
    assert not small.training
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(masks[name], mask) for name, mask in kept.items())
    theirs = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in theirs for p in small.parameters())


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
def test_a_filter_without_inputs_goes_where_it_gives_zero(activation, shift, stays):
    model, masks = pair(activation)
    model[1].bias.data[1] = shift
    small = shrink(model.double(), masks, (1, 6, 6))
    assert_same(small, masked(model, masks), torch.randn(3, 1, 6, 6).double())
    assert widths(small) == {"0.weight": 4 if stays else 3, "3.weight": 2}


def test_a_filter_that_only_takes_away_from_nothing_gives_zero():
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


def test_a_filter_nobody_reads_goes_and_so_do_those_it_reads():
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


class Stream(nn.Module):
    """A stem, two residual convolutions, a head: four channels that sums join."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.one = nn.Conv2d(4, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x), inplace=True)
        out = self.one(x)
        out += x
        x = torch.relu(out)
        return self.fc(torch.relu(x + self.two(x)).mean((2, 3)))


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
def test_a_channel_of_a_residual_stream_goes_where_all_agree(unread, silent, stays):
    model = Stream().double()
    masks = ones(model)
    for name in unread:
        masks[f"{name}.weight"][:, 2] = False
    for name in silent:
        masks[f"{name}.weight"][2] = False
        getattr(model, name).bias.data[2] = -0.1
    if silent == ("stem", "one", "two"):
        assert_same(shrink(model, masks), masked(model, masks), torch.randn(4, 1, 8, 8).double())
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


# --- networks of other people ----------------------------------------------------------------


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
    shapes = {name: weight.shape for name, weight in prunable(model).items()}
    masks = {name: torch.rand(shape) < density for name, shape in shapes.items()}
    as_trained(model, masks, (2, 6, 6))
    small = shrink(model, masks, (2, 6, 6))
    assert_same(small, masked(model, masks), torch.randn(16, 2, 6, 6).double())


class Twice(nn.Module):
    """One layer used twice, with a norm behind one use: it can neither be folded nor narrowed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(torch.relu(self.bn(self.conv(x))))).mean((2, 3)))


class Joined(nn.Module):
    """A layer that a norm and a sum read, and a sum of one channel with many."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.one, self.many, self.fc = nn.Conv2d(4, 1, 1), nn.Conv2d(4, 3, 1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x + torch.relu(self.bn(x))
        return self.fc(torch.relu(self.one(x) + self.many(x)).mean((2, 3)))


class Picked(nn.Module):
    """A slice of channels, and a mean over them whose columns are as many as they."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 3, 1)
        self.other = nn.Conv2d(2, 4, 3, padding=1)
        self.fc, self.columns = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        picked = torch.relu(self.two(torch.relu(self.conv(x))[:, 1:3])).mean((2, 3))
        return self.fc(picked) + self.columns(torch.relu(self.other(x)).mean((1, 2)))


class Reread(nn.Module):
    """Parameters that the forward pass reads beside the layers that hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Linear(4, 9, bias=False), nn.BatchNorm1d(9)
        self.up, self.down, self.fc = nn.Linear(9, 8), nn.Linear(8, 9), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.bn(self.stem(x)) @ self.stem.weight @ self.stem.weight.T)
        hidden = functional.linear(torch.relu(self.up(hidden)), self.up.weight.T, self.down.bias)
        return self.fc(torch.relu(hidden)) + self.down.weight.sum() + self.up.bias[0]


class Inside(nn.Module):
    """A layer that is called by itself and by the module that holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.out, self.fc = nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.encoder.linear1(x))
        return self.fc(self.encoder(x) + self.out(hidden)).mean(1)


class Tied(nn.Module):
    """One weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.fc = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.two(torch.relu(self.one(x)))))


class Tokens(nn.Module):
    """Linear layers over the last of three dimensions, a norm over the second, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.bn = nn.Linear(5, 6), nn.BatchNorm1d(6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.up, self.down, self.norm = nn.Linear(6, 9), nn.Linear(9, 6), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.embed(x))
        x = x + self.attention(x, x, x)[0]
        return (x + self.down(torch.relu(self.up(self.norm(x))))).mean(1)


OTHERS = {
    "twice": (Twice, (3, 5, 5)),
    "joined": (Joined, (2, 5, 5)),
    "picked": (Picked, (2, 5, 4)),
    "tokens": (Tokens, (6, 5)),
    "reread": (Reread, (4,)),
    "inside": (Inside, (3, 4)),
    "tied": (Tied, (6,)),
    "over the columns": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Flatten(2),
            nn.Linear(24, 3), nn.Flatten(), nn.Linear(18, 2),
        ),
        (2, 8, 8),
    ),
    "grouped": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6),
            nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
        ),
        (2, 8, 8),
    ),
    "norm before the layer": (
        lambda: nn.Sequential(
            nn.BatchNorm1d(4), nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.BatchNorm1d(8),
            nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 3),
        ),
        (4,),
    ),
    "one dimension": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 6, 3, padding=1, padding_mode="circular"), nn.BatchNorm1d(6), nn.ReLU(),
            nn.Conv1d(6, 6, 3), nn.BatchNorm1d(6), nn.SiLU(), nn.AdaptiveMaxPool1d(2),
            nn.Flatten(), nn.Linear(12, 3),
        ),
        (2, 12),
    ),
}  # fmt: skip


@pytest.mark.parametrize("density", [0.1, 0.3])
@pytest.mark.parametrize("name", OTHERS)
def test_what_cannot_be_followed_is_kept(name, density):
    build, shape = OTHERS[name]
    model = build().double()
    masks = {n: torch.rand(w.shape) < density for n, w in prunable(model).items()}
    as_trained(model, masks, shape)
    small = shrink(model, masks, shape)
    assert_same(small, masked(model, masks), torch.randn(16, *shape).double())


def test_a_network_of_torchvision():
    from torchvision.models import resnet  # in-place ReLUs and sums, a max pool, a flatten

    model = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10).double()
    masks = {name: torch.rand(w.shape) < 0.002 for name, w in prunable(model).items()}
    as_trained(model, masks, (3, 32, 32))
    small = shrink(model, masks)
    assert_same(small, masked(model, masks), torch.randn(4, 3, 32, 32).double())
    assert parameters(small) < 0.7 * parameters(model)


# --- the result is an ordinary module --------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, but still works
@pytest.mark.parametrize("name", ["resnet20_a", "lenet300", "resmlp"])
def test_it_can_be_saved_and_scripted(name, tmp_path):
    shape = INPUTS[name]
    model = models.create(name, num_classes=10, input_shape=shape)
    small = shrink(model, drawn(model, 0.99), shape)
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
        small = shrink(model.to(memory_format=kind), drawn(model, 0.99))
        assert all(p.is_contiguous(memory_format=kind) for p in small.parameters() if p.ndim == 4)
    with torch.inference_mode():
        small = shrink(model.bfloat16(), drawn(model, 0.99))
        assert small(torch.zeros(1, 3, 32, 32).bfloat16()).dtype == torch.bfloat16


@pytest.mark.gpu
def test_it_stays_on_its_device():
    model = models.create("resnet20", num_classes=10).double().cuda()
    masks = drawn(model, 0.998)
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


class Overwriting(nn.Module):
    def __init__(self, method: bool) -> None:
        super().__init__()
        self.one, self.two, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        before = self.one(x)
        view = before.flatten(1)
        if self.method:
            view.add_(self.two(x))
        else:
            view += self.two(x)
        return self.fc(before)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Sequential(nn.ReLU(), Branching()), (4,), "module '1' cannot be followed"),
        (Branching(), (4,), "Branching cannot be followed"),
        (Overwriting(True), (4,), "'fc' reads 'one', which another operation has"),
        (Overwriting(False), (4,), "Overwriting cannot be followed: .* something else"),
        (nn.Linear(4, 2), (5,), r"does not take one tensor of shape \(1, 5\)"),
        (nn.Bilinear(4, 4, 2), (4,), "does not take one tensor"),
        (nn.Conv1d(4, 2, 1), None, "give input_shape"),
        (nn.ReLU(), None, "give input_shape"),
    ],
)
def test_bad_input_is_told_in_one_line(model, shape, message):
    with pytest.raises(ValueError, match=message) as error:
        shrink(model, ones(model), shape)
    assert "\n" not in str(error.value)


def test_masks_that_do_not_fit():
    model = models.create("lenet300", num_classes=10, input_shape=(1, 8, 8))
    masks = ones(model)
    with pytest.raises(ValueError, match=r"no mask for layer 'fc\.weight'"):
        shrink(model, {name: mask for name, mask in masks.items() if name != "fc.weight"})
    with pytest.raises(ValueError, match=r"it must be torch\.bool \(10, 100\)"):
        shrink(model, masks | {"fc.weight": torch.ones(10, 99, dtype=torch.bool)})
