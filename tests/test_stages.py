"""find_stages on networks of many families, found right by their own shapes, and on hard cases.

Where a network is small enough to run, hooks check on its real outputs what the module tree was
read for; the big ones are built without memory, on the device "meta".
"""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn

import ckasr
from ckasr import find_stages


def check(model: nn.Module, stages: list[list[str]]) -> None:
    """What holds for any network: no block inside another, none twice, two or more each."""
    names = [name for stage in stages for name in stage]
    assert len(set(names)) == len(names)
    assert all(len(stage) >= 2 for stage in stages)
    assert not [n for n in names if n.startswith(tuple(f"{other}." for other in names))]
    for stage in stages:
        assert len({type(model.get_submodule(name)) for name in stage}) == 1


def check_resolution(model: nn.Module, stages: list[list[str]], *args: object, **inputs: object):
    """Runs the model once: the outputs of one stage must agree in all but the channels."""
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple | list) else output
            shapes[name] = tuple(first.shape)

        return hook

    for name in (name for stage in stages for name in stage):
        model.get_submodule(name).register_forward_hook(keep(name))
    with torch.no_grad():
        model.eval()(*args, **inputs)
    for stage in stages:
        found = {shapes[name] for name in stage}
        assert len({s[2:] for s in found}) == 1 or len({s[:-1] for s in found}) == 1, found


# torchvision and timm: sizes of the stages, and an image size that they all take

TORCHVISION = {
    "resnet18": [2, 2, 2, 2],
    "wide_resnet50_2": [3, 4, 6, 3],
    "resnext50_32x4d": [3, 4, 6, 3],
    "densenet121": [6, 12, 24, 16],
    "efficientnet_b0": [2, 2, 6, 5],
    "efficientnet_v2_s": [2, 4, 4, 15, 15],
    "mobilenet_v2": [2, 3, 7, 4],
    "mobilenet_v3_small": [2, 5, 3],
    "mnasnet0_5": [3, 3, 5, 5],
    "shufflenet_v2_x0_5": [4, 8, 4],
    "squeezenet1_0": [3, 4],
    "convnext_tiny": [3, 3, 9, 3],
    "swin_t": [2, 2, 6, 2],
    "maxvit_t": [2, 2, 5, 2],
    "vit_b_16": [12],
    "r3d_18": [2, 2, 2, 2],
    "mvit_v2_s": [2, 11, 2],
    "fcn_resnet50": [3, 4, 6, 3],
    "deeplabv3_resnet50": [3, 4, 6, 3],
}
SHAPES = {"r3d_18": (1, 3, 8, 112, 112), "mvit_v2_s": (1, 3, 16, 224, 224)}

TIMM = {
    "resnet26": [2, 2, 2, 2],
    "resnetv2_18": [2, 2, 2, 2],
    "res2net50_14w_8s": [3, 4, 6, 3],
    "regnety_002": [4, 7],
    "efficientnet_b0": [2, 2, 6, 5],
    "tf_efficientnetv2_b0": [2, 2, 8, 8],
    "mobilenetv3_small_050": [2, 5, 3],
    "ghostnet_050": [2, 2, 6, 5],
    "convnext_atto": [2, 2, 6, 2],
    "poolformer_s12": [2, 2, 6, 2],
    "pvt_v2_b0": [2, 2, 2, 2],
    "swin_tiny_patch4_window7_224": [2, 2, 6, 2],
    "maxvit_rmlp_pico_rw_256": [2, 2, 5, 2],
    "coat_lite_tiny": [2, 2, 2, 2],
    "twins_pcpvt_small": [3, 4, 6, 3],
    "twins_svt_small": None,
    "levit_128": [4, 4, 4],
    "hiera_tiny_224": [2, 7, 2],
    "nest_tiny": [2, 2, 8],
    "vit_tiny_patch16_224": [12],
    "mixer_s32_224": [8],
    "xcit_nano_12_p16_224": [12, 2],
    "eca_vovnet39b": [2, 2],
    "hrnet_w18_small": None,
}


def torchvision_model(name: str) -> nn.Module:
    options = {"weights_backbone": None} if name.startswith(("fcn", "deeplab")) else {}
    return torchvision.models.get_model(name, weights=None, **options)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    with torch.device("meta"):
        model = torchvision_model(name)
        stages = find_stages(model)
        check(model, stages)
        check_resolution(model, stages, torch.empty(SHAPES.get(name, (1, 3, 224, 224))))
    assert [len(stage) for stage in stages] == TORCHVISION[name]


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
        stages = find_stages(model)
        check(model, stages)
        check_resolution(model, stages, torch.empty(1, *model.default_cfg["input_size"]))
    if TIMM[name] is not None:
        assert [len(stage) for stage in stages] == TIMM[name]


# transformers: tiny configurations

SMALL = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 32,
    "vocab_size": 20,
}
TOKENS = {"input_ids": torch.arange(8)[None]}
IMAGES = {"pixel_values": torch.zeros(1, 3, 64, 64)}
STAGED = {"hidden_sizes": [8, 16, 24, 32], "depths": [2, 2, 3, 2]}
TRANSFORMERS = {
    "Bert": (SMALL, TOKENS, [3]),
    "Roberta": (SMALL, TOKENS, [3]),
    "DebertaV2": (SMALL, TOKENS, [3]),
    "GPT2": ({"n_embd": 16, "n_head": 2, "n_layer": 3, "vocab_size": 20}, TOKENS, [3]),
    "Llama": (SMALL, TOKENS, [3]),
    "T5": (
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 3, "vocab_size": 20},
        TOKENS | {"decoder_input_ids": torch.arange(4)[None]},
        [3, 3],
    ),
    "ViT": (SMALL | {"image_size": 64}, IMAGES, [3]),
    "Dinov2": (SMALL | {"image_size": 56, "patch_size": 14}, IMAGES, [3]),
    "ConvNext": (STAGED, IMAGES, [2, 2, 3, 2]),
    "ResNet": (STAGED | {"embedding_size": 8, "layer_type": "basic"}, IMAGES, [2, 2, 3, 2]),
    "RegNet": (STAGED | {"embedding_size": 8, "groups_width": 8}, IMAGES, [2, 2, 3, 2]),
    "PoolFormer": (STAGED, IMAGES, [2, 2, 3, 2]),
    "Pvt": (STAGED | {"image_size": 64, "num_attention_heads": [1, 2, 3, 4]}, IMAGES, [2, 2, 3, 2]),
    "Segformer": (STAGED | {"num_attention_heads": [1, 2, 3, 4]}, IMAGES, [2, 2, 3, 2]),
    "Swin": (
        {"image_size": 64, "embed_dim": 8, "depths": [2, 2, 3, 2], "num_heads": [1, 2, 4, 8]},
        {"pixel_values": torch.zeros(1, 3, 224, 224)},
        [2, 2, 3, 2],
    ),
    "MobileNetV2": ({"depth_multiplier": 0.25}, IMAGES, [2, 3, 7, 4]),
    "Wav2Vec2": (SMALL, {"input_values": torch.zeros(1, 2000)}, [3]),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name):
    transformers = pytest.importorskip("transformers")
    options, inputs, sizes = TRANSFORMERS[name]
    if name in ("PoolFormer", "Pvt", "Segformer"):
        options = options | {"num_encoder_blocks": 4}
    config = getattr(transformers, f"{name}Config")(**options)
    model = transformers.AutoModel.from_config(config)
    stages = find_stages(model)
    check(model, stages)
    check_resolution(model, stages, **inputs)
    assert [len(stage) for stage in stages] == sizes


# Those of this project, and what is not the block


@pytest.mark.parametrize(("depth", "blocks"), [(20, 3), (32, 5), (56, 9)])
def test_own_models(depth, blocks):
    stages = find_stages(ckasr.models.create(f"resnet{depth}", num_classes=10))
    assert stages == [[f"layer{s}.{b}" for b in range(blocks)] for s in (1, 2, 3)]


def vgg_stages(*depths: int) -> list[list[str]]:
    return [[f"features.{2 * s}.{k}" for k in range(depth)] for s, depth in enumerate(depths)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resmlp", [[f"blocks.{k}" for k in range(4)]]),
        ("lenet300", [["hidden.0", "hidden.1"]]),
        # Of width 64 and 128 no two layers are of one shape; the other widths make them blocks.
        ("vgg16", vgg_stages(2, 2, 3, 3, 3)),
        ("vgg19", vgg_stages(2, 2, 4, 4, 4)),
    ],
)
def test_own_models_without_convolutional_blocks(name, expected):
    with torch.device("meta"):
        model = ckasr.models.create(name, num_classes=10, input_shape=(3, 32, 32))
    assert find_stages(model) == expected


class Residual(nn.Module):
    def __init__(self, width: int = 4, stride: int = 1) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 3, stride), nn.Conv2d(width, width, 1)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)


class ConvNorm(nn.Module):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 4, 1), nn.BatchNorm2d(4)


class Pointwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(torch.relu(self.a(x)))


class Layer(nn.Module):
    """A linear layer with its activation, as in lenet300."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x))


class Holder(nn.Module):
    """A module with the given children."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class Other(Holder):
    pass


def attention(heads: int) -> nn.Module:
    """A layer of a transformer whose heads are a list of equal modules."""
    many = nn.ModuleList(Holder(q=nn.Linear(8, 4), k=nn.Linear(8, 4)) for _ in range(heads))
    return Holder(heads=many, out=nn.Linear(8, 8))


def layers(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(Layer(a, b) for a, b in pairwise(widths)))


def rows(*blocks: nn.Module) -> nn.ModuleList:
    return nn.ModuleList(blocks)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            lambda: Holder(s=rows(*(Other(r=rows(Linear(), Linear())) for _ in range(2)))),
            [["s.0.r.0", "s.0.r.1"], ["s.1.r.0", "s.1.r.1"]],
        ),
        (
            lambda: Holder(s=rows(*(Other(r=rows(Residual(), Residual())) for _ in range(2)))),
            [["s.0.r.0", "s.0.r.1"], ["s.1.r.0", "s.1.r.1"]],
        ),
        (lambda: Holder(layers=rows(attention(4), attention(4))), [["layers.0", "layers.1"]]),
        (
            lambda: Holder(
                one=rows(Other(a=Residual(8), inner=rows(Residual(), Residual()))),
                two=rows(*(Other(a=Residual(8), inner=rows(Residual(), Residual())) for _ in "ab")),
            ),
            [["two.0", "two.1"]],
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(3, 4, 1), *(Residual(stride=s) for s in (1, 1, 2, 1, 2)), nn.Flatten()
            ),
            [["1", "2"], ["3", "4"]],
        ),
        (lambda: Holder(b1=Residual(), b2=Residual()), [["b1", "b2"]]),
        (
            lambda: Holder(
                members=rows(
                    *(
                        Other(
                            fc=nn.Linear(40, 4),
                            x=rows(Residual(), Residual()),
                            y=rows(Residual(8), Residual(8)),
                        )
                        for _ in "ab"
                    )
                )
            ),
            [[f"members.{m}.{r}.{b}" for b in "01"] for m in "01" for r in "xy"],
        ),
    ],
    ids=[
        "stages of single layers",
        "stages",
        "heads",
        "inside of a lone block",
        "strides",
        "numbered children",
        "ensemble",
    ],
)
def test_the_block_is_neither_a_stage_nor_a_part_of_one(model, expected):
    model = model()
    assert find_stages(model) == expected
    check(model, expected)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: Holder(hidden=layers(8, 6, 4), fc=nn.Linear(4, 2)), [["hidden.0", "hidden.1"]]),
        (lambda: Holder(hidden=layers(8, 6, 6), fc=nn.Linear(6, 2)), [["hidden.0", "hidden.1"]]),
        (lambda: layers(4, 4, 4, 4), [["0", "1", "2"]]),
        (
            lambda: nn.Sequential(layers(8, 6, 5), layers(5, 4), nn.Linear(4, 2)),
            [["0.0", "0.1", "1.0"]],
        ),
        (
            lambda: Holder(a=layers(8, 6, 4), b=layers(7, 6, 5, 4)),
            [["a.0", "a.1"], ["b.0", "b.1", "b.2"]],
        ),
    ],
    ids=["narrowing", "equal widths", "equal layers", "nested", "two towers"],
)
def test_a_chain_of_linear_layers_is_one_stage_whatever_its_widths(model, expected):
    assert find_stages(model()) == expected


def test_the_layers_of_lenet300_have_a_term():
    """As in the committed records: two layers, so four ordered pairs, two of which are 1."""
    model = ckasr.models.create("lenet300", num_classes=10, input_shape=(1, 8, 8))
    with ckasr.CKASR(model, 1.0) as term:
        model(torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
        assert 2.5 < term().item() < 4


def test_stages_that_were_found_are_checked_also_if_they_are_passed():
    """Names that a caller chooses may have several resolutions; what was found may not."""

    class Halves(Holder):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks[1](nn.functional.avg_pool2d(self.blocks[0](x), 2))

    model = Halves(blocks=rows(Pointwise(), Pointwise()))
    found, x = find_stages(model), torch.randn(8, 4, 8, 8)
    for stages in (None, found):
        with ckasr.CKASR(model, stages=stages) as term:
            model(x)
            with pytest.raises(ValueError, match="several resolutions"):
                term()
    with ckasr.CKASR(model, stages=list(found)) as term:
        model(x)
        assert term() > 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
            "found in Sequential; it holds no comp",
        ),
        (
            lambda: Holder(hidden=layers(8, 6), fc=nn.Linear(6, 2)),
            r"found in Holder; it holds hidden \(Sequential\)\. Name the layers",
        ),
        (lambda: Holder(hidden=rows(Layer(8, 6), Layer(8, 4))), "it holds hidden"),
        (lambda: Holder(conv=nn.Conv2d(3, 8, 3), head=layers(8, 6, 4)), "it holds head"),
        (lambda: Holder(down=rows(*(Residual(stride=2) for _ in range(3)))), "it holds down"),
        (
            lambda: Holder(a=Other(branch=rows(ConvNorm(2), ConvNorm(4))), b=Residual()),
            r"it holds a \(Other\), b \(Residual\).*stages=\[\['a', 'b'\]\]",
        ),
        (
            lambda: Holder(n=rows(*(Other(r=rows(ConvNorm(), ConvNorm())) for _ in range(2)))),
            r"unclear whether 'n\.0' \(Other\) or 'n\.0\.r\.0' \(ConvNorm\) is the block",
        ),
    ],
    ids=[
        "no block",
        "one hidden layer",
        "linear layers side by side",
        "linear head of a convolution",
        "a resolution each",
        "branches",
        "block or stage",
    ],
)
def test_unclear_stages_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        find_stages(model())


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "vgg11_bn", "alexnet"])
def test_networks_without_repeated_blocks_are_refused(name):
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, **options)
    with pytest.raises(ValueError, match="no stages of residual blocks found"):
        find_stages(model)
