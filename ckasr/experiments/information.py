"""Bounds of the information that the noisy layers of a network hold about its input.

The input X is uniform on n given samples. A layer computes a signal S from X and the noise of
earlier layers, and outputs T = S + std * N with standard normal N (``ckasr.models.noisy_mlp``).
Then I(X; T) is finite, and both bounds below hold for every network. All values are in nats.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ckasr import devices
from ckasr.data import keyed_generator, load
from ckasr.models.noisy_mlp import GaussianNoise
from ckasr.storage import write_text
from ckasr.training import accuracy

from .build import build_engine
from .progress import title
from .provenance import environment
from .settings import Settings

SAMPLES = 1000
"""Largest number of training samples on which the input is uniform."""
CRITIC_PASSES = 16
"""Passes with independent noise from which the critic of the lower bound is made."""
PASSES = 8
"""Passes with independent noise over which the lower bound is averaged."""


@dataclass(frozen=True)
class Bounds:
    """Bounds of the mutual information between the input and the output of one layer, in nats.

    Args:
        layer: name of the layer.
        lower: lower bound, estimated by a mean over noise; 0 if the estimate is negative.
        upper: upper bound.
    """

    layer: str
    lower: float
    upper: float


@torch.no_grad()
def information(model: nn.Module, inputs: Tensor, seed: int = 0) -> list[Bounds]:
    """Return the bounds for each noisy layer, in the order of the forward pass.

    The lower bound is that of Barber and Agakov (2003, eq. 3): for any conditional distribution
    ``q(i | t)`` of the index i of the sample, I(X; T) >= log n + E[log q(i | T)]. Here ``q`` is the
    posterior of Gaussians with one mean per sample and a common covariance, estimated from passes
    with independent noise. For the first noisy layer, whose signal has no noise, this is the true
    posterior, and the bound is I(X; T) itself. With the n samples as candidates, it is also the
    InfoNCE bound (van den Oord et al. 2018).

    The upper bound is the least of three: log n; the bound of the layer before, as noisy layers are
    a Markov chain; and I(S; T) <= log det(I + Cov(S) / std^2) / 2, because no distribution of the
    same covariance has more entropy than the Gaussian (Cover and Thomas 2006, theorem 8.6.5). The
    covariance is that of the signals of all passes. It is exact for the first layer.

    Args:
        model: a network with ``GaussianNoise`` layers that are called one after another, without a
            connection around them. Its mode and its weights are left as they were.
        inputs: n samples, with n >= 2.
        seed: seed of the noise. The global random generator is left as it was.

    Raises:
        ValueError: for fewer than two samples, and for a model without noise.
    """
    if len(inputs) < 2:
        raise ValueError(f"the information of {len(inputs)} sample(s) is 0: give at least 2")
    modules = {m: name for name, m in model.named_modules() if isinstance(m, GaussianNoise)}
    if not modules or any(m.std <= 0 for m in modules):
        raise ValueError(f"{type(model).__name__} has no noise in a layer: use model noisy_mlp")
    with torch.random.fork_rng(devices.of(inputs).generators()):
        torch.manual_seed(keyed_generator("information", seed).initial_seed())
        critics = [_signals(model, inputs, list(modules)) for _ in range(CRITIC_PASSES)]
        outputs = [_signals(model, inputs, list(modules)) for _ in range(PASSES)]
        found: list[Bounds] = []
        upper = math.log(len(inputs))
        for module, name in modules.items():
            signals = torch.stack([one[module].double() for one in critics])
            critic = _Critic(signals, module.std)
            lower = sum(critic.bound(one[module].double()) for one in outputs)
            upper = min(upper, gaussian_bound(signals.flatten(0, 1), module.std))
            found.append(Bounds(name, max(0.0, lower / PASSES), upper))
    return found


def gaussian_bound(signals: Tensor, std: float) -> float:
    """Return the largest information that a signal of this covariance has with itself plus noise.

    Args:
        signals: signals (m, features).
        std: standard deviation of the noise.
    """
    covariance = torch.cov(signals.T.double(), correction=0).reshape(signals.shape[1], -1)
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return 0.5 * torch.logdet(identity + covariance / std**2).item()


def _signals(
    model: nn.Module, inputs: Tensor, modules: Sequence[GaussianNoise]
) -> dict[nn.Module, Tensor]:
    """Return the inputs of noisy layers in one pass in train mode, flattened to (n, features)."""
    found: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        found[module] = arguments[0].flatten(1)

    handles = [module.register_forward_hook(keep) for module in modules]
    training = model.training
    model.train()
    try:
        model(inputs)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found


class _Critic:
    """The posterior ``q(i | t)`` of Gaussians with one mean per sample and one common covariance.

    Args:
        signals: signals (passes, n, features).
        std: standard deviation of the noise.
    """

    def __init__(self, signals: Tensor, std: float) -> None:
        means = signals.mean(0)
        within = (signals - means).flatten(0, 1)
        covariance = within.T @ within / max(1, len(within) - len(means))
        covariance += std**2 * torch.eye(len(covariance), dtype=covariance.dtype)
        self.std, self.root = std, torch.linalg.cholesky(covariance)
        self.means = self._whitened(means)

    def _whitened(self, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.root, x.T, upper=False).T

    def bound(self, signals: Tensor) -> float:
        """Return log n + the mean of log q(i | t), for one output t of each sample i.

        Args:
            signals: signals (n, features), whose noise is independent of that of the critic.
        """
        outputs = self._whitened(signals + self.std * torch.randn_like(signals))
        likelihoods = -0.5 * torch.cdist(outputs, self.means).square()
        return math.log(len(signals)) + likelihoods.log_softmax(1).diagonal().mean().item()


def run_information(
    settings: Settings,
    folder: Path,
    measured_at: Sequence[int],
    *,
    data: Path | str | None = None,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train one network on a CPU, and measure the information of its layers after some epochs.

    The result is written to ``folder/information/<id>.json``. A run that has this file for the same
    epochs is read and not trained again.

    Args:
        settings: settings of the run, with a model that has noise.
        folder: folder of the results.
        measured_at: epochs after which to measure, counted from 1; 0 is before the training.
        data: folder of the data sets; None: the environment variable CKASR_DATA.
        progress: function that gets one line per run.

    Raises:
        ValueError: for an epoch outside of the training, and as `information` does.
    """
    last = settings.epochs
    if wrong := [epoch for epoch in measured_at if not 0 <= epoch <= last]:
        raise ValueError(f"measured_at={wrong[0]} must be an epoch from 0 to {last}")
    path = folder / "information" / f"{settings.id}.json"
    if path.exists():
        known = json.loads(path.read_text())
        if known["epochs"] == list(measured_at):
            return known
    target = devices.find("cpu")
    dataset = load(settings.dataset, data)
    engine = build_engine(settings, dataset, target)
    model = engine.context.model
    if (held_out := engine.validation) is None:
        raise ValueError("validation = 0: the accuracy in the training needs validation samples")
    inputs = next(engine.batches.in_order(SAMPLES))[0]
    found: list[list[Bounds]] = []
    accuracies: list[float] = []

    def measure() -> None:
        found.append(information(model, inputs, settings.seed))
        accuracies.append(accuracy(model, held_out.in_order(), settings.precision, dataset.task))

    epochs = engine.epochs()
    if 0 in measured_at:
        measure()
    for number, _ in enumerate(epochs, 1):
        if number in measured_at:
            measure()
    test = dataset.test_batches(batch_size=1000, device=target.place)
    result = {
        "id": settings.id,
        "settings": settings.to_dict(),
        "samples": len(inputs),
        "epochs": list(measured_at),
        "layers": [bound.layer for bound in found[-1]],
        "lower": [[bound.lower for bound in bounds] for bounds in found],
        "upper": [[bound.upper for bound in bounds] for bounds in found],
        "validation_accuracy": accuracies,
        "test_accuracy": accuracy(model, test.in_order(), settings.precision, dataset.task),
        **environment(target),
    }
    write_text(path, json.dumps(result) + "\n")
    ends = f"{found[-1][0].lower:.2f} to {found[-1][-1].upper:.2f} nats"
    progress(f"{settings.id}  {title(settings)}  {accuracies[-1]:.1%}, {ends}")
    return result
