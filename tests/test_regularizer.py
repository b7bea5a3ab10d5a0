"""CKASR in anybody's training loop: values, gradients, hooks, skipped steps, errors."""

import copy
import gc
import weakref

import pytest
import torch
import torchvision
from torch import nn

import ckasr
from ckasr import CKASR, cka_sr_loss, find_stages, regularizer

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
    CKASR(net, 1.0)
    nn.functional.cross_entropy(net(x), y).backward()
    torch.testing.assert_close(gradients(net), gradients(reference), rtol=0, atol=0)


class Shared(nn.Module):
    """Both branches of a sum are handed one gradient: a tap must not change it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left(x) + self.right(x)


@pytest.mark.parametrize("tapped", ["left", "right"])
def test_gradients_that_branches_share_stay_apart(batch, tapped):
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


def test_the_gradient_is_copied_only_where_somebody_else_holds_it(net, batch, monkeypatch):
    x, y = batch
    copies = []
    clone = torch.Tensor.clone

    def counted(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        copies.append(len(tensor))
        return clone(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "clone", counted)
    gradients_of = []
    for alone in (regularizer._nobody_else(), None):  # None: as where torch shows no counts
        monkeypatch.setattr(regularizer, "_nobody_else", lambda alone=alone: alone)
        copies.clear()
        net.zero_grad()
        with CKASR(net, 1.0) as reg:
            (nn.functional.cross_entropy(net(x), y) + reg()).backward()
        layers = sum(len(stage) for stage in reg.stages)
        assert copies == [8] * layers + [len(x)] * (0 if alone else layers)
        gradients_of.append(gradients(net))
    torch.testing.assert_close(*gradients_of, rtol=0, atol=0)


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


def test_holds_nothing_after_the_step(net, batch):
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
    assert hooks(net) == before
    with pytest.raises(RuntimeError, match="was removed"):
        reg()


def test_finds_the_stages_of_residual_networks(net):
    assert find_stages(net) == BLOCKS
    resnet = torchvision.models.resnet18(num_classes=10)
    assert find_stages(resnet) == [[f"layer{s}.{b}" for b in range(2)] for s in (1, 2, 3, 4)]
    for depth, blocks in ((20, 3), (32, 5), (56, 9)):
        stages = find_stages(ckasr.models.create(f"resnet{depth}", num_classes=10))
        assert [len(stage) for stage in stages] == [blocks] * 3
    with pytest.raises(ValueError, match="no stages of residual blocks found in Sequential"):
        find_stages(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


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


def tuple_net() -> nn.Module:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, x):
            return self.linear(x), "extra"

    class TupleNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Pair(), Pair()

        def forward(self, x):
            h, extra = self.a(x)
            assert extra == "extra"
            return self.b(h)[0]

    return TupleNet()


def test_layers_that_return_tuples():
    net = tuple_net()
    reg = CKASR(net, 1.0, layers=["a", "b"])
    net(torch.randn(9, 5))
    reg().backward()
    assert net.a.linear.weight.grad.norm() > 0


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
    with pytest.raises(ValueError, match=r"'layer1\.0' saw 3 samples.*drop_last=True"):
        reg()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, "beta must be finite and not negative"),
        ({"beta": float("nan")}, "beta must be finite"),
        ({"samples": 3}, "samples must be at least 4"),
        ({"every": 0}, "every must be at least 1"),
        ({"stages": BLOCKS, "layers": ["stem"]}, "stages or layers, not both"),
        ({"stages": ["layer1.0"]}, "list of lists"),
        ({"layers": lambda name, module: False}, "no layer to compare"),
    ],
)
def test_bad_options(net, options, message):
    with pytest.raises(ValueError, match=message):
        CKASR(net, **options)


def test_layer_without_tensor(net, batch):
    net.layer1.register_forward_hook(lambda m, a, o: None)

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x):
            return {"out": self.inner(x)}

    odd = Odd()
    wrapper = nn.ModuleDict({"odd": odd})
    CKASR(wrapper, layers=["odd"])
    with pytest.raises(ValueError, match="'odd' returns dict, not a tensor"):
        odd(batch[0])
