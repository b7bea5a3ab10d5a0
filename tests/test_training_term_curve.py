"""The term measured after each epoch: right, alike in both arms, and without effect on training."""

import copy
import math

import pytest
import torch
from method_runs import BASE, finished
from torch import nn

from ckasr import CKASR, devices, models
from ckasr.data import load
from ckasr.experiments import Settings
from ckasr.experiments.build import build_engine, term_meter
from ckasr.experiments.runs import OutOfTime, run
from ckasr.stages import find_stages
from ckasr.training.term_curve import queued_term

CPU = devices.find("cpu")


def trained(measure: bool, **changes):
    """The curves of an engine and its last weights, buffers included."""
    engine = build_engine(Settings(**BASE | changes), load("digits"), CPU)
    if not measure:
        engine.measure_term = None
    for _ in engine.epochs():
        pass
    curves = {name: curve for name, curve in engine.curves.items() if name != "seconds"}
    return curves, engine.context.model.state_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta": 1e-2, "every": 2},
        {"method": "l0", "beta": 1e-2},  # noise in every step from torch's global generator
        {"model": "resnet20", "epochs": 1, "batch_size": 400},  # batch norms, which have buffers
    ],
    ids=["baseline", "term", "l0", "resnet20"],
)
def test_training_is_the_same_to_the_last_bit_without_the_measurement(changes):
    (with_it, weights), (without, expected) = (trained(measure, **changes) for measure in (1, 0))
    assert all(value > 0 for value in with_it.pop("term_measured"))
    assert set(without.pop("term_measured")) == {None}
    assert with_it == without
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("model", ["resmlp", "resnet20"])
def test_the_value_is_that_of_the_plug_in_with_batch_norm_in_eval_mode(model):
    torch.manual_seed(0)
    network = models.create(model, num_classes=10, input_shape=(1, 8, 8))
    network(torch.randn(32, 1, 8, 8))  # running statistics that are not those of the batch
    inputs = torch.randn(16, 1, 8, 8)
    before = copy.deepcopy(network.state_dict())
    stages = find_stages(network)
    found = queued_term(network, stages, inputs, "fp32")
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)

    other = copy.deepcopy(network)
    with CKASR(other, beta=1.0, samples=None, every=1) as reg:
        for module in other.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eval()
        other(inputs)
        expected = reg()
    assert found is not None
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_both_arms_measure_the_same_function(tmp_path):
    """Of the same weights and samples: with a beta of almost nothing, the arms agree."""
    baseline, treated = (finished(tmp_path, epochs=1, beta=beta) for beta in (0.0, 1e-12))
    (first,), (second,) = (run["curves"]["term_measured"] for run in (baseline, treated))
    assert first == pytest.approx(second, rel=1e-4)
    assert baseline["curves"]["term"] == [None]


def test_layers_that_do_not_run_are_left_out():
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(5, 4), nn.Linear(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    inputs = torch.randn(8, 5)
    term = queued_term(Half(), [["used"], ["spare"]], inputs, "fp32")
    assert term is not None
    assert term.item() == pytest.approx(1)  # of a layer with itself
    assert queued_term(Half(), [["spare"]], inputs, "fp32") is None


def test_a_network_without_stages_is_not_measured():
    digits = load("digits")
    batches = digits.train_batches(torch.arange(8), batch_size=8)
    assert term_meter(Settings(**BASE), nn.Linear(64, 10), batches) is None


def test_a_checkpoint_from_before_it_was_measured_is_resumed(tmp_path):
    with pytest.raises(OutOfTime):
        run(Settings(**BASE), tmp_path, device="cpu", progress=None, deadline=-math.inf)
    (path,) = (tmp_path / "checkpoints").glob("*.pt")
    state = torch.load(path, weights_only=True)
    del state["curves"]["term_measured"]
    torch.save(state, path)
    first, second = finished(tmp_path)["curves"]["term_measured"]
    assert first is None
    assert second > 0
