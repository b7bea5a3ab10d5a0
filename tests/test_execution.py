"""Sparse execution against dense masked training: the same mathematics, whatever the network."""

import copy
import pickle
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from ckasr import CKASR, models
from ckasr.execution import choose, sparse_execution, summary
from ckasr.sparsity import Masks, prunable

numba = pytest.importorskip("numba")
EXACT = 1e-10


class Block(nn.Module):
    """Convolutions, norms and a sum of two, in every way that the parameters allow."""

    def __init__(self, before: int, after: int, stride: int, groups: int, kernel: int, norm: bool,
                 relu: bool, shortcut: str) -> None:  # fmt: skip
        super().__init__()
        pad = kernel // 2
        self.conv1 = nn.Conv2d(before, after, kernel, stride, pad, groups=groups, bias=not norm)
        self.bn1 = nn.BatchNorm2d(after) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=True)
        self.bn2 = nn.BatchNorm2d(after) if norm else nn.Identity()
        self.act = nn.ReLU(inplace=True)
        self.relu = relu
        plain = stride == 1 and before == after and shortcut == "identity"
        self.shortcut: nn.Module = nn.Identity()
        if not plain:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        out = out + self.shortcut(x)
        return self.act(out) if self.relu else out


class Network(nn.Module):
    def __init__(self, *blocks: nn.Module, channels: int, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        )
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Linear(channels, 6), nn.ReLU(), nn.Linear(6, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@st.composite
def networks(draw: st.DrawFn) -> Network:
    channels, blocks = 4, []
    for _ in range(draw(st.integers(1, 2))):
        after = draw(st.sampled_from([4, 6]))
        groups = draw(st.sampled_from([1, 2]))
        blocks.append(
            Block(
                channels,
                after,
                stride=draw(st.sampled_from([1, 2, 3])),
                groups=groups,
                kernel=draw(st.sampled_from([1, 3, 5])),
                norm=draw(st.booleans()),
                relu=draw(st.booleans()),
                shortcut=draw(st.sampled_from(["identity", "projection"])),
            )
        )
        channels = after
    return Network(*blocks, channels=channels)


@st.composite
def masks_of(draw: st.DrawFn, model: nn.Module) -> dict[str, Tensor]:
    """Each layer empty, with one weight, sparse or full."""
    masks = {}
    for name, weight in prunable(model).items():
        kind = draw(st.sampled_from(["empty", "one", "sparse", "sparse", "sparse", "full"]))
        mask = torch.zeros(weight.shape, dtype=torch.bool)
        if kind == "one":
            mask.view(-1)[draw(st.integers(0, mask.numel() - 1))] = True
        elif kind != "empty":
            mask = torch.rand(weight.shape) < (1 if kind == "full" else 0.2)
        masks[name] = mask
    return masks


def prepared(model: nn.Module, masks: dict[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """With shifts of both signs, so that constant channels occur, and pruned weights at zero."""
    model = model.to(dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    Masks(model, masks).apply()
    return model


def results(model: nn.Module, x: Tensor, masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Output, gradients (of kept weights) and buffers of a step, and the output in eval mode."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    out = model(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    found = {"out": out.detach(), "x": x.grad}
    for name, p in model.named_parameters():
        found[f"gradient of {name}"] = p.grad * masks.get(name, torch.tensor(True))
    found |= {name: b.clone() for name, b in model.named_buffers()}
    training = model.training
    model.eval()
    with torch.no_grad():
        found["eval"] = model(x.detach())
    model.train(training)
    return found


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    scale = max(float(v.abs().max()) for n, v in wanted.items() if n.startswith("gradient"))
    for name, value in wanted.items():
        size = float(value.abs().max()) if value.numel() else 0.0
        # Gradients that cancel to zero are known up to the rounding of what cancels.
        size = max(size, 1e-3 * scale) if name.startswith(("gradient", "x")) else size
        error = float((found[name] - value).abs().max()) if value.numel() else 0.0
        assert error <= tolerance * max(size, 1e-2), (name, error, size)


@settings(max_examples=40, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
@given(st.data())
def test_every_network_and_mask_gives_the_dense_numbers(data):
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    model = data.draw(networks())
    masks = data.draw(masks_of(model))
    dense = prepared(model, masks, torch.float64)
    sparse = copy.deepcopy(dense)
    images = data.draw(st.sampled_from([1, 2, 3, 5, 33]))
    size = data.draw(st.sampled_from([(6, 6), (7, 9), (17, 13)]))
    x = torch.randn(images, 3, *size, dtype=torch.float64)
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    if data.draw(st.booleans()):  # frozen batch norms
        for m in (*dense.modules(), *sparse.modules()):
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
    handle = sparse_execution(sparse, masks)
    assert not handle.dense
    for _ in range(2):  # the second step finds used buffers
        assert_same(results(sparse, x, masks), results(dense, x, masks), EXACT)
    small = [bound for bound in handle.units if bound.plain_calls]
    assert not small or len(x) == 1  # one value a channel is the layers' own affair


@pytest.mark.parametrize("name", ["resnet20", "resnet20_a", "lenet300"])
def test_the_models_of_the_project_run_sparse_as_a_whole(name):
    torch.manual_seed(0)
    model = models.create(name, num_classes=10)
    masks = {n: torch.rand(w.shape) < 0.05 for n, w in prunable(model).items()}
    dense = prepared(model, masks, torch.float64)
    sparse = copy.deepcopy(dense)
    x = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    with sparse_execution(sparse, masks) as handle:
        assert handle.dense == []
        layers = [c.name for bound in handle.units for c in bound.unit.convolutions]
        assert sorted(layers) == sorted(masks)
        assert_same(results(sparse, x, masks), results(dense, x, masks), EXACT)
        assert all(bound.plain_calls == 0 for bound in handle.units)
    assert "forward" not in vars(sparse)
    assert_same(results(sparse, x, masks), results(dense, x, masks), EXACT)


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(4, 8, 1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.thin = nn.Conv2d(8, 4, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.bn(self.wide(x)))
        return self.thin(nn.functional.silu(self.bn2(self.depth(x)), inplace=True))


class Valid(nn.Module):
    """A convolution without padding and one that is called twice run as before."""

    def __init__(self) -> None:
        super().__init__()
        self.valid = nn.Conv2d(4, 4, 3)
        self.same = nn.Conv2d(4, 4, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.same(torch.relu(self.valid(x))))
        return nn.functional.max_pool2d(torch.relu(self.same(x)), 2).flatten(1)


class Decides(nn.Module):
    """A forward that draws a number and looks at values is not followed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Depthwise()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.conv(x) if x.sum() > -1e9 else x


@pytest.mark.parametrize(
    ("kind", "dense"),
    [(Depthwise, []), (Valid, ["valid.weight"]), (Decides, ["conv.weight"])],
)
def test_parts_that_are_not_supported_run_as_before(kind, dense):
    torch.manual_seed(1)
    model = kind()
    masks = {n: torch.rand(w.shape) < 0.3 for n, w in prunable(model).items()}
    reference = prepared(model, masks, torch.float64)
    model = copy.deepcopy(reference)
    handle = sparse_execution(model, masks)
    assert handle.dense == dense
    assert all(f"as before: {n.removesuffix('.weight')}" in repr(handle) for n in dense)
    x = torch.randn(6, 4, 9, 9, dtype=torch.float64)
    assert_same(results(model, x, masks), results(reference, x, masks), EXACT)


def small(dtype: torch.dtype = torch.float64) -> tuple[Network, dict[str, Tensor]]:
    torch.manual_seed(3)
    blocks = [Block(4, 4, 1, 1, 3, True, True, "identity"), Block(4, 6, 2, 1, 3, True, True, "")]
    model = Network(*blocks, channels=6)
    masks = {n: torch.rand(w.shape) < 0.4 for n, w in prunable(model).items()}
    return prepared(model, masks, dtype), masks


def test_ten_steps_of_training_with_the_term():
    dense, masks = small()
    sparse = copy.deepcopy(dense)
    x = torch.randn(10, 16, 3, 8, 8, dtype=torch.float64)
    y = torch.randint(0, 3, (10, 16))
    found = []
    for model, handle in ((dense, None), (sparse, sparse_execution(sparse, masks))):
        held = Masks(model, masks)
        term = CKASR(model, 0.05, every=2, samples=6, stages=[["blocks.0", "blocks.1"]])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        losses = []
        for batch, labels in zip(x, y, strict=True):
            loss = nn.functional.cross_entropy(model(batch), labels) + term()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            held.apply(optimizer)
            losses.append(loss.item())
        found.append((losses, [p.detach() for p in model.parameters()]))
        assert handle is None or all(b.plain_calls == 0 for b in handle.units)
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-9)
    for ours, theirs in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def gradient_error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Distance of the whole gradient from the wanted one, relative to its norm."""
    names = [name for name in wanted if name.startswith("gradient")]
    error = sum(float((found[name] - wanted[name]).square().sum()) for name in names)
    return (error / sum(float(wanted[name].square().sum()) for name in names)) ** 0.5


def test_float32_is_nearer_to_float64_than_dense_float32_is():
    exact, masks = small()
    x = torch.randn(32, 3, 12, 12, dtype=torch.float64)
    wanted = results(copy.deepcopy(exact), x, masks)
    errors = []
    for sparse in (True, False):
        model = copy.deepcopy(exact).float().to(memory_format=torch.channels_last)
        handle = sparse_execution(model, masks) if sparse else None
        found = results(model, x.float().contiguous(memory_format=torch.channels_last), masks)
        assert handle is None or not any(b.plain_calls for b in handle.units)
        errors.append(gradient_error(found, wanted))
    assert errors[0] < errors[1]
    assert errors[0] < 1e-5


def test_storage_in_bfloat16_is_finer_than_autocast():
    """What PyTorch sees stays float32; the rest is rounded, and less than autocast rounds it."""
    exact, masks = small()
    x = torch.randn(32, 3, 12, 12, dtype=torch.float64)
    wanted = results(copy.deepcopy(exact), x, masks)
    errors = {}
    for storage in ("float32", "bfloat16"):
        model = copy.deepcopy(exact).float()
        with sparse_execution(model, masks, storage=storage) as handle:
            found = results(model, x.float(), masks)
            assert not any(b.plain_calls for b in handle.units)
        assert all(value.dtype != torch.bfloat16 for value in found.values())
        errors[storage] = gradient_error(found, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(copy.deepcopy(exact).float(), x.float(), masks)
    assert 100 * errors["float32"] < errors["bfloat16"] < gradient_error(found, wanted)


def test_storage_in_bfloat16_leaves_float64_and_exact_values_alone():
    dense, masks = small()
    sparse = copy.deepcopy(dense)
    sparse_execution(sparse, masks, storage="bfloat16")
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    assert_same(results(sparse, x, masks), results(dense, x, masks), EXACT)
    # A network whose every intermediate value has few bits is computed without any rounding.
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.5, -1.0]).view(2, 1, 1, 1).expand(2, 1, 3, 3))
        model[0].bias.copy_(torch.tensor([1.0, 2.0]))
    x = torch.arange(-2.0, 2.0, 0.25).view(1, 1, 4, 4)
    wanted = model(x)
    masks = {"0.weight": torch.ones(2, 1, 3, 3, dtype=torch.bool)}
    with sparse_execution(model, masks, storage="bfloat16"):
        assert torch.equal(model(x), wanted)


def test_bfloat16_rounds_as_pytorch_does():
    from ckasr.execution.loops import jit, load, store

    @jit
    def there_and_back(stored, values):
        for i in range(values.size):
            stored[i] = store(stored, values[i])
            values[i] = load(stored[i])

    bits = torch.randint(-(2**31), 2**31, (4096,), dtype=torch.int64).to(torch.int32)
    x = torch.cat([bits.view(torch.float32), torch.tensor([0.0, -0.0, 1.00390625, 1.01171875])])
    x = torch.cat([x, torch.tensor([float("inf"), -float("inf"), float("nan"), 3.4e38])])
    values = x.numpy().copy()
    there_and_back(np.zeros(len(values), np.uint16), values)
    torch.testing.assert_close(
        torch.from_numpy(values), x.bfloat16().float(), rtol=0, atol=0, equal_nan=True
    )


def test_an_unknown_storage_is_refused():
    model, masks = small()
    with pytest.raises(ValueError, match="storage 'int8' is unknown: choose float32, bfloat16"):
        sparse_execution(model, masks, storage="int8")


def test_changed_masks_are_used():
    dense, masks = small()
    sparse = copy.deepcopy(dense)
    handle = sparse_execution(sparse, masks)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    results(sparse, x, masks)
    results(dense, x, masks)
    torch.manual_seed(9)
    changed = {n: torch.rand(m.shape) < 0.4 for n, m in masks.items()}
    with torch.no_grad():
        for model in (dense, sparse):
            torch.manual_seed(10)
            for n, w in prunable(model).items():
                w.copy_(torch.randn(w.shape, dtype=w.dtype) * changed[n])
    handle.update(changed)
    assert_same(results(sparse, x, changed), results(dense, x, changed), EXACT)
    # In place and without a word.
    with torch.no_grad():
        changed["blocks.0.conv1.weight"][0] = True
        for model in (dense, sparse):
            model.blocks[0].conv1.weight[0] = 0.5
    assert_same(results(sparse, x, changed), results(dense, x, changed), EXACT)


def test_another_type_and_new_parameters():
    dense, masks = small()
    sparse = copy.deepcopy(dense)
    sparse_execution(sparse, masks)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    results(sparse, x, masks)
    results(dense, x, masks)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, EXACT)):
        for model in (dense, sparse):
            model.to(dtype)
        sparse.load_state_dict(dense.state_dict())
        assert_same(
            results(sparse, x.to(dtype), masks), results(dense, x.to(dtype), masks), tolerance
        )
    state = {
        name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        for name, value in small()[0].state_dict().items()
    }
    for model in (dense, sparse):
        model.load_state_dict(copy.deepcopy(state), assign=True)
    assert_same(results(sparse, x, masks), results(dense, x, masks), EXACT)


def test_nothing_is_copied_between_sparse_units(monkeypatch):
    """Only the images come in, and the gradient behind the last unit."""
    model, masks = small()
    handle = sparse_execution(model, masks)
    taken = []
    plain = handle.units[0].workspace.buffers.take
    monkeypatch.setattr(
        handle.units[0].workspace.buffers,
        "take",
        lambda key, *rest: taken.append(key) or plain(key, *rest),
    )
    model(torch.randn(4, 3, 8, 8, dtype=torch.float64)).square().sum().backward()
    copies = [key for key in taken if key[1] in ("input", "gradient")]
    # The images, the head's input, and the loss's gradient.
    assert len(copies) == 3, copies


def test_a_norm_whose_settings_change_is_followed():
    """Another momentum and epsilon, then a cumulative average, which the kernels leave alone."""
    dense, masks = small()
    sparse = copy.deepcopy(dense)
    handle = sparse_execution(sparse, masks)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for momentum, eps in ((0.1, 1e-5), (0.3, 1e-2), (None, 1e-2)):
        for model in (dense, sparse):
            norm = model.blocks[0].bn1
            norm.momentum, norm.eps = momentum, eps
        before = sum(bound.plain_calls for bound in handle.units)
        assert_same(results(sparse, x, masks), results(dense, x, masks), EXACT)
        after = sum(bound.plain_calls for bound in handle.units)
        assert (after > before) == (momentum is None)


def test_a_channel_taken_for_zero_is_computed_once_its_shift_rises():
    dense, masks = small()
    masks["stem.0.weight"][1] = False  # its channel is relu(shift)
    with torch.no_grad():
        dense.stem[0].weight[1] = 0
        dense.stem[1].bias[1] = -0.3
    sparse = copy.deepcopy(dense)
    sparse_execution(sparse, masks)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for shift in (-0.3, 0.7, -0.1):
        with torch.no_grad():
            for model in (dense, sparse):
                model.stem[1].bias[1] = shift
        assert_same(results(sparse, x, masks), results(dense, x, masks), EXACT)


def test_two_forwards_before_one_backward_and_two_backwards_of_one():
    dense, masks = small()
    sparse = copy.deepcopy(dense)
    sparse_execution(sparse, masks)
    a, b = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    found = []
    for model in (dense, sparse):
        first, second = model(a), model(b)
        (first.square().sum() + second.sum()).backward(retain_graph=True)
        (first.sum()).backward()
        found.append([p.grad for p in model.parameters()])
    for ours, theirs, name in zip(*reversed(found), dict(dense.named_parameters()), strict=True):
        keep = masks.get(name, torch.tensor(True))
        torch.testing.assert_close(ours * keep, theirs * keep, rtol=1e-9, atol=1e-10)


def test_tensors_that_a_user_keeps_do_not_change():
    model, masks = small()
    sparse_execution(model, masks)
    kept = []
    model.blocks[0].register_forward_hook(lambda m, args, out: kept.append(out))
    for seed in range(3):
        torch.manual_seed(seed)
        model(torch.randn(4, 3, 8, 8, dtype=torch.float64)).sum().backward()
        if seed == 0:
            before = kept[0].detach().clone()
    torch.testing.assert_close(kept[0], before, rtol=0, atol=0)
    assert not torch.equal(kept[0], kept[2])


@pytest.mark.parametrize("habit", ["keeps the last outputs", "keeps all outputs", "batch sizes"])
def test_steps_in_other_memory_do_not_ask_numba_for_types_again(monkeypatch, habit):
    """To find the types of all arguments takes as long as a step at high sparsity."""
    model, masks = small()
    usual = copy.deepcopy(model)
    kept: dict[object, Tensor] = {}
    for model_of_two in (model, usual):
        sparse_execution(model_of_two, masks)
    for block in model.blocks:
        if habit != "batch sizes":  # Detached: without their graph, so only their memory is kept.
            block.register_forward_hook(
                lambda m, args, out: kept.update({(m, step if "all" in habit else 0): out.detach()})
            )
    asked = []
    typeof = numba.typeof
    for step in range(8):
        if step == 4:
            monkeypatch.setattr(numba, "typeof", lambda value: asked.append(value) or typeof(value))
        x = torch.randn(4 + (step % 2 if habit == "batch sizes" else 0), 3, 8, 8).double()
        for network in (model, usual):
            network.zero_grad()
            network(x).square().sum().backward()
        for ours, theirs in zip(model.parameters(), usual.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)
    assert not asked


def test_an_output_that_is_changed_in_place_is_refused_as_by_torch():
    model, masks = small()
    sparse_execution(model, masks)
    handle = model.blocks[0].register_forward_hook(lambda m, args, out: out.mul_(2))
    out = model(torch.randn(4, 3, 8, 8, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
    handle.remove()


@pytest.mark.parametrize("training", [True, False])
def test_an_output_changed_in_place_without_a_backward_leaves_no_trace(training):
    """Channels that are zero are not written at every step, so nobody else may write them."""
    dense, masks = small()
    for name in ("blocks.1.conv2.weight", "blocks.1.shortcut.0.weight"):
        masks[name][1] = False
    with torch.no_grad():
        for norm in (dense.blocks[1].bn2, dense.blocks[1].shortcut[1]):
            norm.bias[1] = -1
            norm.running_mean[1] = 0
        dense.blocks[1].conv2.bias[1] = 0
    Masks(dense, masks).apply()
    sparse = copy.deepcopy(dense)
    sparse_execution(sparse, masks)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for change in (True, True, False):
        found = []
        for model in (dense, sparse):
            model.train(training)
            hook = model.blocks[1].register_forward_hook(
                lambda m, args, out, change=change: out.add_(1) if change else out
            )
            with torch.no_grad():
                found.append(model(x))
            hook.remove()
        torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


def test_a_hook_on_an_inner_layer_is_called():
    dense, masks = small()
    sparse = copy.deepcopy(dense)
    handle = sparse_execution(sparse, masks)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for model in (dense, sparse):
        model.blocks[0].conv1.register_forward_hook(lambda m, args, out: out * 2)
    assert_same(results(sparse, x, masks), results(dense, x, masks), EXACT)
    assert sum(bound.plain_calls > 0 for bound in handle.units) == 1
    assert "ran dense" in repr(handle)


def test_copies_pickles_and_state_dicts_are_the_plain_models(tmp_path):
    model, masks = small()
    names = list(model.state_dict())
    sparse_execution(model, masks)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    copied = copy.deepcopy(model)
    loaded = pickle.loads(pickle.dumps(model))
    assert list(model.state_dict()) == names
    with torch.no_grad():
        for p in copied.parameters():
            p.zero_()
    for other in (copied, loaded):
        assert all(isinstance(m, nn.Module) for m in other.modules())
    assert not copied.eval()(x).any()
    torch.testing.assert_close(loaded.eval()(x), model.eval()(x))


def test_nan_is_not_hidden():
    model, masks = small()
    sparse_execution(model, masks)
    with torch.no_grad():
        model.blocks[0].bn1.weight.fill_(float("nan"))
    assert model(torch.randn(4, 3, 8, 8, dtype=torch.float64)).isnan().all()


def test_without_numba_one_line_says_so(monkeypatch):
    import builtins

    plain = builtins.__import__

    def no_numba(name, *args, **kwargs):
        if name == "numba":
            raise ModuleNotFoundError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_numba)
    model, masks = small()
    with pytest.warns(RuntimeWarning, match="needs numba"):
        handle = sparse_execution(model, masks)
    assert handle.units == []
    assert "forward" not in vars(model)


def test_wrong_masks_are_refused():
    model, masks = small()
    with pytest.raises(ValueError, match="no mask for layer"):
        sparse_execution(model, {})
    with pytest.raises(ValueError, match="unknown layer"):
        sparse_execution(model, masks | {"nowhere.weight": masks["stem.0.weight"]})


def test_auto_follows_its_rule():
    model, masks = small(torch.float32)
    full = {n: torch.ones_like(m) for n, m in masks.items()}
    few = {n: torch.zeros_like(m) for n, m in masks.items()}
    assert choose("auto", model, full, "fp32")[0] == "dense"
    assert choose("auto", model, few, "fp32")[0] == "sparse"
    assert choose("auto", model, few, "bf16")[0] == "dense"
    assert choose("sparse", model, full, "fp32")[0] == "sparse"
    with pytest.raises(ValueError, match="impossible: precision is bf16"):
        choose("sparse", model, few, "bf16")
    with pytest.raises(ValueError, match="unknown"):
        choose("fast", model, few, "fp32")
    linear = nn.Sequential(nn.Linear(3, 3))
    none = {"0.weight": torch.zeros(3, 3, dtype=torch.bool)}
    assert choose("auto", linear, none, "fp32")[0] == "dense"
    assert summary({"level 0": "dense", "level 1": "sparse"}) == "level 0 dense, level 1 sparse"
    assert summary({"train": "sparse"}) == "sparse"


def test_no_warning_of_numba_reaches_the_user():
    model, masks = small(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse_execution(model, masks)
        model(torch.randn(4, 3, 8, 8)).sum().backward()
