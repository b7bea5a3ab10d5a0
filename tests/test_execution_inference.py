"""What holds for every way of inference: the same outputs, and nothing else is changed."""

import copy

import pytest
import torch
from sparse_networks import AWKWARD, SMOOTH, as_trained, assert_same, bernoulli, masked, ones
from torch import Tensor, nn

from ckasr import CKASR, models
from ckasr.execution import INFERENCE, shrink
from ckasr.sparsity import Masks, report

NETWORKS = SMOOTH | AWKWARD


def computed(
    way: str, model: nn.Module, masks: dict[str, Tensor], shape: tuple[int, ...]
) -> nn.Module:
    if way == "sparse":
        pytest.importorskip("numba")
    return shrink(model, masks, shape) if way == "shrunk" else INFERENCE[way](model, masks)


@pytest.mark.parametrize("density", [0.1, 0.3])
@pytest.mark.parametrize("way", INFERENCE)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_outputs_are_those_of_the_masked_network(name, way, density):
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build().double()
    masks = bernoulli(model, density, 0)
    as_trained(model, masks, shape)
    reference = masked(model, masks)
    assert_same(computed(way, model, masks, shape), reference, torch.randn(16, *shape).double())


@pytest.mark.parametrize("way", INFERENCE)
def test_inference_mode(way):
    model = models.create("resnet20", num_classes=10).double()
    masks = bernoulli(model, 0.1, 0)
    x = torch.randn(2, 3, 8, 8).double()
    with torch.inference_mode():
        got = computed(way, model, masks, (3, 8, 8))(x)
    torch.testing.assert_close(got, masked(model, masks)(x))


@pytest.mark.parametrize("call", [report, *INFERENCE.values()])
def test_the_given_model_and_masks_stay_as_they_were(call):
    model = models.create("resnet20", num_classes=10)
    model.layer2.eval()
    masks = bernoulli(model, 0.1, 0)
    reg = CKASR(model, 1e-4, every=1)  # its hooks hold a graph, which cannot be copied
    model(torch.randn(8, 3, 32, 32)).sum().backward()
    reg()
    state = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.parameters()]
    modules = [(m, m.training, len(m._forward_hooks), m.forward) for m in model.modules()]
    kept = copy.deepcopy(masks)
    calls = []
    hook = model.conv1.register_forward_hook(lambda *_: calls.append(1))

    result = call(model, masks)
    if isinstance(result, nn.Module):
        result(torch.zeros(1, 3, 32, 32))
        assert not any(module.training for module in result.modules())
        own = {p.data_ptr() for p in model.parameters()}
        assert not any(p.data_ptr() in own for p in result.parameters())

    hook.remove()
    assert not calls
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(p.requires_grad for p in model.parameters())
    assert [(m, m.training, len(m._forward_hooks), m.forward) for m in model.modules()] == modules
    assert all(torch.equal(masks[name], mask) for name, mask in kept.items())


@pytest.mark.parametrize("call", [report, Masks, *INFERENCE.values()])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("fc.weight"), r"no mask for layer 'fc\.weight'"),
        (lambda m: m.update(fc=m["fc.weight"]), r"unknown layer 'fc'.* \(all: .*fc\.weight"),
        (
            lambda m: m.update({"fc.weigt": m["fc.weight"]}),
            r"unknown layer 'fc\.weigt'; nearest: fc\.weight",
        ),
        (lambda m: m.update({"fc.weight": m["fc.weight"].T}), r"\(100, 10\): it must be torch\.bo"),
        (lambda m: m.update({"fc.weight": m["fc.weight"].float()}), r"torch\.float32"),
    ],
)
def test_masks_that_do_not_fit_are_refused(call, change, message):
    model = models.create("lenet300", num_classes=10, input_shape=(1, 8, 8))
    masks = ones(model)
    change(masks)
    with pytest.raises(ValueError, match=message) as error:
        call(model, masks)
    assert "\n" not in str(error.value)
