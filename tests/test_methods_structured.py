"""Structured pruning: what is left runs, equals the zeroed network, and is counted in the old."""

import copy
import hashlib
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from method_runs import accuracy_of, engine, finished, killed, outcome, state_of, train
from torch import nn

from ckasr import data, devices, find_stages, methods, models
from ckasr.experiments import Settings
from ckasr.experiments.build import build_engine, term_builder
from ckasr.methods import METHODS, Context
from ckasr.methods.structured import _Channels
from ckasr.sparsity import dense_masks, prunable, report

pytest.importorskip("torch_pruning", reason="needs torch-pruning: pip install 'ckasr[structured]'")
Structured = METHODS["structured"]
SHAPES = {
    "resnet20": (3, 16, 16),
    "resnet20_a": (3, 16, 16),
    "resmlp": (1, 8, 8),
    "lenet300": (1, 8, 8),
}


def trained(name: str, seed: int = 0) -> nn.Module:
    """A network with weights and statistics no two of which are alike."""
    torch.manual_seed(seed)
    model = models.create(name, num_classes=10, input_shape=SHAPES[name])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.2)
    return model.eval()


def context(model: nn.Module, name: str, sparsity: float) -> Context:
    batch = (torch.randn(8, *SHAPES[name]), torch.arange(8))
    return Context(model, sparsity, "erk", 0, 10, lambda: iter([batch]), steps_per_epoch=1)


def pruned(name: str, sparsity: float, criterion: str = "group", seed: int = 0):
    """The original, the pruned network, the method and its context."""
    model = trained(name, seed)
    original = copy.deepcopy(model)
    method, seen = Structured(criterion=criterion), context(model, name, sparsity)
    method.prepare(seen)
    method.end_phase(seen, state_of(seen, phase="pretrain"))
    return original, model, method, seen


def zeroed(original: nn.Module, masks) -> nn.Module:
    with torch.no_grad():
        for name, weight in prunable(original).items():
            weight.mul_(masks[name])
    return original


class TestRemoval:
    @pytest.mark.parametrize("name", SHAPES)
    @pytest.mark.parametrize("criterion", ["l1", "group"])
    def test_the_small_network_equals_the_zeroed_one(self, name, criterion):
        original, model, method, seen = pruned(name, 0.7, criterion)
        _, masks = method.counted(seen, {})
        x = torch.randn(4, *SHAPES[name])
        with torch.no_grad():
            torch.testing.assert_close(
                model.eval()(x), zeroed(original, masks)(x), rtol=1e-4, atol=1e-4
            )
        small = sum(w.numel() for w in prunable(model).values())
        assert (
            small
            == sum(int(m.sum()) for m in masks.values())
            < 0.31 * sum(m.numel() for m in masks.values())
        )

    @pytest.mark.parametrize("dimensions", [1, 3])
    def test_other_dimensions(self, dimensions):
        conv, norm, pool = (
            getattr(nn, f"{kind}{dimensions}d") for kind in ("Conv", "BatchNorm", "AdaptiveAvgPool")
        )
        torch.manual_seed(0)
        model = nn.Sequential(
            conv(2, 8, 3), norm(8), nn.ReLU(), conv(8, 6, 2), nn.ReLU(), pool(1), nn.Flatten(),
            nn.Linear(6, 4),
        ).eval()  # fmt: skip
        original, x = copy.deepcopy(model), torch.randn(4, 2, *[5] * dimensions)
        batch = (x, torch.arange(4))
        seen = Context(model, 0.6, "erk", 0, 4, lambda: iter([batch]), steps_per_epoch=1)
        method, asked = Structured(criterion="l1"), seen.kept
        method.prepare(seen)
        method.end_phase(seen, state_of(seen, phase="pretrain"))
        masks = method.counted(seen, {})[1]
        assert sum(w.numel() for w in prunable(model).values()) <= asked
        assert sum(int(mask.sum()) for mask in masks.values()) <= asked
        with torch.no_grad():
            torch.testing.assert_close(model(x), zeroed(original, masks)(x))

    @hypothesis_settings(max_examples=12)
    @given(st.floats(0, 0.99), st.integers(0, 3))
    def test_no_more_weights_are_left_than_asked_for_and_one_channel_more_would_be(
        self, sparsity, seed
    ):
        original, model, _, _ = pruned("resmlp", sparsity, seed=seed)
        kept = sum(w.numel() for w in prunable(model).values())
        asked = context(original, "resmlp", sparsity).kept
        # A channel of the stream goes through at most 64 + 9 * 64 + 10 weights.
        assert asked - (64 + 9 * 64 + 10) < kept <= asked

    def test_channels_are_removed_by_their_importance_in_the_whole_network(self):
        original, _, method, seen = pruned("lenet300", 0.8, "l1")
        _, masks = method.counted(seen, {})
        gone, stayed = [], []
        for name in ("hidden.0.linear.weight", "hidden.1.linear.weight"):
            weight = prunable(original)[name]
            norm = weight.abs().sum(1)
            norm = norm / norm.mean()
            alive = masks[name].any(1)
            gone.append(norm[~alive])
            stayed.append(norm[alive])
        assert torch.cat(gone).max() <= torch.cat(stayed).min() * (1 + 1e-6)

    def test_the_batch_norm_criterion_takes_the_smallest_scales(self):
        original, _, method, seen = pruned("resnet20", 0.5, "bn")
        _, masks = method.counted(seen, {})
        gone, stayed = [], []
        for name, block in original.named_modules():
            if hasattr(block, "conv1") and name:
                alive = masks[f"{name}.conv1.weight"].flatten(1).any(1)
                gone.append(block.bn1.weight[~alive])
                stayed.append(block.bn1.weight[alive])
        assert torch.cat(gone).max() <= torch.cat(stayed).min()

    def test_a_padded_shortcut_keeps_its_stream_whole(self):
        _, model, _, _ = pruned("resnet20_a", 0.9)
        assert [s[0].conv2.out_channels for s in (model.layer1, model.layer2, model.layer3)] == [
            16,
            32,
            64,
        ]
        assert model.layer3[0].conv1.out_channels < 64

    def test_a_channel_ratio_is_not_a_weight_sparsity(self):
        # Half the channels are about three quarters of the weights: that is what we do not do.
        _, model, method, seen = pruned("resnet20", 0.75)
        original, masks = method.counted(seen, {})
        counted = report(original, masks, SHAPES["resnet20"])
        assert counted["nominal"] == pytest.approx(0.75, abs=0.01)
        assert counted["nominal"] >= 0.75 - 1e-5
        assert counted["effective_kept"] == counted["kept"]
        small = report(model, dense_masks(model), SHAPES["resnet20"])
        assert counted["macs"] == small["macs"] == small["macs_dense"] < counted["macs_dense"]
        assert counted["filters"] - counted["dead_filters"] == small["filters"]

    def test_important_channels_are_worth_more_than_random_ones(self):
        running = engine(Structured(finetune=0), epochs=6, sparsity=0.4)
        for _ in running.epochs():
            spared = copy.deepcopy(running.context.model)
        generator = torch.Generator().manual_seed(0)
        theirs = context(spared, "resmlp", 0.4)
        channels = _Channels(theirs)
        scores = channels.importance("group")
        channels.remove(
            channels.least_important(
                {n: torch.rand(len(s), generator=generator) for n, s in scores.items()}
            )
        )
        assert accuracy_of(running.context.model) > accuracy_of(spared) + 0.1


class TestPhases:
    @pytest.mark.parametrize(
        ("term", "acts"),
        [
            ("both", {"pretrain", "finetune"}),
            ("pretrain", {"pretrain"}),
            ("finetune", {"finetune"}),
        ],
    )
    def test_cka_sr_acts_in_the_chosen_phases_only(self, term, acts, tmp_path):
        record = finished(tmp_path, method="structured", beta=1e-3, method_options={"term": term})
        curves = record["curves"]
        assert curves["phase"] == ["pretrain", "pretrain", "finetune"]
        on = {p for p, t in zip(curves["phase"], curves["term"], strict=True) if t is not None}
        assert on == acts

    def test_cka_sr_compares_the_same_layers_after_layers_became_unlike(self):
        """Of the pruned VGG no two layers have one shape, so its stages cannot be found again."""
        settings = Settings(
            dataset="digits",
            model="vgg16",
            method="structured",
            beta=1e-3,
            epochs=1,
            sparsity=0.5,
            batch_size=16,
            validation=0,
        )
        digits = data.load("digits")
        few = replace(
            digits, train_images=digits.train_images[:32], train_labels=digits.train_labels[:32]
        )
        running = build_engine(settings, few, devices.find("cpu"))
        stages = find_stages(running.context.model)
        curves = train(running).curves
        assert curves["phase"] == ["pretrain", "finetune"]
        assert all(value > 3 * len(stages) for value in curves["term"])
        with pytest.raises(ValueError, match="no stages"):
            find_stages(running.context.model)

    def test_cka_sr_of_a_network_without_stages_is_refused_before_any_training(self):
        with pytest.raises(ValueError, match="no stages of residual blocks found in Linear"):
            term_builder(Settings(beta=1e-3), nn.Linear(4, 2))
        assert term_builder(Settings(), nn.Linear(4, 2)) is None

    def test_fine_tuning_mends_what_the_removal_broke(self):
        losses = {}
        for share in (0.5, 4.0):
            done = train(engine(Structured(finetune=share), sparsity=0.6, epochs=4))
            losses[share] = done.curves["loss"][-1]
        assert losses[4.0] < losses[0.5]

    def test_a_penalty_on_the_scales_acts_in_pre_training_only(self):
        method = Structured(gamma_l1=0.1)
        running = engine(method)
        for entry in running.epochs():
            penalty = method.penalty(running.context, running.state)
            if entry["phase"] == "finetune":
                assert penalty is None
            else:
                norms = [
                    m for m in running.context.model.modules() if isinstance(m, nn.BatchNorm1d)
                ]
                torch.testing.assert_close(penalty, 0.1 * sum(m.weight.abs().sum() for m in norms))


class TestThroughTheEngine:
    @pytest.mark.parametrize("beta", [0.0, 1e-3])
    def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(self, beta, tmp_path):
        settings = {"method": "structured", "beta": beta, "method_options": {"finetune": 1.0}}
        whole = finished(tmp_path / "whole", **settings)
        parts, stops = killed(tmp_path / "parts", **settings)
        assert stops == len(whole["curves"]["epoch"]) == 4
        assert outcome(parts) == outcome(whole)

    @pytest.mark.parametrize("model", ["resnet20", "resnet20_a"])
    def test_a_residual_network_trains(self, model, tmp_path):
        settings = {"model": model, "method": "structured", "epochs": 1, "batch_size": 256}
        record = finished(tmp_path, **settings, sparsity=0.7)
        assert record["status"] == "finished"
        assert record["sparsity"]["nominal"] == pytest.approx(0.7, abs=0.01)

    def test_pretrained_weights_take_the_place_of_pre_training(self, tmp_path, monkeypatch):
        torch.manual_seed(3)
        model = models.create("resmlp", num_classes=10, input_shape=(1, 8, 8))
        (tmp_path / "weights").mkdir()
        torch.save(model.state_dict(), tmp_path / "weights" / "plain.pt")
        data = (tmp_path / "weights" / "plain.pt").read_bytes()
        name = f"resmlp-{hashlib.sha256(data).hexdigest()[:8]}.pt"
        (tmp_path / "weights" / "plain.pt").rename(tmp_path / "weights" / name)
        monkeypatch.setenv("CKASR_DATA", str(tmp_path))
        settings = {"method": "structured", "method_options": {"weights": name, "finetune": 1.0}}
        whole = finished(tmp_path / "whole", **settings)
        assert whole["curves"]["phase"] == ["finetune", "finetune"]
        parts, stops = killed(tmp_path / "parts", **settings)
        assert stops == 2
        assert outcome(parts) == outcome(whole)


class TestImpossible:
    def test_more_than_one_channel_a_group(self, tmp_path):
        with pytest.raises(ValueError, match=r"one channel left in each group 82 remain"):
            finished(tmp_path, method="structured", sparsity=0.999)
        assert not list(tmp_path.rglob("*.pt"))

    def test_a_missing_file_and_a_missing_package_are_one_line(self, tmp_path, monkeypatch):
        options = {"weights": "nowhere-12345678.pt"}
        with pytest.raises(FileNotFoundError, match=r"weights nowhere-12345678\.pt are missing"):
            finished(tmp_path, method="structured", method_options=options)
        monkeypatch.setitem(sys.modules, "torch_pruning", None)
        with pytest.raises(ModuleNotFoundError, match="needs the package torch-pruning"):
            finished(tmp_path, method="structured")

    def test_layers_that_cannot_lose_channels_are_refused_by_name(self):
        tied = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64))
        tied[2].weight = tied[1].weight
        attention = nn.Sequential(nn.MultiheadAttention(64, 2), nn.Linear(64, 10))
        for model, message in (
            (tied, "layer '2' shares its weight with another"),
            (attention, "weight '0.in_proj_weight' belongs to a MultiheadAttention"),
            (nn.Conv2d(4, 4, 1, groups=2), "layer 'weight' is a grouped convolution"),
        ):
            with pytest.raises(ValueError, match=message):
                Structured().prepare(context(model, "lenet300", 0.5))

    def test_scales_where_there_are_none(self):
        with pytest.raises(ValueError, match="no batch norm follows"):
            pruned("lenet300", 0.5, "bn")

    @pytest.mark.parametrize(
        "options",
        [
            {"criterion": "l2"},
            {"term": "never"},
            {"weights": "a.pt", "term": "pretrain"},
            {"weights": "a.pt", "finetune": 0.0},
            {"gamma_l1": -1.0},
        ],
    )
    def test_bad_options_are_one_line(self, options):
        with pytest.raises(ValueError, match=f"option {list(options)[-1]}="):
            methods.create("structured", options)
