"""GMP, SET, RigL, L1: what moves, when, and that exactly the asked number of weights is left."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_runs import accuracy_of, engine, finished, killed, outcome, train

from ckasr import methods
from ckasr.methods import METHODS
from ckasr.sparsity import prunable

GMP, SET, RigL, L1 = (METHODS[name] for name in ("gmp", "set", "rigl", "l1"))
OPTIONS = {"gmp": {"every": 4}, "set": {"every": 4}, "rigl": {"every": 4}, "l1": {}}


def copies(tensors) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def spying(kind: type):
    """The method, with what each of its steps found and left behind."""

    class Spy(kind):
        def __post_init__(self):
            super().__post_init__()
            self.seen = []

        def after_backward(self, context, state):
            gradients = {n: w.grad.clone() for n, w in prunable(context.model).items()}
            super().after_backward(context, state)
            self.seen.append({"gradients": gradients})

        def after_step(self, context, state):
            weights = prunable(context.model)
            entry = self.seen[-1]
            entry |= {"step": state.step, "steps": state.steps}
            entry |= {"before": copies(state.masks), "weights": copies(weights)}
            super().after_step(context, state)
            momentum = {n: state.optimizer.state[w]["momentum_buffer"] for n, w in weights.items()}
            entry |= {"after": copies(state.masks), "left": copies(weights)}
            entry |= {"momentum": copies(momentum)}

    return Spy


class TestGMP:
    @given(
        st.floats(0, 0.9),
        st.floats(0.01, 1),
        st.integers(1, 5000),
        st.floats(0, 0.999),
    )
    def test_the_schedule_is_cubic_between_its_ends(self, begin, width, steps, final):
        method = GMP(begin=begin, end=min(1.0, begin + width))
        first, last = method.span(steps)
        assert 0 <= first < last <= steps
        assert method.sparsity_at(first, steps, final) == 0
        assert method.sparsity_at(last, steps, final) == final
        assert method.sparsity_at(steps, steps, final) == final
        values = [method.sparsity_at(t, steps, final) for t in range(first, last + 1)]
        assert values == sorted(values)
        for t, value in zip(range(first, last + 1), values, strict=True):
            # Zhu & Gupta, equation 1, with s_i = 0.
            share = (t - first) / (last - first)
            assert value == pytest.approx(final + (0 - final) * (1 - share) ** 3, abs=1e-12)

    def test_masks_never_revive_and_end_at_the_exact_count(self):
        method = spying(GMP)(every=1)
        done = train(engine(method, sparsity=0.97))
        total = sum(w.numel() for w in prunable(done.context.model).values())
        kept = [sum(int(m.sum()) for m in e["after"].values()) for e in method.seen]
        for entry in method.seen:
            assert all((entry["after"][n] & ~entry["before"][n]).sum() == 0 for n in entry["after"])
        assert len(set(kept)) > 10
        assert kept == sorted(kept, reverse=True)
        assert kept[-1] == round(0.03 * total)

    def test_it_prunes_the_smallest_weights_of_each_layer_and_their_momentum(self):
        method = spying(GMP)(every=5)
        train(engine(method, sparsity=0.9))
        changed = [
            e
            for e in method.seen
            if any((e["before"][n] != e["after"][n]).any() for n in e["after"])
        ]
        # Two epochs of 11 steps; the span ends at 3/4 of them.
        assert [e["step"] for e in changed] == [5, 10, 15, 16]
        for entry in changed:
            for name, after in entry["after"].items():
                gone = entry["before"][name] & ~after
                if gone.any() and after.any():
                    size = entry["weights"][name].abs()
                    assert size[gone].max() <= size[after].min()
                assert not entry["left"][name][~after].any()
                assert not entry["momentum"][name][~after].any()

    def test_a_last_pruning_reaches_the_sparsity_however_rare_they_are(self):
        done = train(engine(GMP(every=10_000), sparsity=0.9))
        total = sum(m.numel() for m in done.state.masks.values())
        assert sum(int(m.sum()) for m in done.state.masks.values()) == round(0.1 * total)

    def test_bad_spans_are_one_line(self):
        with pytest.raises(ValueError, match="0 <= begin < end <= 1"):
            methods.create("gmp", {"begin": 0.8, "end": 0.5})


@pytest.mark.parametrize("kind", [SET, RigL])
class TestDynamic:
    @given(st.floats(0.05, 0.95), st.floats(0.1, 1), st.integers(10, 100_000))
    def test_the_fraction_falls_as_a_cosine(self, kind, fraction, end, steps):
        method = kind(fraction=fraction, end=end)
        stop = end * steps
        assert method.fraction_at(0, steps) == pytest.approx(fraction)
        assert method.fraction_at(stop / 2, steps) == pytest.approx(fraction / 2)
        assert method.fraction_at(stop, steps) == pytest.approx(0, abs=1e-12)
        third = fraction / 2 * (1 + math.cos(math.pi / 3))
        assert method.fraction_at(stop / 3, steps) == pytest.approx(third)
        constant = kind(fraction=fraction, end=end, anneal="constant")
        assert constant.fraction_at(stop, steps) == fraction

    def test_updates_come_every_so_many_steps_until_the_end(self, kind):
        method = kind(every=100, end=0.75)
        assert [s for s in range(1, 1001) if method.updates_at(s, 1000)] == list(
            range(100, 701, 100)
        )

    def test_an_update_exchanges_exactly_its_share_in_every_layer(self, kind):
        method = spying(kind)(every=3)
        done = train(engine(method, sparsity=0.9))
        updates = 0
        for entry in method.seen:
            due = method.updates_at(entry["step"], entry["steps"])
            updates += due
            share = method.fraction_at(entry["step"], entry["steps"]) if due else 0
            for name, before in entry["before"].items():
                after = entry["after"][name]
                kept, size = int(before.sum()), before.numel()
                assert int(after.sum()) == kept
                moved = min(round(share * kept), size - kept)
                dropped, grown = before & ~after, after & ~before
                assert int(dropped.sum()) == int(grown.sum()) == moved
                assert not entry["left"][name][grown].any()
                assert not entry["momentum"][name][grown].any()
                assert not entry["left"][name][~after].any()
                if moved:
                    size = entry["weights"][name].abs()
                    assert size[dropped].max() <= size[before & after].min()
        assert updates >= 3
        masks = done.state.masks
        assert sum(int(m.sum()) for m in masks.values()) == done.context.kept

    def test_grown_weights_train(self, kind):
        method = spying(kind)(every=3)
        train(engine(method))
        at = next(i for i, e in enumerate(method.seen) if method.updates_at(e["step"], e["steps"]))
        now, later = method.seen[at], method.seen[at + 1]
        grown = {n: now["after"][n] & ~now["before"][n] for n in now["after"]}
        moved = sum(int((later["weights"][n][g] != 0).sum()) for n, g in grown.items())
        assert moved > 0.9 * sum(int(g.sum()) for g in grown.values())

    @pytest.mark.parametrize(
        "option", [{"every": 0}, {"fraction": 1.0}, {"anneal": "linear"}, {"end": 1.5}]
    )
    def test_bad_options_are_one_line(self, kind, option):
        with pytest.raises(ValueError, match=f"option {next(iter(option))}="):
            methods.create(kind.name, option)


class TestGrowth:
    def test_rigl_grows_where_the_dense_gradient_is_largest(self):
        method = spying(RigL)(every=3)
        train(engine(method))
        compared = 0
        for entry in method.seen:
            for name, before in entry["before"].items():
                grown = entry["after"][name] & ~before
                passed = ~before & ~grown
                gradient = entry["gradients"][name].abs()
                assert gradient[~before].numel() == 0 or gradient[~before].any()
                if grown.any() and passed.any():
                    compared += 1
                    assert gradient[grown].min() >= gradient[passed].max()
        assert compared >= 20

    def test_set_grows_anywhere_whatever_the_gradient(self):
        method = spying(SET)(every=3)
        train(engine(method))
        inside = count = 0
        for entry in method.seen:
            for name, before in entry["before"].items():
                grown = entry["after"][name] & ~before
                gradient = entry["gradients"][name].abs()
                if grown.any():
                    inside += int((gradient[grown] > gradient[~before].median()).sum())
                    count += int(grown.sum())
        # Fair draws: half of them above the median, within five standard deviations.
        assert abs(inside - count / 2) < 5 * math.sqrt(count) / 2


class TestL1:
    def test_the_penalty_is_strength_times_the_absolute_sum(self):
        running = engine(L1(strength=0.5))
        next(iter(running.epochs()))
        weights = prunable(running.context.model)
        penalty = running.method.penalty(running.context, running.state)
        torch.testing.assert_close(penalty, 0.5 * sum(w.abs().sum() for w in weights.values()))
        gradients = torch.autograd.grad(penalty, list(weights.values()))
        for gradient, weight in zip(gradients, weights.values(), strict=True):
            torch.testing.assert_close(gradient, 0.5 * weight.detach().sign())

    def test_it_shrinks_weights_and_stops_with_the_first_phase(self):
        norms = {}
        for strength in (0.0, 1e-2):
            done = train(engine(L1(strength=strength, finetune=0), sparsity=0))
            norms[strength] = sum(
                w.abs().sum().item() for w in prunable(done.context.model).values()
            )
        assert norms[1e-2] < 0.9 * norms[0.0]
        done = train(engine(L1(strength=1e-3)))
        assert done.curves["phase"] == ["train", "train", "finetune"]
        assert done.method.penalty(done.context, done.state) is None

    def test_the_largest_weights_of_the_whole_network_stay(self):
        running = engine(L1(finetune=0))
        for _ in running.epochs():
            weights = copies(prunable(running.context.model))
        masks = running.state.masks
        kept = torch.cat([weights[n][m].abs() for n, m in masks.items()])
        gone = torch.cat([weights[n][~m].abs() for n, m in masks.items()])
        assert len(kept) == running.context.kept
        assert kept.min() >= gone.max()


class TestBetterThanRandom:
    @pytest.mark.parametrize(
        "method", [GMP(end=1.0, every=10_000), L1(finetune=0)], ids=["gmp", "l1"]
    )
    def test_weights_kept_after_training_are_better_than_random_ones(self, method):
        # One pruning, after the last step: as many weights a layer, chosen well or at random.
        running = engine(method, epochs=6, sparsity=0.7)
        spared = []
        after_step, end_phase = method.after_step, method.end_phase

        def before(act):
            def acting(*arguments):
                spared.append(copy.deepcopy(running.context.model))
                del spared[:-1]
                act(*arguments)

            return acting

        if isinstance(method, GMP):
            method.after_step = before(after_step)
        else:
            method.end_phase = before(end_phase)
        train(running)
        masks = running.state.masks
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, weight in prunable(spared[0]).items():
                order = torch.randperm(weight.numel(), generator=generator)
                weight.mul_(masks[name].flatten()[order].reshape(weight.shape))
        assert accuracy_of(running.context.model) > accuracy_of(spared[0]) + 0.2

    def test_dynamic_masks_beat_static_masks_at_high_sparsity(self, tmp_path):
        def mean(name, options):
            runs = [
                finished(
                    tmp_path, method=name, method_options=options, sparsity=0.98, epochs=20, seed=s
                )
                for s in (0, 1)
            ]
            return sum(run["test_accuracy"] for run in runs) / 2

        assert mean("set", {"every": 9}) > mean("random", {})


@pytest.mark.parametrize("name", OPTIONS)
class TestThroughTheEngine:
    @pytest.mark.parametrize("beta", [0.0, 1e-3])
    def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(self, name, beta, tmp_path):
        settings = {"method": name, "method_options": OPTIONS[name], "beta": beta}
        whole = finished(tmp_path / "whole", **settings)
        parts, stops = killed(tmp_path / "parts", **settings)
        assert stops == len(whole["curves"]["epoch"])
        assert outcome(parts) == outcome(whole)
        assert whole["sparsity"]["kept"] == round(0.1 * whole["sparsity"]["weights"])
        assert all((term is not None) == (beta > 0) for term in whole["curves"]["term"])

    def test_a_residual_network_trains(self, name, tmp_path):
        settings = {"model": "resnet20", "method": name, "epochs": 1, "batch_size": 256}
        record = finished(tmp_path, **settings, method_options={**OPTIONS[name]})
        assert record["status"] == "finished"
        assert record["sparsity"]["kept"] == round(0.1 * record["sparsity"]["weights"])

    def test_asking_for_no_weight_is_one_line(self, name, tmp_path):
        with pytest.raises(ValueError, match=r"leaves none of 37504 weights"):
            finished(tmp_path, method=name, sparsity=0.99999)
