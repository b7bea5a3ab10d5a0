"""The engine with any method: layers that are not used, and layers that end without a weight."""

import re
import warnings
from typing import ClassVar

import pytest
import torch
from method_runs import engine, finished, train
from torch import nn

from ckasr import methods
from ckasr.methods import Context, Method, Phase, TrainingState
from ckasr.training.captured import can_capture


@pytest.mark.parametrize("name", sorted(set(methods.METHODS) - {"structured"}))
def test_a_layer_that_the_forward_pass_does_not_use(name):
    """It counts among the weights, gets no gradient, and is no reason to fail."""
    options = {"rigl": {"every": 3}, "set": {"every": 3}, "lth": {"levels": "0.9"}}.get(name, {})
    made = engine(methods.create(name, options), epochs=1, sparsity=0.9 if name != "dense" else 0)
    made.context.model.spare = nn.Linear(40, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scores of zero empty it
        train(made)
    left = sum(int(mask.sum()) for mask in made.state.masks.values())
    assert left == made.context.kept


class Empties(Method):
    """Empties a layer in the middle of a phase, another when it ends, and none before."""

    name = "empties"

    def phases(self, epochs: int, context: Context) -> list[Phase]:
        return [Phase("first", 1), Phase("last", 1)]

    def empty(self, name: str, state: TrainingState) -> None:
        masks = dict(state.masks)
        state.masks.update({**masks, name: torch.zeros_like(masks[name])})

    def after_step(self, context: Context, state: TrainingState) -> None:
        if state.phase.name == self.when[0] and state.step == 2:
            self.empty("blocks.0.linear1.weight", state)

    def end_phase(self, context: Context, state: TrainingState) -> None:
        if state.phase.name == self.when[1]:
            self.empty("blocks.1.linear1.weight", state)


@pytest.mark.parametrize("when", [("first", "first"), ("first", "last"), ("last", "last")])
def test_every_layer_collapse_is_reported_once(when):
    method = Empties()
    method.when = when
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(engine(method))
    said = [str(w.message) for w in caught if "layer collapse" in str(w.message)]
    layers = [name for line in said for name in re.findall(r"blocks\.\d\.\w+\.weight", line)]
    assert sorted(layers) == ["blocks.0.linear1.weight", "blocks.1.linear1.weight"]
    places = {"first": "phase 'last' starts", "last": "the last phase ended"}
    assert len(said) == len(set(when))
    assert [line.split(": ")[1].split(" with")[0] for line in said] == [
        places[name] for name in sorted(set(when))
    ]


def test_a_checkpoint_left_beside_its_record_is_removed(tmp_path):
    """As after a kill between the two last lines of a run."""
    record = finished(tmp_path, method="random")
    left = tmp_path / "checkpoints" / f"{record['id']}.pt"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"of the last epoch")
    other = left.with_name("0123456789ab.pt")
    other.write_bytes(b"of a run that goes on")
    assert finished(tmp_path, method="random") == record
    assert not left.exists()
    assert other.exists()


def test_a_training_set_that_fills_no_batch_is_refused_before_anything_is_prepared():
    made = engine(methods.create("random"))
    made.batches.batch_size = 4096
    with pytest.raises(ValueError, match="do not fill one batch of 4096: choose a smaller"):
        train(made)
    assert not hasattr(made, "state")


@pytest.mark.parametrize("name", sorted(set(methods.METHODS) - {"dense", "structured"}))
def test_a_sparsity_that_keeps_nothing_is_refused_for_every_method(name):
    with pytest.raises(ValueError, match=r"sparsity 0\.9999999 leaves none of 37504"):
        train(engine(methods.create(name), sparsity=0.9999999))


def test_a_context_stays_as_it_is():
    made = engine(methods.create("random"))
    with pytest.raises(AttributeError):
        made.context.sparsity = 0.5


class Watching(Method):
    """Notes what the state is whenever a hook sees it."""

    name = "watching"
    seen: ClassVar[list[tuple[str, str, int, int]]] = []

    def phases(self, epochs: int, context: Context) -> list[Phase]:
        return [Phase("first", 1), Phase("second", 2, start=context.steps_per_epoch)]

    def note(self, hook: str, state: TrainingState) -> None:
        assert isinstance(state.optimizer, torch.optim.SGD)
        assert len(state.masks)
        self.seen.append((hook, state.phase.name, state.step, state.steps))

    def begin_phase(self, context: Context, state: TrainingState) -> None:
        self.note("begin", state)

    def after_step(self, context: Context, state: TrainingState) -> None:
        self.note("step", state)

    def end_phase(self, context: Context, state: TrainingState) -> None:
        self.note("end", state)


def test_method_hooks_get_a_complete_state_in_order():
    Watching.seen.clear()
    made = train(engine(Watching()))
    n = made.context.steps_per_epoch
    assert Watching.seen == [
        ("begin", "first", 0, n),
        *(("step", "first", k, n) for k in range(1, n + 1)),
        ("end", "first", n, n),
        ("begin", "second", n, 2 * n),
        *(("step", "second", k, 2 * n) for k in range(n + 1, 2 * n + 1)),
        ("end", "second", 2 * n, 2 * n),
    ]


def test_batches_that_read_files_are_not_captured():
    made = engine(methods.create("random"))
    assert can_capture(made.method, made.batches)
    made.batches.can_capture = False
    assert not can_capture(made.method, made.batches)
