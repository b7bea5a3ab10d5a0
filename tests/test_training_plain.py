"""The engine against a plain loop, the learning rates of a recipe, and the accuracy."""

import copy
from functools import partial

import pytest
import torch
from method_runs import engine, train
from torch import Tensor, nn

from ckasr import CKASR, methods, terms
from ckasr.methods import Phase
from ckasr.training import Recipe, accuracy

TERM = {"variant": "official", "samples": 8, "every": 2, "pairs": None}


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_the_engine_trains_as_a_plain_loop_does(beta):
    made = engine(methods.create("random"))
    made.recipe = Recipe(2, learning_rate=0.05, milestones=(0.5,))  # after the first epoch
    made.make_term = partial(terms.create, "cka_sr", beta=beta, **TERM) if beta else None
    model = copy.deepcopy(made.context.model)
    train(made)
    masks = made.state.masks
    assert 0 < sum(int(mask.sum()) for mask in masks.values()) == made.context.kept

    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    weights = {name: p for name, p in model.named_parameters() if name in masks}

    @torch.no_grad()
    def mask_all() -> None:
        for name, weight in weights.items():
            weight.mul_(masks[name])
            if (momentum := optimizer.state[weight].get("momentum_buffer")) is not None:
                momentum.mul_(masks[name])

    mask_all()
    losses = []
    for epoch, rate in enumerate((0.05, 0.005)):
        optimizer.param_groups[0]["lr"] = rate
        reg = CKASR(model, beta, samples=8, every=2) if beta else None
        for x, y in made.batches.epoch(epoch):
            loss = nn.functional.cross_entropy(model(x), y)
            losses.append(loss.item())
            optimizer.zero_grad()
            (loss if reg is None else loss + reg()).backward()
            optimizer.step()
            mask_all()
        if reg is not None:
            reg.remove()
    per_epoch = torch.tensor(losses).view(2, -1).mean(1).tolist()
    assert made.curves["loss"] == pytest.approx(per_epoch, rel=1e-4)
    for name, parameter in made.context.model.named_parameters():
        expected = model.get_parameter(name)
        torch.testing.assert_close(parameter, expected, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("phase", "rates"),
    [
        (Phase("a", 8), [1.0] * 4 + [0.1] * 2 + [0.01] * 2),
        (Phase("shares are rounded down", 5), [1.0] * 2 + [0.1] + [0.01] * 2),
        (Phase("own rate", 4, learning_rate=0.2), [0.2] * 2 + [0.02] + [0.002]),
        (Phase("constant", 3, constant=True), [1.0] * 3),
    ],
    ids=lambda value: value.name if isinstance(value, Phase) else "",
)
def test_the_learning_rate_of_each_epoch(phase, rates):
    recipe = Recipe(99, learning_rate=1.0, milestones=(0.5, 0.75), decay=0.1)
    assert [recipe.rate(phase, epoch) for epoch in range(phase.epochs)] == pytest.approx(rates)


class FirstInput(nn.Module):
    """Predicts the class that the first input names, and is wrong while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        shift = 1 if self.training else 0
        return nn.functional.one_hot((x[:, 0].long() + shift) % 3, 3).float()


@pytest.mark.parametrize("training", [True, False])
def test_accuracy_counts_samples_in_eval_mode_and_restores_the_mode(training):
    model = FirstInput().train(training)
    batches = [
        (torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 1, 1])),
        (torch.tensor([[2.0]]), torch.tensor([0])),
    ]
    assert accuracy(model, batches, "fp32") == 0.5
    assert model.training == training
