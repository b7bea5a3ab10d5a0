"""LTH and DLTH: exact counts, nested masks, exact rewinding, and runs that survive a kill."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from method_runs import state_of
from torch import Tensor, nn

from ckasr import data, methods, models
from ckasr.experiments import Settings, run
from ckasr.experiments.runs import OutOfTime
from ckasr.methods import Context, TrainingState
from ckasr.methods.dlth import DLTH
from ckasr.methods.lth import LTH
from ckasr.sparsity import dense_masks, layer_densities, prunable, random_masks
from ckasr.training import Engine, Recipe

BATCH = 64


def engine(method: methods.Method, sparsity: float = 0.9, epochs: int = 2, **recipe: Any) -> Engine:
    """An engine on real digits: 1437 images, 22 steps an epoch."""
    torch.manual_seed(0)
    dataset = data.load("digits")
    net = models.create("resmlp", num_classes=10, input_shape=dataset.input_shape)
    batches = data.ImageBatches(
        dataset.train_images,
        dataset.train_labels,
        mean=dataset.mean,
        std=dataset.std,
        batch_size=BATCH,
    )
    context = Context(net, sparsity, "erk", 0, 10, batches.in_order, len(batches))
    return Engine(context, method, Recipe(epochs, **recipe), batches, seed=0)


def digits(results: Path, deadline: float = math.inf, **changes: Any) -> dict[str, Any]:
    values = {"model": "resmlp", "sparsity": 0.9, "epochs": 1, "batch_size": BATCH}
    settings = Settings(dataset="digits", validation=200, **(values | changes))
    return run(settings, results, device="cpu", progress=None, deadline=deadline)


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def kept(masks: dict[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


class Bare(nn.Module):
    """One weight of a given size: for counts, nothing else is needed."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(size, 1)


def counts(size: int, sparsity: float, **options: Any) -> list[int]:
    net = Bare(size)
    context = Context(net, sparsity, "erk", 0, 1, lambda: iter(()), steps_per_epoch=1)
    return LTH(**options).counts(context)


class TestLevels:
    @given(
        size=st.integers(1000, 10_000),
        sparsity=st.floats(0.01, 0.98),
        rate=st.floats(0.05, 0.6),
    )
    def test_each_level_prunes_the_rate_and_the_last_is_exact(self, size, sparsity, rate):
        levels = counts(size, sparsity, rate=rate)
        assert levels[-1] == round(round((1 - sparsity) * size, 6))
        assert len(levels) == len(set(levels))
        for level, count in enumerate(levels[:-1], 1):
            assert abs(count - size * (1 - rate) ** level) <= 0.5
        before = [size, *levels][-2]
        assert levels[-1] < before
        assert levels[-1] >= before * (1 - rate) ** 1.05 - 2

    @pytest.mark.parametrize(
        ("sparsity", "levels"), [(0.956, 14), (0.982, 18), (0.995, 24), (0.998, 28)]
    )
    def test_number_of_levels_as_published(self, sparsity, levels):
        """open_lth's counts for 20 % a level."""
        assert len(counts(270_896, sparsity)) == levels

    def test_a_list_of_sparsities(self):
        assert counts(1000, 0.95, levels="0.5,0.8,0.95") == [500, 200, 50]
        assert counts(1000, 0.95, levels="0.95") == [50]
        for value in ((0.5, 0.95), [0.5, 0.95], "0.5, 0.95"):  # as typed, and as read from JSON
            levels = methods.create("lth", {"levels": value}).levels
            assert counts(1000, 0.95, levels=levels) == [500, 50]
        assert counts(1000, 0.0) == []

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"rate": 0.0}, "rate of method 'lth' is 0.0"),
            ({"rate": 1.0}, "rate of method 'lth' is 1.0"),
            ({"rate": 1e-4}, "would prune none of 1000 weights"),
            ({"levels": "0.5,0.8"}, "to the run's own, 0.9"),
            ({"levels": "0.8,0.5,0.9"}, "must rise"),
            ({"levels": "0.89,0.8901,0.9"}, "would prune none of 110 weights"),
            ({"levels": "many"}, "a list such as"),
        ],
    )
    def test_impossible_options_are_one_line(self, options, words):
        with pytest.raises(ValueError, match=words) as error:
            counts(1000, 0.9, **options)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("method", ["lth", "dlth"])
    def test_a_sparsity_that_leaves_nothing(self, method, tmp_path):
        with pytest.raises(ValueError, match="leaves none of 37504 weights"):
            digits(tmp_path, method=method, sparsity=0.99999)

    def test_more_levels_than_weights(self):
        with pytest.raises(ValueError, match="would prune none of 4 weights"):
            counts(100, 0.99)

    @pytest.mark.parametrize("rewind", [-1, 22, 1000])
    def test_no_rewinding_beyond_the_training(self, rewind, tmp_path):
        with pytest.raises(ValueError, match=r"can be 0 to 1\d"):
            digits(tmp_path, method="lth", method_options={"rewind": rewind})
        assert not list(tmp_path.rglob("*.pt"))

    def test_no_prunable_layer(self):
        net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64))
        trained = engine(LTH())
        context = Context(net, 0.9, "erk", 0, 10, trained.batches.in_order, 22)
        for method in (LTH(), DLTH()):
            with pytest.raises(ValueError, match="no conv or linear weight"):
                list(Engine(context, method, Recipe(1), trained.batches, 0).epochs())


class Watched(LTH):
    """Notes the state after step `rewind` of the first training and at each level's first step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.origin: dict[str, Tensor] = {}
        self.momentum: list[Tensor] = []
        self.starts: list[dict[str, Any]] = []

    def prepare(self, context: Context) -> Mapping[str, Tensor]:
        if self.rewind == 0:
            self.origin = copies(context.model.state_dict())
        return super().prepare(context)

    def after_step(self, context: Context, state: TrainingState) -> None:
        super().after_step(context, state)
        if state.phase.name == "level 0" and state.step == self.rewind:
            self.origin = copies(context.model.state_dict())
            self.momentum = momenta(context, state)

    def begin_phase(self, context: Context, state: TrainingState) -> None:
        super().begin_phase(context, state)
        self.fresh = state.phase.name != "level 0"

    def after_backward(self, context: Context, state: TrainingState) -> None:
        if self.fresh:
            self.fresh = False
            self.starts.append(
                {
                    "model": copies(dict(context.model.named_parameters())),
                    "momentum": momenta(context, state),
                    "masks": copies(state.masks),
                    "rate": state.optimizer.param_groups[0]["lr"],
                    "step": state.step,
                }
            )


def momenta(context: Context, state: TrainingState) -> list[Tensor]:
    states = [state.optimizer.state.get(p, {}) for p in context.model.parameters()]
    return [s["momentum_buffer"].clone() for s in states if s.get("momentum_buffer") is not None]


class TestRewinding:
    @pytest.mark.parametrize("rewind", [0, 5, 22, 50])
    def test_restores_weights_momentum_and_the_place_in_the_schedule(self, rewind):
        """22 steps an epoch, drops at epochs 2 and 3 of 4: step 50 lies behind the first."""
        method = Watched(levels="0.5,0.8,0.9", rewind=rewind)
        trained = engine(method, epochs=4)
        entries = list(trained.epochs())
        assert len(method.starts) == 3
        names = [name for name, _ in trained.context.model.named_parameters()]
        for start in method.starts:
            masks = start["masks"]
            for name in names:
                value = method.origin[name]
                expected = value * masks[name] if name in masks else value
                assert torch.equal(start["model"][name], expected), name
            assert start["step"] == rewind
            assert start["rate"] == trained.recipe.rate(methods.Phase("", 4), rewind // 22)
            assert len(start["momentum"]) == (len(names) if rewind else 0)
            for name, now, then in zip(names, start["momentum"], method.momentum, strict=False):
                expected = then * masks[name] if name in masks else then
                assert torch.equal(now, expected), name
        for phase in ("level 1", "level 2", "level 3"):
            epochs = [e["epoch"] for e in entries if e["phase"] == phase]
            assert epochs == list(range(rewind // 22 + 1, 5))

    @pytest.mark.parametrize("rewind", [0, 5])
    def test_restores_the_batch_norm_statistics(self, rewind):
        method = Watched(levels="0.9", rewind=rewind)
        trained = engine(method, epochs=1)
        *_, last = trained.epochs()
        assert last["phase"] == "level 1"
        context, state = trained.context, trained.state
        method.end_phase(context, state)  # nothing is left to prune
        changed = [n for n, v in context.model.state_dict().items() if "running" in n]
        assert not torch.equal(context.model.state_dict()[changed[0]], method.origin[changed[0]])
        state.masks.update({name: torch.ones_like(m) for name, m in state.masks.items()})
        method.end_phase(context, state)
        for name, value in context.model.state_dict().items():
            if name not in state.masks:
                assert torch.equal(value, method.origin[name]), name

    @pytest.mark.parametrize("rewind", [0, 7, 22, 30])
    def test_a_level_that_prunes_nothing_repeats_the_first_training(self, rewind):
        """Bit for bit, if it sees the same batches: nothing of the first training is left."""

        class SameOrder(data.ImageBatches):
            def batch_indices(self, epoch: int):
                return super().batch_indices(epoch % 10_000)

        class PrunesNothing(LTH):
            def end_phase(self, context: Context, state: TrainingState) -> None:
                super().end_phase(context, state)
                state.masks.update({n: torch.ones_like(m) for n, m in state.masks.items()})
                context.model.load_state_dict(self.state()["origin"]["model"])

        trained = engine(PrunesNothing(levels="0.9", rewind=rewind), epochs=2)
        trained.batches.__class__ = SameOrder
        ends = {}
        for entry in trained.epochs():
            ends[entry["phase"]] = copies(trained.context.model.state_dict())
            ends[entry["phase"]]["momentum"] = torch.cat(
                [m.flatten() for m in momenta(trained.context, trained.state)]
            )
        for name, value in ends["level 0"].items():
            assert torch.equal(ends["level 1"][name], value), name


class TestMasks:
    @pytest.mark.parametrize("rewind", [0, 5])
    def test_levels_are_exact_nested_and_never_revive(self, rewind):
        trained = engine(LTH(levels="0.5,0.8,0.95", rewind=rewind), sparsity=0.95, epochs=2)
        wanted = {"level 0": 37504, "level 1": 18752, "level 2": 7501, "level 3": 1875}
        before = copies(dense_masks(trained.context.model))
        for entry in trained.epochs():
            masks = copies(trained.state.masks)
            assert kept(masks) == wanted[entry["phase"]]
            for name, weight in prunable(trained.context.model).items():
                assert not (masks[name] & ~before[name]).any(), name
                assert not weight[~masks[name]].any(), name
                momentum = trained.state.optimizer.state[weight]["momentum_buffer"]
                assert not momentum[~masks[name]].any(), name
            before = masks

    def test_prunes_the_smallest_trained_weights(self):
        trained = engine(LTH(levels="0.7"), sparsity=0.7, epochs=1)
        run_of = trained.epochs()
        next(run_of)
        weights = {n: w.detach().clone() for n, w in prunable(trained.context.model).items()}
        next(run_of)
        masks = trained.state.masks
        smallest_kept = min(w[masks[n]].abs().min().item() for n, w in weights.items())
        largest_pruned = max(w[~masks[n]].abs().max().item() for n, w in weights.items())
        assert smallest_kept >= largest_pruned

    def test_a_live_weight_that_is_zero_is_no_reason_to_revive_a_pruned_one(self):
        method = LTH(levels="0.5,0.9")
        context = engine(method).context
        method.prepare(context)
        state = state_of(context)
        method.end_phase(context, state)
        before = copies(state.masks)
        with torch.no_grad():
            for weight in prunable(context.model).values():
                weight.zero_()
        method.end_phase(context, state)
        assert kept(state.masks) == round(0.1 * 37504)
        for name, mask in state.masks.items():
            assert not (mask & ~before[name]).any(), name

    def test_dlth_is_dense_until_the_rest_is_removed(self):
        trained = engine(DLTH(), epochs=2)
        context = trained.context
        shapes = {name: w.shape for name, w in prunable(context.model).items()}
        ticket = random_masks(shapes, layer_densities(shapes, 0.1, "erk"), seed=0)
        for entry in trained.epochs():
            if entry["phase"] == "transform":
                assert kept(trained.state.masks) == 37504
            else:
                assert kept(trained.state.masks) == round(0.1 * 37504)
                for name, weight in prunable(context.model).items():
                    assert torch.equal(trained.state.masks[name], ticket[name])
                    assert not weight[~ticket[name]].any()


class TestGrowingL2:
    def test_adds_strength_times_weight_outside_the_ticket_to_the_gradient(self):
        class Twice(DLTH):
            """Notes gradients before and after."""

            def after_backward(self, context: Context, state: TrainingState) -> None:
                weights = prunable(context.model)
                before = {name: w.grad.clone() for name, w in weights.items()}
                super().after_backward(context, state)
                ticket = self.ticket(context)
                for name, w in weights.items():
                    added = self.strength(state) * w.detach() * ~ticket[name]
                    if state.phase.name == "train":
                        added.zero_()
                    torch.testing.assert_close(w.grad, before[name] + added, rtol=1e-6, atol=1e-9)
                    seen.append(bool(added.any()))

        seen: list[bool] = []
        list(engine(Twice(ceiling=3.0), epochs=2).epochs())
        assert any(seen)
        assert not all(seen)

    @pytest.mark.parametrize(("ceiling", "left"), [(10.0, (0, 0.05)), (1e-6, (0.5, 2))])
    def test_drives_weights_outside_the_ticket_to_zero_and_keeps_the_ticket(self, ceiling, left):
        """Up to what the loss pulls against the L2; without an L2 to speak of, little goes."""
        trained = engine(DLTH(ceiling=ceiling, learning_rate=0.02, share=2.0), epochs=3)
        start = {n: w.detach().clone() for n, w in prunable(trained.context.model).items()}
        for entry in trained.epochs():
            if entry["phase"] == "transform" and entry["epoch"] == 6:
                break
        ticket = trained.method.ticket(trained.context)
        for name, weight in prunable(trained.context.model).items():
            before, now = start[name], weight.detach()
            outside, inside = ~ticket[name], ticket[name]
            assert left[0] < now[outside].norm() / before[outside].norm() < left[1], name
            assert now[inside].norm() > 0.5 * before[inside].norm(), name

    def test_acts_on_a_layer_that_the_forward_pass_does_not_use(self):
        trained = engine(DLTH(ceiling=10.0, learning_rate=0.02, share=2.0), epochs=3)
        net = trained.context.model
        net.spare = nn.Linear(50, 50)
        start = net.spare.weight.detach().clone()
        for entry in trained.epochs():
            if entry["phase"] == "transform" and entry["epoch"] == 6:
                break
        outside = ~trained.method.ticket(trained.context)["spare.weight"]
        decayed = net.spare.weight.detach()
        assert decayed[outside].norm() < 0.05 * start[outside].norm()
        assert torch.equal(decayed[~outside].sign(), start[~outside].sign())

    @hypothesis_settings(max_examples=30)
    @given(steps=st.integers(1, 3000), ceiling=st.floats(0.01, 10))
    def test_the_budgeted_schedule_grows_for_five_ninths_of_the_steps(self, steps, ceiling):
        state = state_of(Context(Bare(10), 0.5, "erk", 0, 1, lambda: iter(()), 1))
        state.steps = steps
        method, strengths = DLTH(ceiling=ceiling), []
        for state.step in range(steps):
            strengths.append(method.strength(state))
        assert strengths == sorted(strengths)
        assert strengths[-1] == ceiling
        top = strengths.index(ceiling) + 1
        assert top == pytest.approx(steps * 5 / 9, abs=1.01)

    def test_the_published_schedule(self):
        context = Context(Bare(10), 0.5, "erk", 0, 1, lambda: iter(()), 391)
        method = DLTH(schedule="published")
        transform, train = method.phases(200, context)
        assert transform.epochs == 231
        assert transform.epochs * 391 >= 90_000
        assert transform.constant
        assert transform.learning_rate == 1e-3
        assert train.epochs == 200
        state = state_of(context)
        state.steps = transform.epochs * 391
        # The authors add 1e-4 every five steps, from the first.
        for state.step in (0, 4, 5, 1234, 49_999, 60_000):
            published = min(1.0, 1e-4 * (state.step // 5 + 1))
            assert method.strength(state) == pytest.approx(published, abs=1e-4)

    @pytest.mark.parametrize(
        "options",
        [{"schedule": "long"}, {"share": 0.0}, {"ceiling": -1.0}, {"learning_rate": 0.0}],
    )
    def test_bad_options_in_one_line(self, options, tmp_path):
        ((name, value),) = options.items()
        rule = "budgeted or published" if name == "schedule" else "positive"
        message = f"^option {name}={value!r} of method 'dlth' must be {rule}$"
        with pytest.raises(ValueError, match=message):
            digits(tmp_path, method="dlth", method_options=options)


RUNS = [
    ("lth", {"levels": "0.5,0.9"}, 2),
    ("lth", {"levels": "0.5,0.9", "rewind": 5}, 2),
    ("lth", {"levels": "0.9", "rewind": 25}, 3),
    ("dlth", {"share": 1.0}, 2),
]


def outcome(record: dict[str, Any]) -> dict[str, Any]:
    """All of a record but its clock."""
    clock = ("seconds", "started", "peak_memory_bytes")
    values = {name: value for name, value in record.items() if name not in clock}
    curves = {name: value for name, value in record["curves"].items() if name not in clock}
    return values | {"curves": curves}


@pytest.mark.parametrize("beta", [0.0, 1e-3])
@pytest.mark.parametrize(("method", "options", "epochs"), RUNS)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, method, options, epochs, beta):
    """Stopped after every epoch there is: within phases, and between them."""
    values = {"method": method, "method_options": options, "epochs": epochs, "beta": beta}
    whole = digits(tmp_path / "whole", **values)
    stops = 0
    while True:
        try:
            deadline = time.monotonic() if stops < len(whole["curves"]["epoch"]) else math.inf
            pieces = digits(tmp_path / "pieces", deadline, **values)
            break
        except OutOfTime:
            stops += 1
    assert stops == len(whole["curves"]["epoch"])
    assert stops > epochs  # more than one phase
    assert outcome(pieces) == outcome(whole)
    assert whole["sparsity"]["kept"] == round(0.1 * whole["sparsity"]["weights"])
    if beta:
        assert all(term is not None for term in whole["curves"]["term"])


def test_lth_beats_random_masks_on_digits(tmp_path):
    floor = digits(tmp_path, method="random", distribution="uniform", sparsity=0.98, epochs=4)
    options = {"levels": "0.5,0.8,0.98"}
    record = digits(tmp_path, method="lth", method_options=options, sparsity=0.98, epochs=4)
    assert record["test_accuracy"] > floor["test_accuracy"] + 0.1


def test_both_train_a_convolutional_network(tmp_path):
    for method, options in (("lth", {"levels": "0.9", "rewind": 3}), ("dlth", {})):
        record = digits(
            tmp_path, model="resnet20", method=method, method_options=options, beta=1e-4
        )
        assert record["status"] == "finished"
        assert record["sparsity"]["kept"] == round(0.1 * record["sparsity"]["weights"])
        assert len(record["curves"]["loss"]) == 2
