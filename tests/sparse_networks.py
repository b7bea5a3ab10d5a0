"""Small networks and masks, on which the report and every way of inference are tested."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ckasr.sparsity import Masks, layer_densities, prunable, random_masks

MODELS = {
    "resnet20": (3, 8, 8),
    "resnet20_a": (3, 16, 16),
    "lenet300": (1, 16, 16),
    "resmlp": (1, 8, 8),
}
"""One model of each family of this project, with an input shape."""


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


def exact_masks(model: nn.Module, sparsity: float, distribution: str = "erk") -> dict[str, Tensor]:
    shapes = shapes_of(model)
    return random_masks(shapes, layer_densities(shapes, 1 - sparsity, distribution), 0)


def masked(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """The reference: a copy in eval mode whose pruned weights are zero."""
    copied = copy.deepcopy(model).eval()
    Masks(copied, masks).apply()
    return copied


def as_trained(model: nn.Module, masks: dict[str, Tensor], input_shape) -> nn.Module:
    """In place: random shifts and scales, some negative, and statistics of the masked network."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
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


class Written(nn.Module):
    """Layers by name, and a forward pass of them and the input."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def linears(*widths: int, bias: bool = True) -> dict[str, nn.Module]:
    """Layers ``one``, ``two``, ``fc`` from 4 inputs to 3 outputs, or of the widths given."""
    a, b, c, d = widths or (5, 5, 6, 6)
    return {
        "one": nn.Linear(4, a, bias=bias),
        "two": nn.Linear(b, c, bias=bias),
        "fc": nn.Linear(d, 3, bias=bias),
    }


# With the same constant at each place, what multiplies it would be lost in the softmax.
PLACES = torch.randn(3, 12, generator=torch.Generator().manual_seed(0)).double()


def own_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5)


def attend(m: Any, x: Tensor) -> Tensor:
    q, k, v = (m.qkv(x) + PLACES).reshape(-1, 3, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind()
    weights = ((q @ k.transpose(-2, -1)) * 2**-0.5).softmax(-1)
    x = x + m.out((weights @ v).transpose(1, 2).flatten(2))
    return m.fc(torch.tanh(x).mean(1))


def attend_causally(m: Any, x: Tensor) -> Tensor:
    q, k, v = (m.qkv(x) + PLACES).chunk(3, dim=-1)
    x = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return m.fc(m.out(x)[:, 0])  # the first token sees itself alone


def attention() -> dict[str, nn.Module]:
    return {"qkv": nn.Linear(4, 12), "out": nn.Linear(4, 4), "fc": nn.Linear(4, 3)}


def squeeze_excite(m: Any, x: Tensor) -> Tensor:
    x = functional.silu(m.norm(m.conv(x)))
    x = x * torch.sigmoid(m.up(functional.softplus(m.down(x.mean((2, 3))))))[:, :, None, None]
    return m.fc(torch.sin(m.last(x)).flatten(1))


def excited(norm: nn.Module) -> nn.Module:
    return Written(
        squeeze_excite,
        conv=nn.Conv2d(2, 4, 2, bias=False),
        norm=norm,
        down=nn.Linear(4, 2),
        up=nn.Linear(2, 4),
        last=nn.Conv2d(4, 4, 2, padding=1, groups=2),
        fc=nn.Linear(4 * 16, 3),
    )


def tied() -> nn.Module:
    model = Written(
        lambda m, x: m.fc(torch.tanh(m.two(torch.tanh(m.one(x))))),
        one=nn.Linear(6, 6), two=nn.Linear(6, 6), fc=nn.Linear(6, 2),
    )  # fmt: skip
    model.two.weight = model.one.weight
    return model


Zoo = dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]

SMOOTH: Zoo = {
    "tanh": (lambda: Written(lambda m, x: m.fc(m.two(m.one(x).tanh()).tanh_()), **linears()), (4,)),
    "own layer norm": (
        lambda: Written(lambda m, x: m.fc(torch.tanh(m.two(own_norm(m.one(x))))), **linears()),
        (4,),
    ),
    "layer norm": (
        lambda: Written(
            lambda m, x: m.fc(torch.tanh(m.two(functional.layer_norm(m.one(x), (5,))))), **linears()
        ),
        (4,),
    ),
    "root mean square norm without biases": (
        lambda: Written(
            lambda m, x: m.fc(functional.rms_norm(m.two(torch.sin(m.one(x))), (6,), eps=0.1)),
            **linears(bias=False),
        ),
        (4,),
    ),
    "difference and quotient": (
        lambda: Written(
            lambda m, x: m.fc(torch.exp(-m.two(x)) / (1 + m.one(x).square()) - 0.5 * m.one(x)),
            **linears(6, 4, 6, 6),
        ),
        (4,),
    ),
    "gate": (
        lambda: Written(
            lambda m, x: m.fc(functional.silu(m.one(x)) * m.two(x)),
            **linears(6, 4, 6, 6, bias=False),
        ),
        (4,),
    ),
    "gated linear unit": (
        lambda: Written(
            lambda m, x: m.fc(functional.glu(m.two(m.one(x)), -1)), **linears(5, 5, 6, 3)
        ),
        (4,),
    ),
    "soft attention by hand": (lambda: Written(attend, **attention()), (3, 4)),
    "causal attention": (lambda: Written(attend_causally, **attention()), (3, 4)),
    "squeeze and excite": (lambda: excited(nn.BatchNorm2d(4)), (2, 4, 4)),
    "squeeze and excite, constants zero": (lambda: excited(nn.Identity()), (2, 4, 4)),
}
"""Networks in which the derivatives at random weights show every path."""


def joined(m: Any, x: Tensor) -> Tensor:
    x = m.conv(x)
    x = x + torch.relu(m.bn(x))
    return m.fc(torch.relu(m.one(x) + m.many(x)).mean((2, 3)))


def picked(m: Any, x: Tensor) -> Tensor:
    few = torch.relu(m.two(torch.relu(m.conv(x))[:, 1:3])).mean((2, 3))
    return m.fc(few) + m.columns(torch.relu(m.other(x)).mean((1, 2)))


def reread(m: Any, x: Tensor) -> Tensor:
    hidden = torch.relu(m.bn(m.stem(x)) @ m.stem.weight @ m.stem.weight.T)
    hidden = functional.linear(torch.relu(m.up(hidden)), m.up.weight.T, m.down.bias)
    return m.fc(torch.relu(hidden)) + m.down.weight.sum() + m.up.bias[0]


def over_tokens(m: Any, x: Tensor) -> Tensor:
    x = m.bn(m.embed(x))
    x = x + m.attention(x, x, x)[0]
    return (x + m.down(torch.relu(m.up(m.norm(x))))).mean(1)


AWKWARD: Zoo = {
    "a layer used twice, with a norm after one use": (
        lambda: Written(
            lambda m, x: m.fc(torch.relu(m.conv(torch.relu(m.bn(m.conv(x))))).mean((2, 3))),
            conv=nn.Conv2d(3, 3, 3, padding=1), bn=nn.BatchNorm2d(3), fc=nn.Linear(3, 2),
        ),
        (3, 5, 5),
    ),
    "a layer that a norm and a sum read, one channel added to many": (
        lambda: Written(
            joined, conv=nn.Conv2d(2, 4, 3, padding=1), bn=nn.BatchNorm2d(4),
            one=nn.Conv2d(4, 1, 1), many=nn.Conv2d(4, 3, 1), fc=nn.Linear(3, 2),
        ),
        (2, 5, 5),
    ),
    "a slice of channels, a mean over as many columns": (
        lambda: Written(
            picked, conv=nn.Conv2d(2, 4, 3, padding=1), two=nn.Conv2d(2, 3, 1),
            other=nn.Conv2d(2, 4, 3, padding=1), fc=nn.Linear(3, 2), columns=nn.Linear(4, 2),
        ),
        (2, 5, 4),
    ),
    "parameters that are read beside their layers": (
        lambda: Written(
            reread, stem=nn.Linear(4, 9, bias=False), bn=nn.BatchNorm1d(9), up=nn.Linear(9, 8),
            down=nn.Linear(8, 9), fc=nn.Linear(9, 2),
        ),
        (4,),
    ),
    "a layer called by itself and within another": (
        lambda: Written(
            lambda m, x: m.fc(m.encoder(x) + m.out(torch.relu(m.encoder.linear1(x)))).mean(1),
            encoder=nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
            out=nn.Linear(8, 4), fc=nn.Linear(4, 2),
        ),
        (3, 4),
    ),
    "one weight in two layers": (tied, (6,)),
    "attention over tokens": (
        lambda: Written(
            over_tokens, embed=nn.Linear(5, 6), bn=nn.BatchNorm1d(6), norm=nn.LayerNorm(6),
            attention=nn.MultiheadAttention(6, 2, batch_first=True),
            up=nn.Linear(6, 9), down=nn.Linear(9, 6),
        ),
        (6, 5),
    ),
    "linear over the columns": (
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
"""Networks with parts that cannot be folded, narrowed or followed."""
