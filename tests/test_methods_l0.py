"""L0: gates against their closed forms, the penalty's gradient, and what is left in the end."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_runs import accuracy_of, engine, finished, killed, outcome, train
from torch import nn

from ckasr import methods
from ckasr.methods import METHODS, l0
from ckasr.sparsity import prunable

L0 = METHODS["l0"]
ALPHAS = st.floats(-l0.LIMIT, l0.LIMIT)


def started(method, **settings):
    """An engine one epoch into its training; its network has gates."""
    running = engine(method, **settings)
    next(iter(running.epochs()))
    return running


class TestGates:
    @given(ALPHAS)
    def test_the_probability_is_the_closed_form(self, alpha):
        closed = 1 / (1 + math.exp(-(alpha - 2 / 3 * math.log(0.1 / 1.1))))
        assert l0.open_probability(torch.tensor(alpha, dtype=torch.float64)).item() == (
            pytest.approx(closed, rel=1e-12)
        )

    @pytest.mark.parametrize("alpha", [-3.0, -1.0, 0.0, 0.8, 3.0])
    def test_draws_are_open_as_often_as_the_closed_form_says(self, alpha):
        draws = 200_000
        z = l0.noisy_gate(torch.full((draws,), alpha, dtype=torch.float64))
        assert z.min() >= 0
        assert z.max() <= 1
        p = 1 / (1 + math.exp(-(alpha - 2 / 3 * math.log(0.1 / 1.1))))
        # Within 4.5 standard deviations of a binomial share.
        assert abs((z != 0).double().mean().item() - p) < 4.5 * math.sqrt(p * (1 - p) / draws)
        # z = 1 exactly where the stretched s passes 1: s >= 1 / 1.1 ... by symmetry of (-.1, 1.1).
        q = 1 / (1 + math.exp(-(alpha + 2 / 3 * math.log(0.1 / 1.1))))
        assert abs((z == 1).double().mean().item() - q) < 4.5 * math.sqrt(q * (1 - q) / draws)

    @given(ALPHAS)
    def test_the_gate_at_test_time_has_no_temperature(self, alpha):
        stretched = 1.2 / (1 + math.exp(-alpha)) - 0.1
        gate = l0.test_gate(torch.tensor(alpha, dtype=torch.float64)).item()
        assert gate == pytest.approx(min(1, max(0, stretched)), abs=1e-12)

    def test_noise_has_a_gradient_between_the_ends_and_none_beyond(self):
        alpha = torch.linspace(-4, 4, 10_000, dtype=torch.float64, requires_grad=True)
        z = l0.noisy_gate(alpha)
        z.sum().backward()
        inside = (z > 0) & (z < 1)
        assert (alpha.grad[inside] > 0).all()
        assert not alpha.grad[~inside].any()


@pytest.mark.parametrize("unit", ["weight", "filter"])
class TestPenalty:
    def test_the_expected_density_counts_every_weight_once(self, unit):
        running = started(L0(unit=unit))
        weights = prunable(running.context.model)
        total = sum(w.numel() for w in weights.values())
        expected = 0.0
        for name, weight in weights.items():
            layer = running.context.model.get_submodule(name.removesuffix(".weight"))
            if hasattr(layer, "log_alpha"):
                p = torch.sigmoid(layer.log_alpha - 2 / 3 * math.log(0.1 / 1.1))
                expected += p.expand(weight.shape).sum().item()
            else:
                expected += weight.numel()
        density = running.method.expected_density()
        assert density.item() == pytest.approx(expected / total, rel=1e-5)
        assert hasattr(running.context.model.fc, "log_alpha") == (unit == "weight")

    def test_its_gradient_is_lambda_over_n_times_that_of_the_probability(self, unit):
        strength, images = 3.0, 1437
        running = started(L0(unit=unit, strength=strength), sparsity=0)
        assert len(running.batches.labels) == images
        layer = running.context.model.blocks[0].linear1
        (gradient,) = torch.autograd.grad(
            running.method.penalty(running.context, running.state), [layer.log_alpha]
        )
        p = torch.sigmoid(layer.log_alpha.detach() - 2 / 3 * math.log(0.1 / 1.1))
        behind = layer.weight.numel() / layer.log_alpha.numel()
        torch.testing.assert_close(gradient, strength / images * behind * p * (1 - p))

    def test_gates_have_a_separate_parameter_group(self, unit):
        running = started(L0(unit=unit))
        rest, gates = running.state.optimizer.param_groups
        assert gates["weight_decay"] == 0
        assert rest["weight_decay"] == 5e-4
        count = sum(p.numel() for p in gates["params"])
        assert gates["lr"] == pytest.approx(rest["lr"] * math.sqrt(count))
        everything = sum(p.numel() for p in running.context.model.parameters())
        assert sum(p.numel() for g in (rest, gates) for p in g["params"]) == everything

    def test_log_alpha_stays_in_its_bounds(self, unit):
        running = engine(L0(unit=unit, rate=1000.0, dual_rate=100.0))
        for _ in running.epochs():
            layers = [m for m in running.context.model.modules() if hasattr(m, "log_alpha")]
            alphas = torch.cat([m.log_alpha.detach().flatten() for m in layers])
            assert alphas.abs().max().item() == pytest.approx(math.log(100))


class TestOutcome:
    @pytest.mark.parametrize("unit", ["weight", "filter"])
    def test_the_plain_network_equals_the_gated_one_at_test_time(self, unit):
        running = engine(L0(unit=unit, strength=50.0, rate=3.0), sparsity=0, epochs=8)
        x = next(running.batches.in_order())[0]
        for _ in running.epochs():
            model = running.context.model.eval()
            with torch.no_grad():
                gated = model(x)
        assert not any("log_alpha" in name for name, _ in model.named_parameters())
        assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(x), gated, rtol=1e-4, atol=1e-4)
        kept = sum(int(m.sum()) for m in running.state.masks.values())
        assert 0 < kept < running.context.kept
        for name, weight in prunable(model).items():
            assert not weight[~running.state.masks[name]].any()

    def test_final_pruning_by_gates_keeps_the_exact_number_after_a_short_training(self):
        running = engine(L0(), sparsity=0.95)
        for _ in running.epochs():
            alphas = {
                f"{name}.weight": m.log_alpha.detach().clone()
                for name, m in running.context.model.named_modules()
                if hasattr(m, "log_alpha")
            }
        masks = running.state.masks
        assert sum(int(m.sum()) for m in masks.values()) == running.context.kept
        kept = torch.cat([alphas[n][m] for n, m in masks.items()])
        gone = torch.cat([alphas[n][~m] for n, m in masks.items()])
        assert kept.min() >= gone.max()

    def test_whole_filters_are_pruned_to_at_most_the_target_number(self):
        done = train(engine(L0(unit="filter"), sparsity=0.8))
        masks = done.state.masks
        for name, mask in masks.items():
            rows = mask.flatten(1)
            assert (rows.all(1) | ~rows.any(1)).all()
            assert name != "fc.weight" or mask.all()
        kept = sum(int(m.sum()) for m in masks.values())
        assert done.context.kept - 64 < kept <= done.context.kept

    def test_multiplier_increases_with_open_gates_and_decreases_when_few_are_open(self):
        method = L0()
        running = started(method, sparsity=0.9)
        assert method._multiplier > 0
        with torch.no_grad():
            for layer in method._gated_layers.values():
                layer.log_alpha.fill_(-4)
        method.after_step(running.context, running.state)
        assert method._multiplier == 0

    @pytest.mark.parametrize(("unit", "steps"), [("weight", 22), ("weight", 2200), ("filter", 300)])
    def test_the_multiplier_gains_the_same_over_a_phase_of_any_length(self, unit, steps):
        method = L0(unit=unit, dual_rate=2.0)
        started(method, sparsity=0.8)
        gates = sum(layer.log_alpha.numel() for layer in method._gated_layers.values())
        for density, share in [(1.0, 1.0), (0.41, 1.0), (0.3, 0.5)]:  # asked: 0.2
            gained = steps * method.gain(torch.tensor(density - 0.2), 0.2, steps)
            assert gained.item() == pytest.approx(2 * math.sqrt(gates) * share, rel=1e-5)
        method.dual_per = "step"
        assert method.gain(torch.tensor(0.5), 0.2, steps).item() == 1.0

    def test_gates_close_before_the_final_pruning_after_a_short_training(self):
        """30 epochs of 11 steps; with the same gain in every step, nearly all stay open."""
        ends = {}
        for options in ({}, {"dual_rate": 0.05, "dual_per": "step"}):
            running = engine(L0(**options), sparsity=0.95, epochs=30)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                train(running)
            share = running.method.measured()["open_before_cut"]
            assert ("still had an open gate" in str([w.message for w in caught])) == (share > 0.055)
            ends[running.method.dual_per] = share, accuracy_of(running.context.model)
        assert 0.045 < ends["phase"][0] < 0.055, "and no more than were to close"
        assert ends["phase"][1] > 0.9
        assert ends["step"][0] > 0.9
        assert ends["step"][1] < 0.5

    def test_gates_reach_the_target_sparsity_without_the_final_pruning(self):
        # Long enough for the multiplier to act: what is left for the cut is little.
        method = L0(dual_rate=1.0, rate=3.0)
        running = engine(method, sparsity=0.9, epochs=20)
        for _ in running.epochs():
            density = sum(
                int((l0.test_gate(layer.log_alpha) > 0).sum())
                for layer in method._gated_layers.values()
            )
        assert density < 1.5 * running.context.kept


@pytest.mark.parametrize("options", [{}, {"unit": "filter", "finetune": 0.5}])
class TestThroughTheEngine:
    @pytest.mark.parametrize("beta", [0.0, 1e-3])
    def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(self, options, beta, tmp_path):
        settings = {"method": "l0", "method_options": options, "beta": beta}
        whole = finished(tmp_path / "whole", **settings)
        parts, stops = killed(tmp_path / "parts", **settings)
        assert stops == len(whole["curves"]["epoch"])
        assert outcome(parts) == outcome(whole)
        assert 0.1 < whole["measured"]["open_before_cut"] <= 1
        assert all((term is not None) == (beta > 0) for term in whole["curves"]["term"])

    def test_a_residual_network_trains(self, options, tmp_path):
        settings = {"model": "resnet20", "method": "l0", "epochs": 1, "batch_size": 256}
        record = finished(tmp_path, **settings, method_options=options)
        assert record["status"] == "finished"
        assert record["sparsity"]["kept"] <= round(0.1 * record["sparsity"]["weights"])


class TestImpossible:
    def test_filters_cannot_leave_less_than_the_classifier(self, tmp_path):
        with pytest.raises(ValueError, match="the classifier's 640, which have no gate"):
            finished(tmp_path, method="l0", sparsity=0.99, method_options={"unit": "filter"})

    def test_a_layer_of_another_kind(self):
        running = engine(L0())
        running.context.model.fc.__class__ = type("Special", (nn.Linear,), {})
        with pytest.raises(ValueError, match=r"layer 'fc.weight' is a Special"):
            next(iter(running.epochs()))

    @pytest.mark.parametrize(
        "option", [{"unit": "layer"}, {"droprate": 1.0}, {"rate": 0.0}, {"dual_per": "epoch"}]
    )
    def test_invalid_options_raise_a_one_line_error(self, option):
        with pytest.raises(ValueError, match=f"option {next(iter(option))}="):
            methods.create("l0", option)
