"""A captured step against the plain one.

Without a GPU a graph can still be had: torch.fx records the step's kernels on fake tensors (which
refuse whatever would wait for the device) and replays just those on the real ones, with no Python
in between, as a CUDA graph does. So whatever a step keeps outside of tensors shows here.
"""

from collections.abc import Callable

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ckasr import devices
from ckasr.data import load
from ckasr.experiments import Settings
from ckasr.experiments.build import build_engine
from ckasr.methods import METHODS, create
from ckasr.training import Engine
from ckasr.training.captured import WARM_UP, can_capture


def recorded(work: Callable[[], None]) -> Callable[[], None]:
    """The kernels of a step, recorded without running them."""

    def traced() -> tuple[()]:
        work()
        return ()

    graph = make_fx(traced, tracing_mode="fake", _allow_non_fake_inputs=True)()

    def replay() -> None:
        with torch.no_grad():
            graph()

    return replay


def engine(device: str = "cpu", **changes: object) -> Engine:
    """Rates are powers of two: the same as a Python number and as a float32 tensor."""
    values = {
        "dataset": "digits",
        "model": "resmlp",
        "method": "random",
        "sparsity": 0.9,
        "epochs": 2,
        "learning_rate": 0.125,
        "decay": 0.5,
        "validation": 200,
    }
    settings = Settings(**values | changes)
    return build_engine(settings, load("digits"), devices.find(device))


def trained(running: Engine) -> dict[str, torch.Tensor]:
    for _ in running.epochs():
        pass
    state = running.context.model.state_dict()
    # The count of batches is a constant to the recorder; nothing reads it.
    return {name: value for name, value in state.items() if "num_batches" not in name}


@pytest.mark.parametrize(
    "changes",
    [
        {"beta": 0.05, "every": 3},
        {"beta": 0.05, "every": 1, "precision": "bf16", "epochs": 1},
        {"beta": 0.05, "every": 2, "term": "shuffled"},
        {"beta": 0.05, "every": 2, "term": "shuffled", "samples": 0, "epochs": 1},
        {"beta": 0.05, "every": 2, "term": "random_direction"},
        {"model": "resnet20", "epochs": 1, "beta": 0.05, "every": 2},
        {"method": "set", "method_options": {"every": 5}},
        {"method": "gmp", "method_options": {"every": 4}},
        {"method": "lth", "method_options": {"levels": "0.9", "rewind": 4}},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_replayed_kernels_give_the_weights_of_the_plain_step(changes):
    plain, replayed = engine(**changes), engine(**changes)
    plain.capture, replayed.capture = None, recorded
    expected, found = trained(plain), trained(replayed)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for name in ("loss", "term", "validation_accuracy", "learning_rate"):
        assert replayed.curves[name] == plain.curves[name]


def test_steps_are_recorded_once_with_the_term_and_once_without():
    records = []

    def counted(work: Callable[[], None]) -> Callable[[], None]:
        records.append(0)
        kind = len(records) - 1

        def replay() -> None:
            records[kind] += 1
            work()

        return replay

    running = engine(beta=0.05, every=2, epochs=2)
    running.capture = counted
    trained(running)
    steps = len(running.batches)
    with_term = -(-steps // 2)
    # The first step of each epoch measures the gradients apart, which is never replayed.
    expected = sorted([2 * (steps - with_term) - WARM_UP, 2 * (with_term - 1) - WARM_UP])
    assert sorted(records) == expected


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_act_inside_the_step_are_not_captured(name):
    assert can_capture(create(name), engine().batches) == (
        name not in {"dlth", "l0", "l1", "rigl", "structured"}
    )


def test_a_step_that_waits_for_the_device_cannot_be_recorded():
    """The recorder does refuse: else the tests above would not show what they are said to."""
    total = torch.zeros(3)

    def work() -> None:
        if total.sum().item() >= 0:
            total.add_(1)

    with pytest.raises(Exception, match="data-dependent"):
        recorded(work)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cuda_graph_ends_within_the_spread_of_the_device(precision):
    """Two plain runs differ by the device's own order of sums; the captured one by no more."""
    losses = []
    for capture in (None, None, None, devices.find("cuda").capture):
        running = engine("cuda", model="resnet20", beta=0.05, every=2, precision=precision)
        running.capture = capture
        with torch.cuda.stream(torch.cuda.Stream()):
            trained(running)
        losses.append(torch.tensor(running.curves["loss"]))
    *plain, captured = losses
    center = torch.stack(plain).mean(0)
    spread = max((p - center).abs().max().item() for p in plain)
    assert (captured - center).abs().max().item() <= max(5 * spread, 1e-3)
