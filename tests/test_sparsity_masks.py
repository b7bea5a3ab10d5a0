"""Masks: exact counts, keyed by seed and layer alone, and weights held to them in place."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from ckasr.sparsity import (
    Masks,
    allocate,
    global_topk_masks,
    layer_densities,
    prunable,
    random_masks,
    topk_masks,
    weight_owners,
)

SHAPES = {"conv": (8, 3, 3, 3), "block.conv": (8, 8, 3, 3), "fc": (10, 8)}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10)
    )


def masks_of(model: nn.Module, density: float = 0.2, seed: int = 0) -> dict[str, torch.Tensor]:
    shapes = {name: weight.shape for name, weight in prunable(model).items()}
    return random_masks(shapes, layer_densities(shapes, density, "erk"), seed)


WRAPPERS = {
    "data_parallel": nn.DataParallel,
    "compiled": torch.compile,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled data_parallel": lambda model: torch.compile(nn.DataParallel(model)),
}


class TestPrunable:
    @pytest.mark.parametrize(
        ("model", "shapes"),
        [
            (network(), {"0.weight": (8, 3, 3, 3), "4.weight": (10, 128)}),
            (nn.Linear(2, 3), {"weight": (3, 2)}),
            (nn.Bilinear(2, 3, 4), {"weight": (4, 2, 3)}),
            (nn.Sequential(*[nn.Linear(3, 3)] * 2), {"0.weight": (3, 3)}),
            (nn.Embedding(4, 3), {}),
            (
                nn.MultiheadAttention(12, 3),
                {"in_proj_weight": (36, 12), "out_proj.weight": (12, 12)},
            ),
            (
                nn.MultiheadAttention(12, 3, kdim=4, vdim=8),
                {
                    "q_proj_weight": (12, 12),
                    "k_proj_weight": (12, 4),
                    "v_proj_weight": (12, 8),
                    "out_proj.weight": (12, 12),
                },
            ),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_which_weights_count(self, model, shapes):
        weights, parameters = prunable(model), dict(model.named_parameters())
        assert {name: tuple(weight.shape) for name, weight in weights.items()} == shapes
        assert all(weight is parameters[name] for name, weight in weights.items())
        for name, owner in weight_owners(model).items():
            assert getattr(model.get_submodule(owner.layer), owner.attribute) is weights[name]
        if shapes:
            masks = Masks(model, masks_of(model, 0.25))
            masks.apply()
            assert all((w[~masks[name]] == 0).all() for name, w in weights.items())

    def test_layers_that_share_a_weight_count_it_once(self):
        tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        tied[1].weight = tied[0].weight
        assert list(prunable(tied)) == ["0.weight"]

    def test_a_weight_that_was_removed_from_its_layer_is_named(self):
        model = nn.Sequential(nn.Linear(3, 3))
        owner = weight_owners(model)["0.weight"]
        for remove in (
            lambda: setattr(model[0], "weight", None),
            lambda: delattr(model[0], "weight"),
        ):
            remove()
            with pytest.raises(ValueError, match=r"^weight '0\.weight' is no longer a parameter"):
                owner.weight  # noqa: B018

    @pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
    def test_a_wrapped_model_keeps_its_names_and_so_its_random_masks(self, wrap):
        model = network()
        wrapped = wrap(model)
        assert list(prunable(wrapped)) == ["0.weight", "4.weight"]
        for name, mask in masks_of(model).items():
            assert torch.equal(masks_of(wrapped)[name], mask)
        inside = nn.Sequential(wrapped, nn.Linear(10, 2))
        assert list(prunable(inside)) == ["0.0.weight", "0.4.weight", "1.weight"]

    @pytest.mark.parametrize(
        "layer",
        [
            nn.LSTM(3, 4),
            nn.GRUCell(3, 4),
            nn.ConvTranspose2d(2, 3, 2),
            nn.LazyLinear(3),
        ],
        ids=lambda layer: type(layer).__name__,
    )
    def test_a_weight_that_is_not_counted_is_refused_by_name(self, layer):
        with pytest.raises(ValueError, match=f"layer '1.deep' is (a {type(layer).__name__}|not)"):
            prunable(nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"deep": layer})))

    @pytest.mark.parametrize(
        "layer", [prune.identity(nn.Linear(3, 3), "weight"), weight_norm(nn.Linear(3, 3))]
    )
    def test_a_weight_that_is_no_parameter_is_refused(self, layer):
        with pytest.raises(ValueError, match="layer '1' has no plain weight"):
            prunable(nn.Sequential(nn.ReLU(), layer))


class TestRandomMasks:
    @given(st.floats(0, 1), st.sampled_from(["uniform", "er", "erk"]), st.integers(0, 2**40))
    def test_counts_are_exact(self, density, distribution, seed):
        densities = layer_densities(SHAPES, density, distribution)
        masks = random_masks(SHAPES, densities, seed)
        counts = allocate(densities, SHAPES)
        assert {name: int(mask.sum()) for name, mask in masks.items()} == counts
        assert all(
            mask.dtype == torch.bool and tuple(mask.shape) == SHAPES[name]
            for name, mask in masks.items()
        )

    def test_masks_of_a_seed_do_not_depend_on_earlier_random_numbers(self):
        first = random_masks(SHAPES, dict.fromkeys(SHAPES, 0.3), 7)
        torch.manual_seed(123)
        state = torch.random.get_rng_state()
        second = random_masks(SHAPES, dict.fromkeys(SHAPES, 0.3), 7)
        assert all(torch.equal(first[name], second[name]) for name in SHAPES)
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_a_layer_depends_on_its_name_but_not_on_the_others(self):
        densities = dict.fromkeys(SHAPES, 0.25)  # whole counts, so that none is rounded
        whole = random_masks(SHAPES, densities, 3)
        twins = random_masks({"a": (20, 20), "b": (20, 20)}, {"a": 0.5, "b": 0.5}, 0)
        assert not torch.equal(twins["a"], twins["b"])
        for name, shape in SHAPES.items():
            alone = random_masks({name: shape}, densities, 3)
            assert torch.equal(alone[name], whole[name])

    def test_masks_of_one_seed_are_nested_and_others_are_not(self):
        sparse = random_masks(SHAPES, layer_densities(SHAPES, 0.02, "erk"), 5)
        dense = random_masks(SHAPES, layer_densities(SHAPES, 0.3, "erk"), 5)
        other = random_masks(SHAPES, layer_densities(SHAPES, 0.3, "erk"), 6)
        assert all((sparse[name] & ~dense[name]).sum() == 0 for name in SHAPES)
        assert (sparse["block.conv"] & ~other["block.conv"]).any()

    def test_every_weight_is_kept_equally_often(self):
        shapes, draws, density = {"a": (5, 8)}, 4000, 0.25
        times = sum(random_masks(shapes, {"a": density}, s)["a"].double() for s in range(draws))
        # Standardised by the binomial spread; beyond 4.5 standard deviations in 40 weights is a
        # matter of one in 4000 for fair draws, and these draws are fixed by their seeds.
        z = (times - draws * density) / (draws * density * (1 - density)) ** 0.5
        assert z.abs().max() < 4.5

    def test_the_masks_of_a_seed_never_change(self):
        # Records name their masks by the seed alone: another draw would break every pair.
        mask = random_masks({"fc.weight": (4, 8)}, {"fc.weight": 0.25}, 0)["fc.weight"]
        assert mask.flatten().nonzero().flatten().tolist() == [0, 6, 7, 8, 9, 16, 22, 24]


class TestTopk:
    def test_layerwise_and_global_keep_the_highest(self):
        scores = {"a": torch.tensor([[1.0, 5.0], [3.0, 2.0]]), "b": torch.tensor([[4.0, 0.0]])}
        local = topk_masks(scores, {"a": 1, "b": 1})
        assert local["a"].tolist() == [[False, True], [False, False]]
        assert local["b"].tolist() == [[True, False]]
        overall = global_topk_masks(scores, 3)
        assert overall["a"].tolist() == [[False, True], [True, False]]
        assert overall["b"].tolist() == [[True, False]]

    @given(
        st.lists(st.integers(-2, 2), min_size=6, max_size=60), st.data(), st.sampled_from([1, 2])
    )
    def test_ties_go_to_the_first_index(self, values, data, layers):
        count = data.draw(st.integers(0, len(values)))
        scores = {
            str(i): part.float()[None]
            for i, part in enumerate(torch.tensor(values).tensor_split(layers))
        }
        masks = global_topk_masks(scores, count)
        chosen = torch.cat([mask.flatten() for mask in masks.values()])
        expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
        assert chosen.nonzero().flatten().tolist() == sorted(expected)

    def test_infinite_scores_rank_at_the_ends(self):
        scores = {"a": torch.tensor([[0.0, -torch.inf, torch.inf, 1.0]])}
        assert global_topk_masks(scores, 3)["a"].tolist() == [[True, False, True, True]]

    def test_layers_of_different_precision_are_compared_exactly(self):
        scores = {
            "a": torch.tensor([[1.0, 0.5]]),
            "b": torch.tensor([[1 + 1e-12, 1 - 1e-12]], dtype=torch.float64),
        }
        assert global_topk_masks(scores, 1)["b"].tolist() == [[True, False]]
        assert global_topk_masks(scores, 2)["a"].tolist() == [[True, False]]

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: topk_masks({"a": torch.ones(1, 2)}, {}), "no count for layer 'a'"),
            (
                lambda: topk_masks({"a": torch.ones(1, 2)}, {"a": 3}),
                "layer 'a' cannot keep 3 weights: it has 2",
            ),
            (lambda: global_topk_masks({"a": torch.ones(1, 2)}, -1), "the network cannot keep -1"),
            (lambda: global_topk_masks({}, 0), "no scores"),
            (
                lambda: global_topk_masks({"a": torch.tensor([[1.0, torch.nan]])}, 1),
                "score of layer 'a' holds NaN",
            ),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "nesterov": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    ),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


class TestMasks:
    @pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
    def test_weights_and_moments_are_masked_after_every_step_and_nothing_else(self, make):
        model, plain = network().double(), network().double()
        masks = Masks(model, masks_of(model))
        optimizers = make(model.parameters()), make(plain.parameters())
        for step in range(4):
            torch.manual_seed(step)
            images = torch.randn(4, 3, 6, 6).double()
            for net, optimizer in zip((model, plain), optimizers, strict=True):
                optimizer.zero_grad()
                net(images).square().mean().backward()
                optimizer.step()
            masks.apply(optimizers[0])
            with torch.no_grad():
                for name, mask in masks.items():
                    weight = plain.get_parameter(name)
                    for tensor in (weight, *optimizers[1].state[weight].values()):
                        if torch.is_tensor(tensor) and tensor.shape == mask.shape:
                            tensor[~mask] = 0
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours, theirs)
            for key, value in optimizers[0].state[ours].items():
                other = optimizers[1].state[theirs][key]
                assert value is other or torch.equal(value, other)
        assert all((model.get_parameter(name)[mask] != 0).all() for name, mask in masks.items())

    def test_without_the_optimiser_momentum_revives_nothing_but_is_left_alone(self):
        model = network()
        masks = Masks(model, masks_of(model))
        optimizer = OPTIMIZERS["nesterov"](model.parameters())
        model(torch.randn(4, 3, 6, 6)).sum().backward()
        optimizer.step()
        masks.apply()
        weight = prunable(model)["0.weight"]
        pruned = ~masks["0.weight"]
        assert (weight[pruned] == 0).all()
        assert (optimizer.state[weight]["momentum_buffer"][pruned] != 0).any()

    def test_masks_changed_in_place_hold_without_moving_a_tensor(self):
        model = network()
        masks = Masks(model, masks_of(model))
        tensors = [*masks.values(), *masks._factors.values()]
        addresses = [tensor.data_ptr() for tensor in tensors]
        masks["4.weight"].copy_(torch.rand(10, 128) < 0.5)
        masks.refresh()
        masks.update({"0.weight": torch.rand(8, 3, 3, 3) < 0.5})
        torch.nn.init.ones_(model[0].weight)
        torch.nn.init.ones_(model[4].weight)
        masks.apply()
        for name, weight in prunable(model).items():
            assert torch.equal(weight.detach(), masks[name].float())
        assert [tensor.data_ptr() for tensor in tensors] == addresses

    @pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_pruned_weights_become_zero_even_if_they_are_not_finite(self, value, dtype):
        model = network().to(dtype)
        masks = Masks(model, masks_of(model))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        model(torch.randn(4, 3, 6, 6, dtype=dtype)).sum().backward()
        optimizer.step()
        weight, kept = model[4].weight, masks["4.weight"]
        state = optimizer.state[weight]
        tensors = [weight.data, state["exp_avg"], state["exp_avg_sq"]]
        before = [tensor.clone() for tensor in tensors]
        for tensor in tensors:
            tensor[~kept] = value
        masks.apply(optimizer)
        for tensor, old in zip(tensors, before, strict=True):
            assert torch.equal(tensor, torch.where(kept, old, 0))

    def test_a_kept_infinity_stays(self):
        model = nn.Linear(2, 1)
        masks = Masks(model, {"weight": torch.tensor([[True, False]])})
        model.weight.data[:] = torch.inf
        masks.apply()
        assert model.weight.tolist() == [[torch.inf, 0]]

    def test_a_replaced_parameter_is_masked(self):
        model = network()
        masks = Masks(model, masks_of(model))
        addresses = [tensor.data_ptr() for tensor in [*masks.values(), *masks._factors.values()]]
        state = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        masks.apply()
        for name, mask in masks.items():
            assert torch.equal(model.get_parameter(name).detach(), mask.float())
        moved = [tensor.data_ptr() for tensor in [*masks.values(), *masks._factors.values()]]
        assert moved == addresses

    def test_layers_that_shared_a_weight_keep_its_mask_when_they_no_longer_do(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        masks = Masks(model, masks_of(model, 0.5))
        state = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        assert model[0].weight is not model[1].weight
        masks.apply()
        for layer in model:
            assert torch.equal(layer.weight.detach(), masks["0.weight"].float())

    @pytest.mark.parametrize(
        "change",
        [
            lambda layer: setattr(layer, "weight", nn.Parameter(torch.ones(4, 2))),
            weight_norm,
        ],
    )
    def test_a_layer_that_lost_its_weight_is_refused(self, change):
        model = nn.Sequential(nn.Linear(2, 2))
        masks = Masks(model, masks_of(model, 0.5))
        change(model[0])
        with pytest.raises(ValueError, match=r"weight '0\.weight' is no longer a parameter"):
            masks.apply()

    def test_the_masks_given_are_copied(self):
        model = network()
        given_masks = masks_of(model)
        masks = Masks(model, given_masks)
        given_masks["0.weight"].zero_()
        assert masks["0.weight"].any()

    def test_factors_follow_the_memory_format_and_the_size_of_the_type(self):
        model = network().to(memory_format=torch.channels_last, dtype=torch.bfloat16)
        masks = Masks(model, masks_of(model))
        factor = masks._factors["0.weight"]
        assert factor.stride() == model[0].weight.stride()
        assert factor.dtype == torch.int16  # as many bytes: one kernel over all layers
        masks.apply()
        assert (model[0].weight[~masks["0.weight"]] == 0).all()

    def test_an_update_that_does_not_fit_changes_nothing(self):
        model = network()
        masks = Masks(model, masks_of(model))
        before = masks["0.weight"].clone()
        ones = torch.ones_like(before)
        with pytest.raises(ValueError, match="unknown layer 'nope'"):
            masks.update({"0.weight": ones, "nope": ones})
        assert torch.equal(masks["0.weight"], before)
