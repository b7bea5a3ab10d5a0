"""L0: every weight, or every filter, has a gate that learns whether to be open.

Louizos, Welling & Kingma 2018, "Learning sparse neural networks through L0 regularization" (arXiv
1712.01312): hard concrete gates (equations 10 and 11), the expected number of open gates as penalty
(equation 12), and the gate at test time (equation 13).

With a sparsity asked for, the penalty's weight is a multiplier that grows while too many gates are
open and falls back to 0 once few enough are (dual ascent with restarts, after Gallego-Posada et al.
2022, "Controlled sparsity via constrained optimization", arXiv 2208.04425). It grows the faster the
shorter the training is, so that a short one closes its gates as well. With sparsity 0 it is the
fixed ``strength`` of the paper, and the sparsity is whatever comes out.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ckasr.data import keyed_generator

from .finetune import Finetuned
from .method import Context, Phase

TEMPERATURE = 2 / 3
LOW, HIGH = -0.1, 1.1
LIMIT = math.log(100)
"""|log alpha| is kept below it, as beyond it no gradient is left to come back by."""


def open_probability(log_alpha: Tensor) -> Tensor:
    """P(z != 0) = sigmoid(log alpha - T ln(-low / high)): equation 12."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def noisy_gate(log_alpha: Tensor) -> Tensor:
    """A draw of z in [0, 1], from torch's global generator: equations 10 and 11."""
    u = torch.rand_like(log_alpha).clamp_(1e-6, 1 - 1e-6)
    s = torch.sigmoid((torch.logit(u) + log_alpha) / TEMPERATURE)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def test_gate(log_alpha: Tensor) -> Tensor:
    """z without noise, and without temperature: equation 13."""
    return (torch.sigmoid(log_alpha) * (HIGH - LOW) + LOW).clamp(0, 1)


class _Gated:
    """Mixed into a layer: its weight is multiplied by its gate in every forward pass."""

    def gated_weight(self) -> Tensor:
        gate = noisy_gate if self.training else test_gate
        return self.weight * gate(self.log_alpha)


class _GatedLinear(_Gated, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.gated_weight(), self.bias)


class _GatedConv1d(_Gated, nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.gated_weight(), self.bias)


class _GatedConv2d(_Gated, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.gated_weight(), self.bias)


class _GatedConv3d(_Gated, nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.gated_weight(), self.bias)


_GATED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _GatedLinear,
    nn.Conv1d: _GatedConv1d,
    nn.Conv2d: _GatedConv2d,
    nn.Conv3d: _GatedConv3d,
}


@dataclass
class L0(Finetuned):
    """unit: what a gate opens, ``weight`` or ``filter``; the classifier's rows have no gate.

    strength: lambda of equation 2, where sparsity 0 leaves the outcome to it; the loss has
    lambda / N times the expected number of weights, N being the number of training images.
    droprate: probability that a gate starts closed, but for the stretch of the hard concrete.
    rate: the gates' learning rate is the recipe's times this times sqrt(number of gates), as the
    gradient of one gate falls with that root.
    dual_rate, dual_per: how fast the penalty's weight grows while too many gates are open.
    ``dual_per="phase"``: by ``dual_rate * sqrt(number of gates)`` over a whole phase, as long as
    twice the weights asked for or more are open, and in proportion less where fewer are. When few
    enough are open, the gates also lose their momentum, so that no more of them close.
    ``dual_per="step"``: by ``dual_rate`` times the density too much in every step, whatever the
    length of the phase, so that a short training ends with its gates open.

    The share of weights whose gate is still open when training ends, before the rest is cut, is in
    the record (``measured``). Warns where that is over 10 % more than was asked for: then the cut
    has pruned what training did not.
    """

    name: ClassVar[str] = "l0"
    summary: ClassVar[str] = (
        "weights or filters, by gates that train with them (Louizos et al. 2018)"
    )

    unit: str = "weight"
    strength: float = 1.0
    droprate: float = 0.3
    rate: float = 1.0
    dual_rate: float = 8.0
    dual_per: str = "phase"
    finetune: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = {
            "unit": (self.unit in ("weight", "filter"), "weight or filter"),
            "strength": (self.strength >= 0, "at least 0"),
            "droprate": (0 < self.droprate < 1, "in (0, 1)"),
            "rate": (self.rate > 0, "positive"),
            "dual_rate": (0 < self.dual_rate < math.inf, "positive"),
            "dual_per": (self.dual_per in ("phase", "step"), "phase or step"),
        }
        for option, (fine, rule) in checks.items():
            if not fine:
                raise ValueError(
                    f"option {option}={getattr(self, option)!r} of method 'l0' must be {rule}"
                )
        self._gated: dict[str, nn.Module] = {}
        self._weights = 0
        self._multiplier = torch.zeros(())
        self._open_before_cut: float | None = None

    def phases(self, epochs: int, context: Context) -> list[Phase]:
        return [Phase("train", epochs), *self.finetuning(epochs)]

    def prepare(self, context: Context) -> None:
        self._add_gates(context)
        self._multiplier = self._start_of_multiplier(context)
        if self._budget(context) < 0:
            raise ValueError(
                f"sparsity {context.sparsity} leaves {context.kept} weights, fewer than the "
                f"classifier's {context.kept - self._budget(context)}, which have no gate: ask for "
                "less, or for unit=weight"
            )

    def parameter_groups(self, context: Context) -> list[dict[str, Any]]:
        gates = [layer.log_alpha for layer in self._gated.values()]
        if not gates:
            return super().parameter_groups(context)
        ids = {id(gate) for gate in gates}
        rest = [p for p in context.model.parameters() if id(p) not in ids]
        factor = self.rate * math.sqrt(self._gates())
        return [
            {"params": rest},
            # Decay would pull every gate towards half open.
            {"params": gates, "weight_decay": 0.0, "rate_factor": factor},
        ]

    def gain(self, excess: Tensor, context: Context) -> Tensor:
        """What the multiplier gains in a step that ends with so much density too much."""
        if self.dual_per == "step":
            return self.dual_rate * excess
        whole = self.dual_rate * math.sqrt(self._gates())
        return whole / context.steps * (excess / context.density).clamp(max=1)

    def penalty(self, context: Context) -> Tensor | None:
        if not self._gated:
            return None
        return self._multiplier * self.expected_density()

    def expected_density(self) -> Tensor:
        """Expected share of weights whose gate is open, of all weights."""
        return self._density(open_probability)

    def open_density(self) -> Tensor:
        """Share of weights whose gate is open at test time, of all weights."""
        return self._density(lambda a: (test_gate(a) > 0).float())

    def after_step(self, context: Context) -> None:
        if not self._gated:
            return
        with torch.no_grad():
            for layer in self._gated.values():
                layer.log_alpha.clamp_(-LIMIT, LIMIT)
            if context.sparsity:
                excess = self.open_density() - context.density
                grown = self._multiplier + self.gain(excess, context)
                # In place: a captured step goes on reading this tensor.
                self._multiplier.copy_(torch.where(excess > 0, grown, torch.zeros_like(grown)))
                if self.dual_per == "phase":
                    # Else gates go on closing by their momentum when enough are closed.
                    for layer in self._gated.values():
                        state = context.optimizer.state[layer.log_alpha]
                        if (buffer := state.get("momentum_buffer")) is not None:
                            buffer.mul_(excess > 0)

    @torch.no_grad()
    def end_phase(self, phase: Phase, context: Context) -> None:
        """Fold the test-time gates into the weights; closed ones are masked."""
        if not self._gated:
            return
        self._open_before_cut = self.open_density().item()
        if context.sparsity and self._open_before_cut > 1.1 * context.density:
            warnings.warn(
                f"method 'l0': {self._open_before_cut:.1%} of the weights still had an open gate "
                f"when training ended, and {context.density:.1%} were asked for: the rest is cut "
                "now, by log alpha, which training has not prepared; train longer, or raise "
                "option dual_rate",
                RuntimeWarning,
                stacklevel=2,
            )
        masks = self._open(context)
        for layer in self._gated.values():
            layer.weight.mul_(test_gate(layer.log_alpha))
        self._remove_gates()
        context.masks.update(masks)
        context.masks.apply()

    def measured(self) -> dict[str, Any]:
        """open_before_cut: share of weights whose gate was open when training ended."""
        return {"open_before_cut": self._open_before_cut}

    def state(self) -> dict[str, Any]:
        return {
            "gated": bool(self._gated),
            "multiplier": self._multiplier,
            "open_before_cut": self._open_before_cut,
        }

    def restore(self, state: dict[str, Any], context: Context) -> None:
        self._multiplier = state["multiplier"]
        self._open_before_cut = state.get("open_before_cut")
        if state["gated"]:
            self._add_gates(context)

    def _start_of_multiplier(self, context: Context) -> Tensor:
        device = next(context.model.parameters()).device
        if context.sparsity:
            return torch.zeros((), device=device)
        images = sum(len(y) for _, y in context.samples())
        return torch.tensor(self.strength * self._weights / images, device=device)

    def _add_gates(self, context: Context) -> None:
        shapes = context.shapes()
        self._weights = sum(math.prod(shape) for shape in shapes.values())
        names = list(shapes)
        if self.unit == "filter":
            names = names[:-1]  # a class cannot be pruned; the classifier is the last layer
        mean = math.log(1 - self.droprate) - math.log(self.droprate)
        for name in names:
            layer = context.model.get_submodule(name.removesuffix(".weight"))
            if type(layer) not in _GATED:
                raise ValueError(
                    f"layer {name!r} is a {type(layer).__name__}: method 'l0' has gates for plain "
                    f"{', '.join(kind.__name__ for kind in _GATED)} only"
                )
            weight = layer.weight
            like = weight if self.unit == "weight" else weight.detach().flatten(1)[:, :1]
            if self.unit == "filter":
                like = like.reshape(-1, *[1] * (weight.ndim - 1))
            noise = torch.randn(like.shape, generator=keyed_generator("gates", context.seed, name))
            log_alpha = torch.empty_like(like, requires_grad=False).copy_(mean + 0.01 * noise)
            layer.log_alpha = nn.Parameter(log_alpha)
            layer.__class__ = _GATED[type(layer)]
            self._gated[name] = layer

    def _remove_gates(self) -> None:
        plain = {gated: kind for kind, gated in _GATED.items()}
        for layer in self._gated.values():
            del layer.log_alpha
            layer.__class__ = plain[type(layer)]
        self._gated = {}

    def _open(self, context: Context) -> dict[str, Tensor]:
        """Masks of the weights whose test-time gate is open, at most as many as asked for.

        Too many: those of lowest log alpha close. The rest of a filter that does not fit whole
        stays pruned.
        """
        masks = {name: torch.ones_like(mask) for name, mask in context.masks.items()}
        layers = self._gated
        alphas = torch.cat([layer.log_alpha.flatten() for layer in layers.values()])
        chosen = test_gate(alphas) > 0
        if context.sparsity:
            sizes = torch.cat(
                [
                    torch.full_like(layer.log_alpha.flatten(), self._size(layer), dtype=torch.int64)
                    for layer in layers.values()
                ]
            )
            order = torch.argsort(alphas, descending=True, stable=True)
            fits = sizes[order].cumsum(0) <= self._budget(context)
            chosen[order[~fits]] = False
        parts = chosen.split([layer.log_alpha.numel() for layer in layers.values()])
        for (name, layer), part in zip(layers.items(), parts, strict=True):
            masks[name] = part.reshape(layer.log_alpha.shape).expand(layer.weight.shape)
        return masks

    def _density(self, share: Callable[[Tensor], Tensor]) -> Tensor:
        """Share of all weights that are open, given the share of a gate; no gate: open."""
        opened = [
            share(layer.log_alpha).sum() * self._size(layer) for layer in self._gated.values()
        ]
        return (torch.stack(opened).sum() + self._ungated()) / self._weights

    def _gates(self) -> int:
        return sum(layer.log_alpha.numel() for layer in self._gated.values())

    def _size(self, layer: nn.Module) -> int:
        """Weights behind one gate."""
        return layer.weight.numel() // layer.log_alpha.numel()

    def _ungated(self) -> int:
        return self._weights - sum(layer.weight.numel() for layer in self._gated.values())

    def _budget(self, context: Context) -> int:
        """Weights behind gates that may stay open."""
        return context.kept - self._ungated()
