"""Bounds of the information in noisy layers, against channels whose information is known."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ckasr import models
from ckasr.analysis import information_effects, information_table, write_information
from ckasr.experiments import Settings, run_information
from ckasr.experiments import information as module
from ckasr.experiments.information import gaussian_bound, information
from ckasr.models.noisy_mlp import GaussianNoise


def channels(*stds: float) -> nn.Sequential:
    """Noise on the input itself, then on the noisy outputs."""
    return nn.Sequential(*(GaussianNoise(std) for std in stds))


def two_points(distance: float) -> Tensor:
    return torch.tensor([[0.0], [distance]], dtype=torch.float64)


def exact_information(distance: float, std: float) -> float:
    """I(X; X + std N) for X uniform on 0 and ``distance``, by a fine Riemann sum."""
    t = torch.linspace(-12 * std, distance + 12 * std, 200_001, dtype=torch.float64)
    densities = torch.stack([torch.exp(-0.5 * ((t - x) / std) ** 2) for x in (0.0, distance)])
    densities /= std * math.sqrt(2 * math.pi)
    mixture = densities.mean(0)
    integrand = torch.special.xlogy(densities, densities / mixture).nan_to_num()
    return torch.trapezoid(integrand.mean(0), t).item()


@pytest.mark.parametrize(("distance", "std"), [(2.0, 1.0), (1.0, 1.0), (3.0, 0.5)])
def test_the_first_layer_has_its_exact_information(distance, std, monkeypatch):
    monkeypatch.setattr(module, "PASSES", 20_000)
    (bounds,) = information(channels(std), two_points(distance))
    exact = exact_information(distance, std)
    assert bounds.lower == pytest.approx(exact, abs=0.02)
    assert exact <= bounds.upper <= math.log(2)


def test_distant_samples_have_the_full_information():
    (bounds,) = information(channels(0.1), two_points(100.0))
    assert bounds.lower == pytest.approx(math.log(2))
    assert bounds.upper == pytest.approx(math.log(2))


def test_equal_samples_have_no_information():
    (bounds,) = information(channels(1.0), torch.ones(8, 3, dtype=torch.float64))
    assert bounds.lower == pytest.approx(0, abs=1e-12)
    assert bounds.upper == pytest.approx(0, abs=1e-12)


def test_noise_upon_noise_adds_up(monkeypatch):
    """Behind the second layer the noise has variance 2, so the true information is known there."""
    monkeypatch.setattr(module, "PASSES", 4000)
    monkeypatch.setattr(module, "CRITIC_PASSES", 4000)
    first, second = information(channels(1.0, 1.0), two_points(2.0))
    exact = exact_information(2.0, math.sqrt(2))
    assert second.lower == pytest.approx(exact, abs=0.03)
    assert exact <= second.upper <= first.upper


def test_the_gaussian_bound_is_the_capacity_of_a_gaussian_signal():
    torch.manual_seed(0)
    signals = torch.randn(200_000, 2, dtype=torch.float64) * torch.tensor([1.0, 3.0])
    wanted = 0.5 * (math.log(1 + 1 / 4) + math.log(1 + 9 / 4))
    assert gaussian_bound(signals, 2.0) == pytest.approx(wanted, rel=1e-2)


def test_the_bounds_enclose_each_other_and_leave_model_and_random_numbers_alone():
    torch.manual_seed(1)
    model = models.create("noisy_mlp", num_classes=10, input_shape=(1, 8, 8)).eval()
    x = torch.randn(40, 1, 8, 8)
    state, before = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    found = information(model, x, seed=3)
    assert [b.layer for b in found] == ["stem.2", *(f"blocks.{k}.noise" for k in range(3))]
    assert all(0 <= b.lower <= b.upper <= math.log(40) + 1e-12 for b in found)
    assert found[0].lower > found[-1].lower
    assert information(model, x, seed=3) == found
    assert information(model, x, seed=4) != found
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_networks_without_noise_are_refused():
    model = models.create("resmlp", num_classes=10, input_shape=(1, 8, 8))
    with pytest.raises(ValueError, match="ResMLP has no noise in a layer: use model noisy_mlp"):
        information(model, torch.randn(4, 1, 8, 8))
    with pytest.raises(ValueError, match="give at least 2"):
        information(channels(1.0), torch.zeros(1, 3))


def test_noise_has_its_standard_deviation_in_train_mode_only():
    torch.manual_seed(0)
    noise, x = GaussianNoise(0.5), torch.ones(100_000)
    assert (noise(x) - x).std().item() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(noise.eval()(x), x)


def settings(**changes: object) -> Settings:
    values = {"dataset": "digits", "model": "noisy_mlp", "sparsity": 0.5, "epochs": 2}
    return Settings(**values | {"validation": 200} | changes)


def test_a_run_is_measured_once_and_read_afterwards(tmp_path: Path):
    lines: list[str] = []
    result = run_information(settings(), tmp_path, [0, 2], progress=lines.append)
    assert result["epochs"] == [0, 2]
    assert [len(result[name]) for name in ("lower", "upper", "validation_accuracy")] == [2, 2, 2]
    assert result["samples"] == 1000
    assert all(
        low <= high for lows, highs in zip(result["lower"], result["upper"], strict=True)
        for low, high in zip(lows, highs, strict=True)
    )  # fmt: skip
    assert run_information(settings(), tmp_path, [0, 2], progress=lines.append) == result
    assert len(lines) == 1
    again = run_information(settings(), tmp_path / "other", [0, 2], progress=lines.append)
    volatile = {"peak_memory_bytes"}
    assert {k: v for k, v in again.items() if k not in volatile} == {
        k: v for k, v in result.items() if k not in volatile
    }


def made_up(seed: int, beta: float, first: float, accuracy: float, term: str = "cka_sr") -> dict:
    """A result whose first layer has this information."""
    chosen = settings(seed=seed, beta=beta, term=term)
    return {
        "id": chosen.id,
        "settings": chosen.to_dict(),
        "samples": 1000,
        "epochs": [2],
        "layers": ["stem.2", "blocks.0.noise"],
        "lower": [[first, first / 2]],
        "upper": [[first + 0.1, first + 0.1]],
        "validation_accuracy": [accuracy],
        "test_accuracy": accuracy,
        "device": "made up",
        "commit": "made up",
    }


@pytest.mark.parametrize(
    ("fall", "placebo", "loss", "verdict"),
    [
        (-1.0, -0.1, 0.01, "supported here"),
        (-1.0, -1.0, 0.01, "not supported: no larger decrease than with the placebo shown"),
        (0.5, 0.0, 0.01, "not supported: no decrease of the information shown"),
        (-1.0, -0.1, -0.3, "not supported: the accuracy collapsed"),
        (-1.0, -0.1, -0.03, "not supported: the accuracy decreases as well"),
    ],
)
def test_the_verdict_follows_the_criterion(fall, placebo, loss, verdict):
    spread = (0.0, 0.01, -0.01, 0.02)
    results = [
        made_up(seed, beta, 5 + change + (seed + 1) * noise, 0.8 + gain + noise / 10, term)
        for seed, noise in enumerate(spread)
        for beta, change, gain, term in (
            (0.0, 0.0, 0.0, "cka_sr"),
            (0.1, fall, loss, "cka_sr"),
            (0.1, placebo - 0.002 * seed, 0.0, "random_direction"),
        )
    ]
    results[-1]["commit"] = "another"  # its pair does not count
    for result in results[1::3]:
        result["lower"][0][0] += 0.001 * result["settings"]["seed"]
        result["test_accuracy"] += 0.0001 * result["settings"]["seed"]
    term, other = information_effects(results)
    assert (len(term.seeds), len(term.against_placebo), len(other.seeds)) == (4, 3, 3)
    assert term.verdict == verdict
    assert sum(term.first) / 4 == pytest.approx(fall + 0.0015)
    assert verdict in information_table([term])


def test_tables_and_figures_are_written_from_the_results_alone(tmp_path):
    assert write_information(tmp_path) == []
    (tmp_path / "information").mkdir()
    for number, beta in enumerate((0.0, 0.1)):
        for seed in (0, 1):
            result = made_up(seed, beta, 5.0 - number, 0.5)
            (tmp_path / "information" / f"{result['id']}.json").write_text(json.dumps(result))
    written = write_information(tmp_path)
    assert [path.name for path in written] == [
        "information.md",
        "information_s50.png",
        "information_s50.svg",
    ]
    assert "undecided: too few pairs" in written[0].read_text()
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_information(tmp_path)] == before


@pytest.mark.parametrize(
    ("changes", "epochs", "message"),
    [
        ({}, [3], r"measured_at=3 must be an epoch from 0 to 2"),
        ({"validation": 0}, [0], "validation = 0: the accuracy in the training needs"),
        ({"model": "resmlp"}, [0], "ResMLP has no noise"),
    ],
)
def test_bad_requests_are_refused(changes, epochs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_information(settings(**changes), tmp_path, epochs, progress=lambda line: None)
    assert not list(tmp_path.iterdir())
