"""CKASR in anybody's training loop: values, gradients, hooks, skipped steps, errors."""

import copy
import gc
import io
import pickle
import weakref
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import ckasr
from ckasr import CKASR, cka_sr_loss, find_stages
from ckasr.methods import score

BLOCKS = [["layer1.0", "layer1.1"], ["layer2.0", "layer2.1"]]


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(Block(4), Block(4))
        self.pool = nn.MaxPool2d(2)
        self.layer2 = nn.Sequential(Block(4), Block(4))
        self.fc = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.pool(self.layer1(self.stem(x))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 10, (16,), generator=generator)


def by_slices(net: Net, x: torch.Tensor, samples: int | None = 8, **options) -> torch.Tensor:
    """The term by plain slices of the block outputs, which autograd differentiates itself."""
    stages, h = [], net.stem(x)
    for stage in (net.layer1, net.layer2):
        if stage is net.layer2:
            h = net.pool(h)
        features = []
        for block in stage:
            h = block(h)
            features.append(h[:samples])
        stages.append(features)
    return nn.functional.cross_entropy(net.fc(h.mean((2, 3))), options.pop("y")), cka_sr_loss(
        stages, **options
    )


def gradients(net: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("variant", ["official", "paper", "aug"])
@pytest.mark.parametrize("samples", [8, None])
def test_loss_and_gradients_equal_plain_slices(net, batch, variant, samples):
    x, y = batch
    reference = copy.deepcopy(net)
    ce, term = by_slices(reference, x, samples, y=y, variant=variant)
    (ce + 0.3 * term).backward()
    reg = CKASR(net, 0.3, variant=variant, samples=samples)
    loss = nn.functional.cross_entropy(net(x), y) + reg()
    loss.backward()
    torch.testing.assert_close(loss, ce + 0.3 * term, rtol=1e-12, atol=0)
    torch.testing.assert_close(reg.term, term.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(net), gradients(reference), rtol=1e-9, atol=1e-12)


def test_term_alone_has_its_gradient(net, batch):
    """Backward of the term without the loss: the taps then get no gradient from above."""
    x, y = batch
    reference = copy.deepcopy(net)
    expected = torch.autograd.grad(
        by_slices(reference, x, y=y)[1], list(reference.parameters()), materialize_grads=True
    )
    reg = CKASR(net, 1.0)
    net(x)
    ours = torch.autograd.grad(reg(), list(net.parameters()), materialize_grads=True)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_unused_term_leaves_the_gradient_alone(net, batch):
    x, y = batch
    reference = copy.deepcopy(net)
    nn.functional.cross_entropy(reference(x), y).backward()
    reg = CKASR(net, 1.0)
    nn.functional.cross_entropy(net(x), y).backward()
    assert reg._features
    torch.testing.assert_close(gradients(net), gradients(reference), rtol=0, atol=0)


class Shared(nn.Module):
    """Both branches of a sum are handed one gradient: a tap must not change it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left(x) + self.right(x)


@pytest.mark.parametrize("tapped", ["left", "right"])
def test_gradients_shared_by_branches_are_not_mixed(batch, tapped):
    """Backward takes the branch that ran last first, so one of the two would see a change."""
    net = Shared().double()
    reference = copy.deepcopy(net)
    x = batch[0].flatten(1)[:, :5]
    outputs = {"left": reference.left(x), "right": reference.right(x)}
    term = 2 * ckasr.linear_cka(outputs[tapped][:8], x[:8])
    ((outputs["left"] + outputs["right"]).square().sum() + term).backward()
    reg = CKASR(net, 1.0, layers=[tapped], pairs="input")
    (net(x).square().sum() + reg()).backward()
    torch.testing.assert_close(gradients(net), gradients(reference), rtol=1e-9, atol=1e-12)


class Kept(nn.Module):
    """A hook keeps the gradient of a tapped layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 3)
        self.kept: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        hidden.register_hook(lambda grad: self.kept.append(grad))
        return self.second(hidden.relu())


def test_gradients_that_a_hook_keeps_stay_as_they_were(batch):
    """Hooks on the output see the loss's part, whatever the tap adds to it afterwards."""
    net = Kept().double()
    x = batch[0].flatten(1)[:, :5]
    net(x).square().sum().backward()
    reg = CKASR(net, 1.0, layers=["first"], pairs="input")
    (net(x).square().sum() + reg()).backward()
    without, with_term = net.kept
    torch.testing.assert_close(with_term, without, rtol=0, atol=0)


def test_acts_on_every_fifth_step_and_not_in_eval_mode(net, batch):
    x, _ = batch
    reg = CKASR(net, 0.5)
    active = []
    for _ in range(11):
        net(x)
        active.append(reg().item() != 0)
        assert (reg.term is not None) == active[-1]
    assert [i for i, a in enumerate(active) if a] == [0, 5, 10]
    reg.reset()
    net.eval()
    net(x)
    assert reg().item() == 0
    assert reg._features == {}
    net.train()
    net(x)
    assert reg().item() != 0, "eval mode must not count as a step"


def test_rescaling_multiplies_by_every(net, batch):
    x, _ = batch
    values = []
    for rescale in (False, True):
        with CKASR(net, 0.5, every=3, rescale=rescale) as reg:
            net(x)
            values.append(reg().item())
    assert values[1] == pytest.approx(3 * values[0], rel=1e-12)


def test_beta_may_be_a_tensor_changed_in_place(net, batch):
    beta = torch.tensor(0.5, dtype=torch.float64)
    reg = CKASR(net, beta, every=1)
    net(batch[0])
    first = reg().item()
    beta.mul_(2)
    net(batch[0])
    assert reg().item() == pytest.approx(2 * first, rel=1e-6)


def test_keeps_no_activation_after_the_step(net, batch):
    reg = CKASR(net, 1.0)
    seen = []
    net.layer1[0].conv.register_forward_hook(lambda m, a, o: seen.append(weakref.ref(o)))
    (net(batch[0]).sum() + reg()).backward()
    gc.collect()
    assert seen[0]() is None
    assert reg._features == {}
    assert not reg.term.requires_grad


def test_remove_leaves_the_model_as_it_was(net):
    def hooks(module: nn.Module) -> list[int]:
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()]

    before = hooks(net)
    with CKASR(net, 1.0, pairs="input") as reg:
        assert hooks(net) != before
        net(torch.randn(8, 3, 8, 8, dtype=torch.float64))
    assert hooks(net) == before
    with pytest.raises(RuntimeError, match="was removed"):
        reg()
    assert not any(isinstance(value, torch.Tensor | nn.Module) for value in vars(reg).values())
    assert not reg._features
    assert not reg._modules


def test_layers_by_name_or_predicate_group_by_resolution(net, batch):
    x, _ = batch
    names = ["layer1.0.conv", "layer1.1.conv", "layer2.0.conv", "layer2.1.conv"]
    with CKASR(net, 1.0, stages=[names[:2], names[2:]]) as reg:
        net(x)
        expected = reg().item()
    for layers in (names, lambda name, m: isinstance(m, nn.Conv2d) and name != "stem"):
        with CKASR(net, 1.0, layers=layers) as reg:
            net(x)
            assert reg().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("pairs", ["within", "all", "adjacent", "input"])
def test_pairs(net, batch, pairs):
    x, _ = batch
    features = {}
    for name in [*BLOCKS[0], *BLOCKS[1]]:
        net.get_submodule(name).register_forward_hook(
            lambda m, a, o, name=name: features.__setitem__(name, o.detach()[:8])
        )
    reg = CKASR(net, 1.0, pairs=pairs)
    net(x)
    stages = [[features[name] for name in stage] for stage in BLOCKS]
    if pairs == "input":
        stages.insert(0, [x[:8]])
    assert reg().item() == pytest.approx(cka_sr_loss(stages, pairs=pairs).item(), rel=1e-12)


@pytest.mark.parametrize("in_place", [False, True])
def test_works_before_in_place_activations_and_in_channels_last(batch, in_place):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(in_place)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(144, 10))
    net.to(memory_format=torch.channels_last)
    x = batch[0].float().to(memory_format=torch.channels_last)
    reg = CKASR(net, 0.1, layers=["0", "1"])
    (net(x).square().mean() + reg()).backward()
    reference = copy.deepcopy(net)
    reference.zero_grad()
    conv = reference[0](x)
    normed = reference[1](conv)
    out = reference[4](reference[3](torch.relu(normed)))
    (out.square().mean() + 0.1 * cka_sr_loss([[conv[:8], normed[:8]]])).backward()
    torch.testing.assert_close(gradients(net), gradients(reference), rtol=1e-4, atol=1e-6)


def test_under_autocast_the_term_is_float32(batch):
    torch.manual_seed(0)
    net, x = Net(), batch[0].float()
    reg = CKASR(net, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
        term = reg()
    assert out.dtype == torch.bfloat16
    assert term.dtype == torch.float32
    term.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())
    assert net.stem.weight.grad.norm() > 0


@pytest.mark.parametrize("hooked_first", [True, False])
def test_torch_compile_gives_the_same_term_and_gradients(net, batch, hooked_first):
    x, y = batch
    reference = copy.deepcopy(net)
    reg = CKASR(reference, 0.3, every=2)
    expected = []
    for _ in range(4):
        reference.zero_grad()
        loss = nn.functional.cross_entropy(reference(x), y) + reg()
        loss.backward()
        expected.append((loss.item(), gradients(reference)))
    if hooked_first:
        reg = CKASR(net, 0.3, every=2)
        compiled = torch.compile(net, backend="aot_eager")
    else:
        compiled = torch.compile(net, backend="aot_eager")
        reg = CKASR(net, 0.3, every=2)
    for value, grads in expected:
        net.zero_grad()
        loss = nn.functional.cross_entropy(compiled(x), y) + reg()
        loss.backward()
        assert loss.item() == pytest.approx(value, rel=1e-10)
        torch.testing.assert_close(gradients(net), grads, rtol=1e-8, atol=1e-11)


def test_dead_network_gives_zero_not_nan(net, batch):
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    reg = CKASR(net, 1.0)
    loss = net(batch[0]).sum() + reg()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in gradients(net))


def test_lowers_layer_cka_when_minimised(net, batch):
    """The term does what it says: descending it alone lowers CKA between the blocks."""
    x, _ = batch
    reg = CKASR(net, 1.0, every=1, samples=None)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    terms = []
    for _ in range(30):
        net(x)
        optimizer.zero_grad()
        loss = reg()
        loss.backward()
        optimizer.step()
        terms.append(reg.term.item())
    assert terms[-1] < terms[0] - 0.5


class Pair(NamedTuple):
    hidden: torch.Tensor
    extra: str


class Output(OrderedDict):
    pass


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, "extra"),
        lambda x: Pair(x, "extra"),
        lambda x: [x, "extra"],
        lambda x: Output(hidden=x, extra="extra"),
    ],
    ids=["tuple", "named tuple", "list", "mapping"],
)
def test_layers_that_return_a_container_keep_its_type(batch, wrap):
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, x: torch.Tensor) -> object:
            return wrap(self.linear(x))

    net = nn.ModuleDict({"a": Layer(), "b": Layer()}).double()
    x = batch[0].flatten(1)[:, :5]
    reg = CKASR(net, 1.0, layers=["a", "b"])
    outputs = [net["a"](x), net["b"](x)]
    assert {type(output) for output in outputs} == {type(wrap(x))}
    (plain,) = torch.autograd.grad(
        cka_sr_loss([[net["a"].linear(x)[:8], net["b"].linear(x)[:8]]]), net["a"].linear.weight
    )
    reg().backward()
    torch.testing.assert_close(net["a"].linear.weight.grad, plain, rtol=1e-10, atol=1e-14)


def test_unknown_layer_lists_the_nearest(net):
    with pytest.raises(LookupError, match=r"no layer 'layer1\.2'; nearest: .*layer1\.1"):
        CKASR(net, stages=[["layer1.2"]])


def test_layer_that_did_not_run(net):
    reg = CKASR(net)
    with pytest.raises(RuntimeError, match=r"no forward pass of layer1\.0, layer1\.1"):
        reg()


def test_too_few_samples(net, batch):
    reg = CKASR(net)
    net(batch[0][:3])
    with pytest.raises(ValueError, match=r"'layer1\.0' saw 3 samples.*batch size.*drop_last"):
        reg()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, "beta must be finite and not negative"),
        ({"beta": float("nan")}, "beta must be finite"),
        ({"beta": "0.1"}, "beta must be a number"),
        ({"beta": torch.ones(2)}, "0-dim tensor"),
        ({"variant": "offical"}, "unknown variant 'offical'; nearest: official"),
        ({"pairs": "inside"}, "unknown pairs 'inside'"),
        ({"samples": 3}, "samples must be at least 4"),
        ({"samples": 8.0}, "as an integer"),
        ({"every": 0}, "every must be at least 1"),
        ({"every": 2.5}, "as an integer"),
        ({"batch_dim": -1}, "batch_dim must be at least 0"),
        ({"stages": BLOCKS, "layers": ["stem"]}, "stages or layers, not both"),
        ({"stages": ["layer1.0"]}, "list of lists"),
        ({"layers": "layer1.0"}, r"for one name, \['layer1.0'\]"),
        ({"layers": lambda name, module: False}, "no layer to compare"),
        ({"layers": ["stem"]}, "'stem' is the only one to compare"),
        ({"stages": [["layer1.0", "layer1.1"], ["layer2.0"]]}, "'layer2.0' is the only one"),
        ({"layers": ["stem"], "pairs": "all"}, "'stem' is the only one"),
        ({"layers": ["stem", "layer1.0", "stem"]}, "'stem' is named twice"),
    ],
)
def test_bad_options(net, options, message):
    with pytest.raises(ValueError, match=message):
        CKASR(net, **options)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (3, "'0' returns int, not a tensor"),
        ((), "'0' returns tuple that starts with NoneType"),
        ({"a": 3}, "'0' returns dict that starts with int"),
        (nn.utils.rnn.pack_sequence([torch.ones(2)]), "'0' returns PackedSequence"),
    ],
)
def test_layer_without_tensor(returned, message):
    net = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
    net[0].register_forward_hook(lambda m, a, o: returned)
    reg = CKASR(net, layers=["0", "1"])
    with pytest.raises(ValueError, match=message):
        net(torch.ones(8, 2))
    assert reg._features == {}


# Whose forward pass


def term(net: nn.Module, x: torch.Tensor, **options) -> float:
    with CKASR(net, 1.0, **options) as reg:
        net(x)
        return reg().item()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_the_model_neither_feeds_nor_disturbs_the_term(net, batch, copied):
    x, _ = batch
    expected = term(net, x)
    reg = CKASR(net, 1.0)
    teacher = copied(net)
    net(x)
    with torch.no_grad():
        teacher(x.flip(0).square())
    assert reg().item() == pytest.approx(expected, rel=1e-12)
    teacher(x)
    assert reg._features == {}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_model_and_its_term_that_are_copied_together_are_independent(net, batch, copied):
    x, _ = batch
    reg = CKASR(net, 1.0, every=2)
    net(x)
    other, its = copied((net, reg))
    other(x.square())
    assert its().item() == pytest.approx(term(net, x.square()), rel=1e-12)
    net(x)
    assert reg().item() == pytest.approx(term(net, x), rel=1e-12)
    assert [its.active, reg.active] == [False, False]


def test_a_saved_model_loads_without_its_term(net, batch):
    reg = CKASR(net)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    torch.testing.assert_close(loaded(batch[0]), net(batch[0]))
    assert reg._features


def test_the_last_pass_counts_as_a_whole(net, batch):
    """A layer that the last pass skipped is missing; its feature of an earlier pass is not used."""
    x, _ = batch
    reg = CKASR(net, 1.0, every=1)
    net(x.square())
    net(x)
    assert reg().item() == pytest.approx(term(net, x), rel=1e-12)
    net(x)
    net.layer2 = nn.Identity()
    net(x)
    with pytest.raises(RuntimeError, match=r"no forward pass of layer2\.0, layer2\.1"):
        reg()


def test_other_parameters_and_transforms_leave_the_term_alone(net, batch):
    x, y = batch
    reg = CKASR(net, 1.0, every=1)
    net(x)
    other = {name: 2 * p.detach() for name, p in net.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        buffers = {name: b.clone() for name, b in net.named_buffers()}
        return nn.functional.cross_entropy(functional_call(net, parameters | buffers, (x,)), y)

    gradient = torch.func.grad(loss)(other)
    torch.func.jvp(loss, (other,), (other,))
    assert reg().item() == pytest.approx(term(net, x), rel=1e-12)
    reg.remove()
    torch.testing.assert_close(gradient, torch.func.grad(loss)(other))
    reg = CKASR(net, 1.0)
    loss(other)
    with pytest.raises(RuntimeError, match="other parameters than its own"):
        reg()


def test_scoring_a_model_leaves_its_term_alone(net, batch):
    reg = CKASR(net, 1.0)
    net(batch[0])
    score(net, "snip", batch[0].square(), batch[1], train_mode=True)
    assert reg().item() == pytest.approx(term(net, batch[0]), rel=1e-12)


def test_two_terms_of_one_model_are_independent(net, batch):
    first, second = CKASR(net, 1.0, samples=8), CKASR(net, 2.0, samples=None)
    net(batch[0])
    values = first().item(), second().item()
    first.remove()
    second.remove()
    expected = term(net, batch[0]), 2 * term(net, batch[0], samples=None)
    assert values == pytest.approx(expected, rel=1e-12)


def test_a_deleted_term_reads_no_features(net, batch):
    seen = []
    net.layer1[0].conv.register_forward_hook(lambda m, a, o: seen.append(weakref.ref(o)))
    CKASR(net, 1.0)
    gc.collect()
    net(batch[0])
    gc.collect()
    assert seen[0]() is None


# What is read


class InPlace(nn.Module):
    """After either layer, an operation in place; `same` makes the first return its input."""

    def __init__(self, same: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 5)
        self.a, self.b = nn.Identity() if same else nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.stem(x) + 0
        h = self.a(before)
        h.relu_()
        return self.b(h + before).mul_(2)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize(("size", "samples"), [(9, 8), (8, 8), (6, 8), (9, None)])
def test_the_feature_is_the_output_before_operations_in_place(batch, same, size, samples):
    net = InPlace(same).double()
    x = batch[0].flatten(1)[:size, :5]
    stem = net.stem(x)
    a = net.a(stem)
    b = net.b(torch.relu(a) + (torch.relu(a) if same else stem))
    expected = (2 * b).sum() + cka_sr_loss([[a[:samples], b[:samples]]])
    wanted = torch.autograd.grad(expected, list(net.parameters()))
    reg = CKASR(net, 1.0, layers=["a", "b"], samples=samples)
    loss = net(x).sum() + reg()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    ours = torch.autograd.grad(loss, list(net.parameters()))
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-12)


def test_the_input_may_be_a_keyword_and_be_changed(batch):
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(5, 4)

        def forward(self, *, flag: bool, pixels: torch.Tensor) -> torch.Tensor:
            return self.a(pixels.mul_(pixels))

    net, x = Keyword().double(), batch[0].flatten(1)[:, :5]
    expected = 2 * ckasr.linear_cka(x[:8], net.a(x * x)[:8])
    reg = CKASR(net, 1.0, layers=["a"], pairs="input")
    net(flag=True, pixels=x.clone())
    assert reg().item() == pytest.approx(expected.item(), rel=1e-12)
    net = nn.Sequential(nn.Embedding(9, 5), nn.Linear(5, 5))
    reg = CKASR(net, layers=["0", "1"], pairs="input")
    with pytest.raises(ValueError, match=r"the model's input is torch\.int64"):
        net(torch.arange(8))
    reg.remove()


def test_shared_modules_are_found_by_any_of_their_names(net, batch):
    net.again = nn.ModuleList([net.layer1[0], net.layer1[1]])
    names = ["again.0", "again.1"]
    expected = term(net, batch[0], layers=BLOCKS[0])
    assert term(net, batch[0], layers=names) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match=r"'again\.0' is the same module as 'layer1\.0'"):
        CKASR(net, layers=["layer1.0", "again.0"])


def test_layers_in_eval_mode_of_a_model_in_train_mode_count(net, batch):
    net.layer1.eval()
    outputs = {}
    for name in BLOCKS[0]:
        net.get_submodule(name).register_forward_hook(
            lambda m, a, o, name=name: outputs.__setitem__(name, o.detach()[:8])
        )
    reg = CKASR(net, 1.0, stages=[BLOCKS[0]])
    net(batch[0])
    expected = cka_sr_loss([list(outputs.values())])
    assert reg().item() == pytest.approx(expected.item(), rel=1e-12)


# Which dimension counts samples


def encoder(batch_first: bool) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).double()


def test_sequence_first_layers_are_recognised(batch):
    x = batch[0].flatten(2).reshape(16, 24, 8)
    expected = term(encoder(True), x)
    assert term(encoder(False), x.transpose(0, 1)) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="no sample dimension 1"):
        term(encoder(False), x[0])


def test_an_unclear_sample_dimension_is_refused_with_a_hint_to_batch_dim(batch):
    x = batch[0].flatten(2).reshape(16, 24, 8).transpose(0, 1)
    inner = {"layers": ["layers.0.linear2", "layers.1.linear2"]}
    with pytest.raises(ValueError, match=r"batch_first=False.*batch_dim=0"):
        term(encoder(False), x, **inner)
    expected = term(encoder(True), x.transpose(0, 1), **inner)
    assert term(encoder(False), x, batch_dim=1, **inner) == pytest.approx(expected, rel=1e-9)


def test_windows_are_not_taken_for_samples(batch):
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x.permute(0, 2, 3, 1).reshape(-1, 32, 3)))

    net = Windows().double()
    reg = CKASR(net, layers=["a", "b"])
    with pytest.raises(ValueError, match=r"'a' has shape \(32, 32, 4\).*batch has 16 samples"):
        net(batch[0])
    reg.remove()
    assert term(net, batch[0], layers=["a", "b"], batch_dim=0) > 0


# No gradient


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers(net, batch, reentrant):
    expected = gradients_of_term(copy.deepcopy(net), batch[0])
    forward = net.layer1.forward
    net.layer1.forward = lambda x: checkpoint(forward, x, use_reentrant=reentrant)
    if reentrant:
        with pytest.raises(RuntimeError, match=r"layer1\.0, layer1\.1 ran without gradients"):
            gradients_of_term(net, batch[0])
    else:
        torch.testing.assert_close(gradients_of_term(net, batch[0]), expected)


def gradients_of_term(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    reg = CKASR(net, 1.0, every=1)
    (net(x).sum() + reg()).backward()
    assert reg._features == {}, "the second run of a checkpointed layer is not kept"
    return gradients(net)


def test_without_gradients_the_term_may_be_read_but_not_trained_on(net, batch):
    reg = CKASR(net, 1.0, every=1)
    with torch.no_grad():
        net(batch[0])
        assert reg().item() == pytest.approx(term(net, batch[0]), rel=1e-12)
        net(batch[0])
    with pytest.raises(RuntimeError, match="ran without gradients"):
        reg()
    net.requires_grad_(False)
    net(batch[0])
    with pytest.raises(RuntimeError, match="all layers of the term are frozen"):
        reg()


# What is said


def test_found_stages_of_several_resolutions_are_refused(net, batch):
    pool = nn.functional.max_pool2d
    net.layer2[1].register_forward_hook(lambda m, a, o: pool(o, 2))
    reg = CKASR(net)
    net(batch[0])
    with pytest.raises(ValueError, match=r"layer2\.0, layer2\.1.*several resolutions"):
        reg()
    with CKASR(net, stages=BLOCKS) as reg:
        net(batch[0])
        reg()


def test_layers_without_a_partner_are_refused(net, batch):
    with CKASR(net, layers=["layer1.1", "layer2.1"]) as reg:
        net(batch[0])
        with pytest.raises(ValueError, match=r"no two of the layers layer1\.1, layer2\.1"):
            reg()


def test_repr_names_what_is_compared(net):
    text = repr(CKASR(net, 0.5, samples=None, variant="paper"))
    assert text.startswith("CKASR(Net, beta=0.5, variant='paper', samples=None, every=5")
    assert text.endswith("\n  layer1.0, layer1.1\n  layer2.0, layer2.1")


def test_a_model_that_was_compiled_and_run_before_is_refused(net, batch):
    compiled = torch.compile(net, backend="eager")
    compiled(batch[0])
    reg = CKASR(net)
    compiled(batch[0])
    with pytest.raises(RuntimeError, match="compiled and has run before"):
        reg()
    torch.compiler.reset()


def test_a_compiled_model_may_be_given(net, batch):
    compiled = torch.compile(copy.deepcopy(net), backend="eager")
    assert find_stages(compiled) == BLOCKS
    assert term(compiled, batch[0]) == pytest.approx(term(net, batch[0]), rel=1e-12)
