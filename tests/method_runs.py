"""Short trainings on the real digits, for the tests of the methods."""

import time
from pathlib import Path

import torch

from ckasr import data, models
from ckasr.experiments.runs import OutOfTime, run
from ckasr.experiments.settings import Settings
from ckasr.methods import Context, Method, Phase, TrainingState
from ckasr.sparsity import Masks, dense_masks
from ckasr.training import Engine, Recipe, accuracy

BASE = {"dataset": "digits", "model": "resmlp", "validation": 200, "epochs": 2, "sparsity": 0.9}


def finished(folder: Path, **settings):
    """The record of one run through the one door, in one go."""
    return run(Settings(**BASE | settings), folder, device="cpu", progress=None)


def killed(folder: Path, **settings):
    """The same, stopped after every epoch and resumed from the checkpoint; and how often it was."""
    stops = 0
    while True:
        try:
            wanted = Settings(**BASE | settings)
            record = run(wanted, folder, device="cpu", progress=None, deadline=time.monotonic() - 1)
            return record, stops
        except OutOfTime:
            stops += 1


def outcome(record) -> dict:
    """All of a record that does not depend on when and where it was made."""
    there = {"seconds", "started", "peak_memory_bytes", "commit", "versions", "threads", "device"}
    kept = {key: value for key, value in record.items() if key not in there}
    kept["curves"] = {k: v for k, v in record["curves"].items() if k != "seconds"}
    return kept


def engine(method: Method, *, epochs: int = 2, sparsity: float = 0.9, model: str = "resmlp"):
    """An engine ready to run on the digits, its network drawn anew from one seed."""
    digits = data.load("digits")
    torch.manual_seed(0)
    network = models.create(model, num_classes=10, input_shape=digits.input_shape)
    batches = data.ImageBatches(
        digits.train_images,
        digits.train_labels,
        mean=digits.mean,
        std=digits.std,
        batch_size=128,
    )
    context = Context(
        model=network,
        sparsity=sparsity,
        distribution="erk",
        seed=0,
        num_classes=10,
        samples=batches.in_order,
        steps_per_epoch=len(batches),
    )
    return Engine(context, method, Recipe(epochs), batches, seed=0)


def state_of(context: Context, masks: Masks | None = None, phase: str = "train") -> TrainingState:
    """The state of a training that is about to begin, for a hook that is called by itself."""
    optimizer = torch.optim.SGD(context.model.parameters(), lr=0.1, momentum=0.9)
    masks = dense_masks(context.model) if masks is None else masks
    return TrainingState(masks, optimizer, Phase(phase, 1), steps=1)


def train(engine: Engine) -> Engine:
    for _ in engine.epochs():
        pass
    return engine


def accuracy_of(model: torch.nn.Module) -> float:
    """On the digits' test images."""
    digits = data.load("digits")
    images = data.ImageBatches(
        digits.test_images,
        digits.test_labels,
        mean=digits.mean,
        std=digits.std,
        batch_size=1000,
    )
    return accuracy(model, images.in_order(), "fp32")
