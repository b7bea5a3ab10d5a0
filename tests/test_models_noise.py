"""Dropout, noise, label smoothing and a second term: what they compute, and that runs repeat."""

import time
from dataclasses import replace

import pytest
import torch
from digit_runs import CPU, digits, essence
from torch import nn

from ckasr import methods, models, terms
from ckasr.data import load
from ckasr.execution import sparse_execution
from ckasr.experiments import OutOfTime, run
from ckasr.experiments.build import build_engine
from ckasr.experiments.compatibility import OPTIONS
from ckasr.models.noise import Noise, noisy_layers
from ckasr.sparsity import prunable, random_masks
from ckasr.stages import find_stages
from ckasr.tasks import CLASSIFICATION, Task


def network(name: str = "resnet20") -> nn.Module:
    torch.manual_seed(0)
    return models.create(name, num_classes=10, input_shape=(1, 8, 8))


def outputs_of(model: nn.Module, layer: str, x: torch.Tensor) -> torch.Tensor:
    seen = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]


def test_noise_has_its_standard_deviation_and_is_added_in_train_mode_only():
    """The first stage, whose input has no noise: there the difference is the noise alone."""
    plain, noisy = network(), network()
    Noise(noisy, seed=0, dropout=0.0, noise=0.3)
    x = torch.rand(64, 1, 8, 8)
    layer = noisy_layers(noisy)[0]
    assert layer == "layer1.2"
    added = outputs_of(noisy, layer, x) - outputs_of(plain, layer, x)
    assert added.numel() == 65536
    assert added.mean().item() == pytest.approx(0, abs=5 * 0.3 / 65536**0.5)
    # The standard deviation of a sample standard deviation is sigma / sqrt(2 n).
    assert added.std().item() == pytest.approx(0.3, abs=5 * 0.3 / (2 * 65536) ** 0.5)
    noisy.load_state_dict(plain.state_dict())  # the running statistics
    plain.eval(), noisy.eval()
    assert torch.equal(plain(x), noisy(x))


def test_the_term_compares_the_noisy_features():
    model = network()
    Noise(model, seed=0, dropout=0.0, noise=0.3)
    with torch.no_grad():
        first, second = (outputs_of(model, "layer1.2", torch.zeros(2, 1, 8, 8)) for _ in range(2))
    assert not torch.equal(first, second)
    assert [stage[-1] for stage in find_stages(model)] == noisy_layers(model)


def test_dropout_keeps_the_mean_and_drops_the_given_share():
    layer = nn.Linear(1000, 1000, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(1000))
    model = nn.Sequential(nn.Linear(1000, 1000), layer)
    Noise(model, seed=0, dropout=0.25, noise=0.0)
    with torch.no_grad():
        before = model[0](torch.rand(50, 1000))
        after = layer(before)
        kept = after != 0
        assert kept.float().mean().item() == pytest.approx(0.75, abs=5 * (0.25 * 0.75 / 5e4) ** 0.5)
        torch.testing.assert_close(after[kept], before[kept] / 0.75)
        layer.eval()
        assert torch.equal(layer(before), before)


def test_an_epoch_repeats_its_random_numbers_and_another_has_others():
    def drawn(seed: int, epoch: int) -> torch.Tensor:
        model = network()
        noise = Noise(model, seed, dropout=0.5, noise=0.1)
        noise.reset(epoch)
        torch.manual_seed(epoch * 7)  # the global generator has no effect
        with torch.no_grad():
            return model(torch.ones(2, 1, 8, 8))

    assert torch.equal(drawn(0, 3), drawn(0, 3))
    assert not torch.equal(drawn(0, 3), drawn(0, 4))
    assert not torch.equal(drawn(0, 3), drawn(1, 3))


def test_sparse_execution_computes_the_same_noise_and_dropout():
    pytest.importorskip("numba")
    x = torch.rand(16, 1, 8, 8)

    def results(sparse: bool) -> list[torch.Tensor]:
        model = network()
        noise = Noise(model, seed=0, dropout=0.5, noise=0.1)
        shapes = {name: tuple(w.shape) for name, w in prunable(model).items()}
        masks = random_masks(shapes, dict.fromkeys(shapes, 0.1), seed=0)
        with torch.no_grad():
            for name, weight in prunable(model).items():
                weight.mul_(masks[name])
        noise.reset(1)
        if sparse:
            handle = sparse_execution(model, masks)
            assert handle.followed
        out = model(x)
        out.square().sum().backward()
        return [out.detach(), model.conv1.weight.grad * masks["conv1.weight"]]

    torch.testing.assert_close(results(True), results(False), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.filterwarnings("ignore:method 'l0'")  # it has one epoch
def test_every_method_trains_with_noise_and_dropout(method):
    sparsity = 0.0 if method == "dense" else 0.5
    options = OPTIONS.get(method, {})
    settings = digits(
        epochs=1,
        sparsity=sparsity,
        method=method,
        method_options=options,
        dropout=0.2,
        noise=0.05,
        label_smoothing=0.1,
        hsic=1e-4,
    )
    entries = list(build_engine(settings, load("digits"), CPU).epochs())
    assert all(entry["loss"] > 0 for entry in entries)


def test_stopped_run_with_everything_resumes_to_the_same_record(tmp_path):
    settings = digits(dropout=0.3, noise=0.05, label_smoothing=0.1, hsic=1e-3)
    for _ in range(2):
        with pytest.raises(OutOfTime):
            run(settings, tmp_path / "stopped", progress=None, deadline=time.monotonic())
    resumed = run(settings, tmp_path / "stopped", progress=None)
    straight = run(settings, tmp_path / "straight", progress=None)
    assert essence(resumed) == essence(straight)
    other = run(replace(settings, dropout=0.0), tmp_path / "straight", progress=None)
    assert other["curves"]["loss"] != straight["curves"]["loss"]


def test_both_arms_see_the_same_noise():
    """With a weight of the term that changes nothing, the arms are the same run."""
    losses = []
    for beta in (0.0, 1e-30):
        settings = digits(epochs=2, beta=beta, dropout=0.3, noise=0.05)
        engine = build_engine(settings, load("digits"), CPU)
        losses.append([entry["loss"] for entry in engine.epochs()])
    assert losses[0] == losses[1]


def test_label_smoothing_is_that_of_torch():
    logits, targets = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    task = CLASSIFICATION.smoothed(0.1)
    # 0.9 of the target's negative log-likelihood and 0.1 of the mean over all classes.
    logs = -logits.log_softmax(1)
    by_hand = (0.9 * logs.gather(1, targets[:, None])[:, 0] + 0.1 * logs.mean(1)).mean()
    torch.testing.assert_close(task.loss(logits, targets), by_hand)
    torch.testing.assert_close(
        task.loss(logits, targets), nn.CrossEntropyLoss(label_smoothing=0.1)(logits, targets)
    )
    assert CLASSIFICATION.smoothed(0.0) is CLASSIFICATION
    assert build_engine(digits(label_smoothing=0.1), load("digits"), CPU).context.task != (
        load("digits").task
    )
    other = Task("regression", nn.functional.mse_loss, CLASSIFICATION.correct)
    with pytest.raises(ValueError, match=r"^label smoothing needs the cross-entropy"):
        other.smoothed(0.1)


def test_the_hsic_term_is_added_to_the_term():
    """The gradient with both is the sum of the gradients with each."""
    x = torch.rand(16, 1, 8, 8)

    def gradient(**settings: float) -> torch.Tensor:
        engine = build_engine(digits(**settings), load("digits"), CPU)
        model = engine.context.model
        term = engine.make_term(model)
        assert term.active
        model(x)
        term.compute().backward()
        assert term.term > 0
        term.advance()
        assert not term.active
        model(x)
        assert term.compute() == 0
        term.reset(1)
        assert term.active
        term.remove()
        hooks = [hook for m in model.modules() for hook in m._forward_hooks]
        assert not hooks
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    cka, hsic = gradient(beta=0.1), gradient(beta=0.0, hsic=1e-3)
    assert hsic.abs().max() > 0
    torch.testing.assert_close(gradient(beta=0.1, hsic=1e-3), cka + hsic)
    assert isinstance(
        build_engine(digits(beta=0.1, hsic=1e-3), load("digits"), CPU).make_term(network("resmlp")),
        terms.Combined,
    )
    assert build_engine(digits(beta=0.0), load("digits"), CPU).make_term is None


def test_models_without_a_place_for_noise_or_dropout_are_refused_in_one_line():
    no_stage = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    with pytest.raises(ValueError, match=r"^setting noise needs a model with stages: "):
        Noise(no_stage, 0, dropout=0.0, noise=0.1)
    convolution = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 10, 6))
    with pytest.raises(ValueError, match=r"^setting dropout needs a linear classifier, .*'1'"):
        Noise(convolution, 0, dropout=0.1, noise=0.0)
