"""L0: every weight or every filter has a gate, and the training learns which gates are open.

Louizos, Welling & Kingma 2018, "Learning sparse neural networks through L0 regularization" (arXiv
1712.01312): hard concrete gates (equations 10 and 11), the expected number of open gates as a
penalty (equation 12), and the gate at test time (equation 13).

If the sparsity of the run is not 0, the penalty is multiplied by a variable. This multiplier grows
while too many gates are open, and is reset to 0 as soon as the sparsity is reached (dual ascent
with restarts, after Gallego-Posada et al. 2022, "Controlled sparsity via constrained optimization",
arXiv 2208.04425). It grows faster in a shorter training, so that a short training also reaches the
sparsity. If the sparsity of the run is 0, the multiplier is the constant ``strength`` of the paper,
and the sparsity is a result of the training.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ckasr.choices import one_of
from ckasr.data import keyed_generator
from ckasr.sparsity.layers import weight_owners

from .finetune import Finetuned
from .method import Context, Phase, TrainingState

Unit = Literal["weight", "filter"]
DualPer = Literal["phase", "step"]

TEMPERATURE = 2 / 3
"""Temperature of the gates, beta in the paper."""
LOW, HIGH = -0.1, 1.1
"""Ends of the interval to which a gate is stretched before it is clamped, gamma and zeta in the
paper."""
LIMIT = math.log(100)
"""Bound of ``|log alpha|``. Beyond it, the gradient is too small to change the gate again."""


def open_probability(log_alpha: Tensor) -> Tensor:
    """Return P(z != 0) = sigmoid(log alpha - beta ln(-gamma / zeta)) (equation 12)."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def noisy_gate(log_alpha: Tensor) -> Tensor:
    """Sample a hard concrete gate z in [0, 1] (equations 10 and 11).

    The noise is drawn from torch's global random generator.
    """
    u = torch.rand_like(log_alpha).clamp_(1e-6, 1 - 1e-6)
    s = torch.sigmoid((torch.logit(u) + log_alpha) / TEMPERATURE)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def test_gate(log_alpha: Tensor) -> Tensor:
    """Return the gate z in [0, 1] at test time, without noise and temperature (equation 13)."""
    return (torch.sigmoid(log_alpha) * (HIGH - LOW) + LOW).clamp(0, 1)


class _GatedLayer:
    """Mixin for a layer that multiplies its weight by hard concrete gates in each forward pass."""

    training: bool
    weight: Tensor
    log_alpha: nn.Parameter

    def gated_weight(self) -> Tensor:
        gate = noisy_gate if self.training else test_gate
        return self.weight * gate(self.log_alpha)


class _GatedLinear(_GatedLayer, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.gated_weight(), self.bias)


class _GatedConv1d(_GatedLayer, nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.gated_weight(), self.bias)


class _GatedConv2d(_GatedLayer, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.gated_weight(), self.bias)


class _GatedConv3d(_GatedLayer, nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.gated_weight(), self.bias)


_GATED_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _GatedLinear,
    nn.Conv1d: _GatedConv1d,
    nn.Conv2d: _GatedConv2d,
    nn.Conv3d: _GatedConv3d,
}


@dataclass
class L0(Finetuned):
    """Trains hard concrete gates, then prunes the weights whose gates are closed.

    If too many gates are open when the training ends, those with the lowest log alpha are closed.
    The record contains the share of weights with an open gate before this (``open_before_cut``). If
    it is more than 1.1 times the density of the run, a RuntimeWarning is issued.

    Args:
        unit: part of the network that has one gate: ``weight`` or ``filter``. With ``filter``, the
            classifier has no gates.
        strength: lambda of equation 2, used if the sparsity of the run is 0. The penalty is
            lambda / N times the expected number of weights, where N is the number of training
            samples.
        droprate: initial drop probability of a gate, before hard-concrete stretching.
        rate: factor of the learning rate of the gates. This learning rate is the product of
            ``rate``, the learning rate of the recipe and sqrt(number of gates), because the
            gradient of a single gate is proportional to 1 / sqrt(number of gates).
        dual_rate: growth rate of the multiplier while too many gates are open.
        dual_per: unit of time of ``dual_rate``. ``phase``: the multiplier grows by
            ``dual_rate * sqrt(number of gates)`` over a whole phase if at least twice the allowed
            number of weights are open, and proportionally less if fewer are open. When the sparsity
            is reached, the momentum of the gates is set to zero, so that they stop closing.
            ``step``: the multiplier grows by ``dual_rate`` times the excess density in every step.
            A short training can then end with most of its gates open.
        finetune, finetune_rate: see ``Finetuned``.
    """

    name: ClassVar[str] = "l0"
    summary: ClassVar[str] = "prunes weights or filters by trained gates (Louizos et al. 2018)"

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
            "unit": one_of(self.unit, Unit),
            "strength": (self.strength >= 0, "at least 0"),
            "droprate": (0 < self.droprate < 1, "in (0, 1)"),
            "rate": (self.rate > 0, "positive"),
            "dual_rate": (0 < self.dual_rate < math.inf, "positive"),
            "dual_per": one_of(self.dual_per, DualPer),
        }
        for option, (fine, rule) in checks.items():
            if not fine:
                raise ValueError(
                    f"option {option}={getattr(self, option)!r} of method 'l0' must be {rule}"
                )
        # The type is Any, because a layer has the attributes of its own class and of _GatedLayer.
        self._gated_layers: dict[str, Any] = {}
        self._weight_count = 0
        self._multiplier = torch.zeros(())
        self._final_open_density: float | None = None

    def phases(self, epochs: int, context: Context) -> list[Phase]:
        return [Phase("train", epochs), *self.finetuning(epochs)]

    def prepare(self, context: Context) -> Mapping[str, Tensor]:
        self._add_gates(context)
        self._multiplier = self._initial_multiplier(context)
        if self._gated_weights_to_keep(context) < 0:
            raise ValueError(
                f"sparsity {context.sparsity} leaves {context.kept} weights, fewer than the "
                f"classifier's {self._ungated_weight_count()}, which have no gate: choose "
                "a lower sparsity, or unit=weight"
            )
        return super().prepare(context)

    def parameter_groups(self, context: Context) -> list[dict[str, Any]]:
        gates = [layer.log_alpha for layer in self._gated_layers.values()]
        if not gates:
            return super().parameter_groups(context)
        ids = {id(gate) for gate in gates}
        rest = [p for p in context.model.parameters() if id(p) not in ids]
        factor = self.rate * math.sqrt(self._gate_count())
        return [
            {"params": rest},
            # Weight decay would move every log alpha towards 0, which is a half-open gate.
            {"params": gates, "weight_decay": 0.0, "rate_factor": factor},
        ]

    def gain(self, excess: Tensor, density: float, steps: int) -> Tensor:
        """Return the increase of the multiplier after a step.

        Args:
            excess: share of weights with an open gate minus the density of the run, a scalar.
            density: density of the run.
            steps: number of steps of the phase.
        """
        if self.dual_per == "step":
            return self.dual_rate * excess
        whole = self.dual_rate * math.sqrt(self._gate_count())
        return whole / steps * (excess / density).clamp(max=1)

    def penalty(self, context: Context, state: TrainingState) -> Tensor | None:
        if not self._gated_layers:
            return None
        return self._multiplier * self.expected_density()

    def expected_density(self) -> Tensor:
        """Return the expected number of weights with an open gate in training (equation 12).

        It is divided by the number of weights: a scalar in [0, 1].
        """
        return self._mean_over_weights(open_probability)

    def open_density(self) -> Tensor:
        """Return the share of weights with an open gate at test time, a scalar."""
        return self._mean_over_weights(lambda a: (test_gate(a) > 0).float())

    def after_step(self, context: Context, state: TrainingState) -> None:
        if not self._gated_layers:
            return
        with torch.no_grad():
            for layer in self._gated_layers.values():
                layer.log_alpha.clamp_(-LIMIT, LIMIT)
            if context.sparsity:
                excess = self.open_density() - context.density
                grown = self._multiplier + self.gain(excess, context.density, state.steps)
                self._multiplier.copy_(torch.where(excess > 0, grown, torch.zeros_like(grown)))
                if self.dual_per == "phase":
                    # Otherwise the momentum would close more gates after the sparsity is reached.
                    for layer in self._gated_layers.values():
                        moments = state.optimizer.state[layer.log_alpha]
                        if (buffer := moments.get("momentum_buffer")) is not None:
                            buffer.mul_(excess > 0)

    @torch.no_grad()
    def end_phase(self, context: Context, state: TrainingState) -> None:
        """Multiply the weights by their test-time gates, and prune those with a closed gate."""
        if not self._gated_layers:
            return
        self._final_open_density = density = self.open_density().item()
        if context.sparsity and density > 1.1 * context.density:
            warnings.warn(
                f"method 'l0': {density:.1%} of the weights still had an open gate "
                f"when training ended, but the density of the run is {context.density:.1%}: the "
                "gates with the lowest log alpha are closed now, without training; train longer, "
                "or raise option dual_rate",
                RuntimeWarning,
                stacklevel=2,
            )
        masks = self._masks_of_open_gates(context, state.masks)
        for layer in self._gated_layers.values():
            layer.weight.mul_(test_gate(layer.log_alpha))
        self._remove_gates()
        state.masks.update(masks)
        state.masks.apply()

    def measured(self) -> dict[str, Any]:
        """Return ``open_before_cut``, the share of weights with an open gate after training."""
        return {"open_before_cut": self._final_open_density}

    def state(self) -> dict[str, Any]:
        return {
            "gated": bool(self._gated_layers),
            "multiplier": self._multiplier,
            "open_before_cut": self._final_open_density,
        }

    def restore(self, state: dict[str, Any], context: Context) -> None:
        self._multiplier = state["multiplier"]
        self._final_open_density = state.get("open_before_cut")
        if state["gated"]:
            self._add_gates(context)

    def _initial_multiplier(self, context: Context) -> Tensor:
        device = next(context.model.parameters()).device
        if context.sparsity:
            return torch.zeros((), device=device)
        samples = sum(len(y) for _, y in context.samples())
        return torch.tensor(self.strength * self._weight_count / samples, device=device)

    def _add_gates(self, context: Context) -> None:
        shapes = context.shapes()
        self._weight_count = sum(math.prod(shape) for shape in shapes.values())
        owners = list(weight_owners(context.model).values())
        if self.unit == "filter":
            owners = owners[:-1]  # the last layer is the classifier, whose rows must not be pruned
        mean = math.log(1 - self.droprate) - math.log(self.droprate)
        for owner in owners:
            name = owner.name
            layer: Any = owner.module
            if type(layer) not in _GATED_CLASSES:
                raise ValueError(
                    f"layer {name!r} is a {type(layer).__name__}: method 'l0' has gates for plain "
                    f"{', '.join(kind.__name__ for kind in _GATED_CLASSES)} only"
                )
            weight = layer.weight
            like = weight if self.unit == "weight" else weight.detach().flatten(1)[:, :1]
            if self.unit == "filter":
                like = like.reshape(-1, *[1] * (weight.ndim - 1))
            noise = torch.randn(like.shape, generator=keyed_generator("gates", context.seed, name))
            log_alpha = torch.empty_like(like, requires_grad=False).copy_(mean + 0.01 * noise)
            layer.log_alpha = nn.Parameter(log_alpha)
            layer.__class__ = _GATED_CLASSES[type(layer)]
            self._gated_layers[name] = layer

    def _remove_gates(self) -> None:
        plain = {gated: kind for kind, gated in _GATED_CLASSES.items()}
        for layer in self._gated_layers.values():
            del layer.log_alpha
            layer.__class__ = plain[type(layer)]
        self._gated_layers = {}

    def _masks_of_open_gates(
        self, context: Context, current: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return masks of the weights whose test-time gate is open.

        If more weights are open than the sparsity allows, the gates with the lowest log alpha are
        closed. A filter is closed if it would exceed the allowed number of weights.
        """
        masks = {name: torch.ones_like(mask) for name, mask in current.items()}
        layers = self._gated_layers
        alphas = torch.cat([layer.log_alpha.flatten() for layer in layers.values()])
        chosen = test_gate(alphas) > 0
        if context.sparsity:
            sizes = torch.cat(
                [
                    torch.full_like(
                        layer.log_alpha.flatten(), self._weights_per_gate(layer), dtype=torch.int64
                    )
                    for layer in layers.values()
                ]
            )
            order = torch.argsort(alphas, descending=True, stable=True)
            within = sizes[order].cumsum(0) <= self._gated_weights_to_keep(context)
            chosen[order[~within]] = False
        parts = chosen.split([layer.log_alpha.numel() for layer in layers.values()])
        for (name, layer), part in zip(layers.items(), parts, strict=True):
            masks[name] = part.reshape(layer.log_alpha.shape).expand(layer.weight.shape)
        return masks

    def _mean_over_weights(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the mean of a value over all weights. A weight without a gate counts as 1.

        Args:
            value: function of log alpha that returns one value per gate.
        """
        layers = self._gated_layers.values()
        sums = [value(layer.log_alpha).sum() * self._weights_per_gate(layer) for layer in layers]
        return (torch.stack(sums).sum() + self._ungated_weight_count()) / self._weight_count

    def _gate_count(self) -> int:
        return sum(layer.log_alpha.numel() for layer in self._gated_layers.values())

    def _weights_per_gate(self, layer: Any) -> int:
        """Return the number of weights that share one gate of the layer."""
        return layer.weight.numel() // layer.log_alpha.numel()

    def _ungated_weight_count(self) -> int:
        gated = sum(layer.weight.numel() for layer in self._gated_layers.values())
        return self._weight_count - gated

    def _gated_weights_to_keep(self, context: Context) -> int:
        """Return the number of weights with gates that may stay open."""
        return context.kept - self._ungated_weight_count()
