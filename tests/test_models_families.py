"""The models beside the CIFAR ResNets and the perceptrons: sizes, shapes, and who can use them."""

import importlib
import sys

import pytest
import torch
from torch import nn

from ckasr import CKASR, models
from ckasr.execution import sparse_execution
from ckasr.methods import score
from ckasr.sparsity import prunable, random_masks, report

FAMILIES = (
    "resnet18",
    "resnet50",
    "vgg16",
    "vgg19",
    "mobilenet_v2",
    "efficientnet_b0",
    "vit",
    "deit_tiny",
)


def small(name: str) -> nn.Module:
    return models.create(name, num_classes=10, input_shape=(1, 8, 8))


def sparse(model: nn.Module, density: float) -> dict[str, torch.Tensor]:
    shapes = {name: tuple(weight.shape) for name, weight in prunable(model).items()}
    return random_masks(shapes, dict.fromkeys(shapes, density), seed=0)


# Millions of parameters with 10 classes, as published: kuangliu/pytorch-cifar's ResNets, VGG16 and
# MobileNetV2 (its shortcut convolutions left out), the VGG19 of GraSP. With 1000 classes:
# EfficientNet-B0 (its table 2) and DeiT-Ti (its table 1), whose patches and position embedding
# differ.
@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [
        ("resnet18", 10, 11.2),
        ("resnet50", 10, 23.5),
        ("vgg16", 10, 14.7),
        ("vgg19", 10, 20.0),
        ("mobilenet_v2", 10, 2.2),
        ("efficientnet_b0", 1000, 5.3),
        ("deit_tiny", 1000, 5.6),
    ],
)
def test_models_have_the_published_size(name, classes, millions):
    model = models.create(name, num_classes=classes)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def test_a_vision_transformer_has_the_size_of_its_layers():
    d, tokens = 192, 65
    block = 4 * (d * d + d) + (d * 4 * d + 4 * d) + (4 * d * d + d) + 2 * 2 * d
    rest = (48 * d + d) + d + tokens * d + 2 * d + (10 * d + 10)
    assert sum(p.numel() for p in models.create("vit", num_classes=10).parameters()) == (
        6 * block + rest
    )


# What is left of an image of 32x32 pixels before the pooling over space.
@pytest.mark.parametrize(
    ("name", "layer", "side"),
    [
        ("resnet18", "layer4", 4),
        ("resnet50", "layer4", 4),
        ("vgg16", "features", 2),
        ("mobilenet_v2", "features", 4),
        ("efficientnet_b0", "features", 4),
    ],
)
def test_strides_are_those_for_small_images(name, layer, side):
    model = models.create(name, num_classes=10).eval()
    seen = []
    model.get_submodule(layer).register_forward_hook(lambda _, __, out: seen.append(out.shape))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert seen[0][2:] == (side, side)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8)])
@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v2", "efficientnet_b0", "vit"])
def test_every_parameter_learns_on_every_input_shape(name, shape):
    model = models.create(name, num_classes=7, input_shape=shape)
    logits = model(torch.randn(4, *shape))
    assert logits.shape == (4, 7)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("shape", [(3, 30, 30), (3, 32, 16)])
def test_a_vision_transformer_refuses_images_that_it_cannot_cut(shape):
    with pytest.raises(ValueError, match="equal and a multiple of 4") as error:
        models.create("vit", num_classes=10, input_shape=shape)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_cka_sr_finds_the_stages(name):
    model = small(name)
    with CKASR(model) as regularizer:
        model(torch.randn(8, 1, 8, 8))
        assert regularizer() > 0
        assert sum(len(stage) for stage in regularizer.stages) >= 6


@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v2", "vit"])
def test_torch_compile_finds_one_graph(name):
    model = small(name).eval()
    x = torch.randn(3, 1, 8, 8)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


# --- attention -------------------------------------------------------------------------------


def test_attention_is_that_of_pytorch():
    block = small("vit").encoder.layers[0].self_attention
    reference = nn.MultiheadAttention(192, 3, batch_first=True)
    inputs = (block.query, block.key, block.value)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([layer.weight for layer in inputs]))
        reference.in_proj_bias.copy_(torch.cat([layer.bias for layer in inputs]).normal_())
        for layer, bias in zip(inputs, reference.in_proj_bias.chunk(3), strict=True):
            layer.bias.copy_(bias)
        reference.out_proj.load_state_dict(block.output.state_dict())
    x = torch.randn(2, 5, 192)
    expected, _ = reference(x, x, x, need_weights=False)
    torch.testing.assert_close(block(x, x, x)[0], expected)


def test_projections_of_attention_are_weights_like_all_others():
    model = small("vit")
    first = "encoder.layers.encoder_layer_0.self_attention"
    projections = {f"{first}.{name}.weight" for name in ("query", "key", "value", "output")}
    assert projections <= prunable(model).keys()

    masks = sparse(model, 0.1)
    found = report(model, masks, (1, 8, 8))
    assert found["kept"] == sum(int(mask.sum()) for mask in masks.values())
    assert all(found["layers"][name]["effective"] > 0 for name in projections)
    masks[f"{first}.output.weight"][:] = False
    dead = report(model, masks, (1, 8, 8))["dead_layers"]
    assert set(dead) == projections  # what they compute reaches nothing

    x, y = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    for method in ("snip", "grasp"):
        scores = score(model, method, x, y)
        assert all(scores[name].any() for name in projections), method

    model.eval()
    with torch.no_grad():
        for name, weight in prunable(model).items():
            weight.mul_(masks[name])
        expected = model(x)
        with sparse_execution(model, masks) as handle:
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert projections <= handle.followed


# --- other libraries -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("torchvision:shufflenet_v2_x0_5", (1, 8, 8)),
        ("torchvision:mnasnet0_5", (3, 32, 32)),
        ("timm:test_vit", (3, 32, 32)),
        ("timm:test_byobnet", (1, 16, 16)),
    ],
)
def test_models_of_other_libraries_learn(name, shape):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    model = models.create(name, num_classes=7, input_shape=shape)
    assert model.training
    logits = model(torch.randn(4, *shape))
    assert logits.shape == (4, 7)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "kind", "message"),
    [
        ("torchvision:resnet8", (3, 32, 32), LookupError, "no model 'resnet8'; nearest: resnet18"),
        ("torchvision:resnet18@V9", (3, 32, 32), LookupError, "no weights 'V9'.*IMAGENET1K_V1"),
        ("torchvision:squeezenet1_1", (1, 8, 8), ValueError, r"of shape \(1, 8, 8\): Given input"),
        ("torchvision:resnet18@DEFAULT", (1, 8, 8), ValueError, "images of three channels"),
        ("timm:resnet18@nosuch", (3, 32, 32), LookupError, "no weights 'nosuch'.*a1_in1k"),
        ("timm:vit_tiny_patch16_224", (3, 8, 8), ValueError, "its patches are larger"),
        ("tv:resnet18", (3, 32, 32), LookupError, "unknown model 'tv:resnet18'.*torchvision:NAME"),
    ],
)
def test_unsupported_models_of_other_libraries_are_refused_in_one_line(name, shape, kind, message):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(kind, match=message) as error:
        models.create(name, num_classes=10, input_shape=shape)
    assert "\n" not in str(error.value)


def test_without_timm_its_models_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ckasr\[timm\]'"):
        models.create("timm:resnet18", num_classes=10)


@pytest.fixture
def published(monkeypatch) -> dict[str, torch.Tensor]:
    """The weights of a network with 1000 classes, in the place of torchvision's download."""
    state = models.create("torchvision:shufflenet_v2_x0_5", num_classes=1000).state_dict()
    api = importlib.import_module("torchvision.models._api")
    monkeypatch.setattr(api, "load_state_dict_from_url", lambda *args, **options: state)
    return state


@pytest.mark.parametrize("classes", [10, 1000])
def test_published_weights_come_with_a_classifier_of_the_right_size(published, classes):
    name = "torchvision:shufflenet_v2_x0_5@IMAGENET1K_V1"
    found = models.create(name, num_classes=classes).state_dict()
    assert found["fc.weight"].shape == (classes, 1024)
    same = [key for key, value in published.items() if torch.equal(value, found[key])]
    expected = set(published) - ({"fc.weight", "fc.bias"} if classes == 10 else set())
    assert set(same) == expected


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch):
    def offline(*args, **options):
        raise OSError("no route to host")

    api = importlib.import_module("torchvision.models._api")
    monkeypatch.setattr(api, "load_state_dict_from_url", offline)
    with pytest.raises(ConnectionError, match="resnet18@DEFAULT' could not be loaded: no route"):
        models.create("torchvision:resnet18@DEFAULT", num_classes=10)
