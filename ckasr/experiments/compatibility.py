"""Which method runs on which model: a training of two steps each, and the table of the outcomes.

    python -m ckasr.experiments.compatibility              # all models
    python -m ckasr.experiments.compatibility vit vgg16    # some

The outcome of each cell is written to results/compatibility.json at once, so that an interrupted
command resumes where it stopped. Delete that file after a change of the code. The table is
results/compatibility.md.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from ckasr import methods, models, terms
from ckasr.data import Batches, load
from ckasr.execution import sparse_execution
from ckasr.models.resnet import DEPTHS
from ckasr.sparsity import prunable, random_masks, report
from ckasr.stages import find_stages
from ckasr.tasks import IMAGE_CLASSIFICATION
from ckasr.training import Engine, Recipe

SHAPE = (1, 8, 8)
CLASSES = 10
SPARSITY = 0.5

EXTERNAL = ("torchvision:shufflenet_v2_x0_5", "timm:resnet10t")
"""One example of each library."""
_CIFAR_RESNETS = ("resnet20", "resnet20_a", "resnet32_w32")
"""The family differs in depth and width only, apart from the shortcut of ``_a``."""
_TEXTS = {"text_transformer"}
"""It reads tokens, and the table is made with images."""
_SKIPPED = _TEXTS | {
    f"resnet{depth}{suffix}" for depth in DEPTHS for suffix in ("", "_a", "_w32", "_w32_a")
}.difference(_CIFAR_RESNETS)
MODELS = (*(name for name in models.names() if name not in _SKIPPED), *EXTERNAL)

OPTIONS: dict[str, dict[str, object]] = {
    "snip": {"samples": 1},
    "grasp": {"samples": 1},
    "synflow": {"steps": 2},
    "lth": {"levels": str(SPARSITY)},
    "gmp": {"every": 1},
    "set": {"every": 1},
    "rigl": {"every": 1},
}
"""Options that make a method act within two steps."""


def smoke(model: str, method: str) -> None:
    """Train a model with a method for two steps of 15 digits in each phase.

    CKA-SR is on where the model has stages.

    Raises ValueError or ModuleNotFoundError, with a message of one line, for a pair that is
    refused, and RuntimeError where more weights are left than were asked for.
    """
    context = _context(model, method)
    acting = methods.create(method, OPTIONS.get(method))
    has_stages = outcome(partial(stages, model)).startswith("yes")
    found = find_stages(context.model) if has_stages else None  # before the method changes it
    term = partial(terms.create, "cka_sr", beta=1e-4, every=1, samples=None, stages=found)
    engine = Engine(
        context,
        acting,
        Recipe(epochs=1, learning_rate=0.01),
        _batches(),
        seed=0,
        make_term=term if has_stages else None,
    )
    allowed = context.kept
    for _ in engine.epochs():
        pass
    _, masks = acting.counted(context, engine.state.masks)
    left = sum(int(mask.sum()) for mask in masks.values())
    if left > allowed:
        raise RuntimeError(f"{method} leaves {left} weights of {model}, {allowed} were asked for")


def sparse_share(model: str) -> str:
    """How much of a model sparse execution computes; checks it against the dense network.

    Raises RuntimeError where the logits differ, ModuleNotFoundError without numba.
    """
    import numba  # noqa: F401 - without it everything would run dense, with a warning

    network = _network(model)
    masks = _masks(network)
    weights = prunable(network)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.mul_(masks[name])
    images, _ = next(_batches().in_order())
    network.eval()
    with torch.no_grad():
        expected = network(images)
        with sparse_execution(network, masks) as handle:
            found = network(images)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise RuntimeError(f"sparse execution of {model} gives other logits than dense execution")
    followed = sum(weights[name].numel() for name in handle.followed)
    share = followed / sum(weight.numel() for weight in weights.values())
    return f"{len(handle.followed)} of {len(weights)} layers, {share:.1%} of the weights"


def stages(model: str) -> str:
    """How many blocks CKA-SR finds in each stage; ValueError where it finds none."""
    return "yes: " + ", ".join(str(len(stage)) for stage in find_stages(_network(model)))


def reported(model: str) -> str:
    """Follow the model's paths as a run record does; ValueError where that is impossible."""
    network = _network(model)
    report(network, _masks(network), SHAPE)
    return "yes"


def table(outcomes: dict[str, dict[str, str]]) -> str:
    """The outcomes of all models as Markdown; refusals are numbered and listed below it."""
    notes: list[str] = []

    def cell(text: str) -> str:
        if not text.startswith(("refused", "fails")):
            return text
        if text not in notes:
            notes.append(text)
        return f"{text.partition(':')[0]} ({notes.index(text) + 1})"

    lines = [
        "# Which method runs on which model",
        "",
        "Made by `python -m ckasr.experiments.compatibility`: each pair was trained for two",
        "steps in each phase, at a sparsity of 50 %, on 8x8 digits, with CKA-SR where the model",
        "has stages of blocks (their lengths are given). Sparse execution is on a CPU, with 10 %",
        "of the weights kept. The CIFAR ResNets of other depths are like `resnet20`.",
        "",
        "| model | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for model, row in outcomes.items():
        cells = [cell(row.get(column, "not run")) for column in COLUMNS]
        lines.append(f"| `{model}` | " + " | ".join(cells) + " |")
    lines += ["", *(f"{k}. {note}" for k, note in enumerate(notes, 1))]
    return "\n".join(lines).rstrip() + "\n"


def main(words: list[str] | None = None) -> None:
    """Fill in the outcomes of the models named, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS), help="default: all")
    parser.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args(words)
    kept = given.results / "compatibility.json"
    outcomes: dict[str, dict[str, str]] = json.loads(kept.read_text()) if kept.exists() else {}
    for model in given.models:
        row = outcomes.setdefault(model, {})
        for column, measure in COLUMNS.items():
            if column not in row:
                row[column] = outcome(partial(measure, model))
                print(f"{model} {column}: {row[column]}", flush=True)
                kept.write_text(json.dumps(outcomes, indent=1) + "\n")
    others = [model for model in outcomes if model not in MODELS]
    text = table({model: outcomes.get(model, {}) for model in [*MODELS, *others]})
    (given.results / "compatibility.md").write_text(text)


def outcome(measure: Callable[[], str]) -> str:
    """What a measurement returns, "refused: ..." for a refusal, "fails: ..." for a defect."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return measure()
    except (ValueError, ModuleNotFoundError) as refusal:
        return f"refused: {refusal}"
    except Exception as error:
        line = (str(error).strip() or "no message").splitlines()[0]
        return f"fails: {type(error).__name__}: {line}"


def _parameters(model: str) -> str:
    return f"{sum(p.numel() for p in _network(model).parameters()) / 1e6:.2f}"


def _trained(method: str, model: str) -> str:
    smoke(model, method)
    return "yes"


def _network(model: str) -> nn.Module:
    torch.manual_seed(0)
    return models.create(model, num_classes=CLASSES, input_shape=SHAPE)


def _masks(network: nn.Module) -> dict[str, torch.Tensor]:
    shapes = {name: tuple(weight.shape) for name, weight in prunable(network).items()}
    return random_masks(shapes, dict.fromkeys(shapes, 0.1), seed=0)


def _context(model: str, method: str) -> methods.Context:
    return methods.Context(
        model=_network(model),
        sparsity=0.0 if method == "dense" else SPARSITY,
        distribution="erk",
        seed=0,
        num_classes=CLASSES,
        samples=_batches().in_order,
        steps_per_epoch=len(_batches()),
        task=IMAGE_CLASSIFICATION,
    )


@cache
def _batches() -> Batches:
    """Three images of each class, 15 in a batch."""
    digits = load("digits")
    index = torch.cat([(digits.train_labels == c).nonzero()[:3, 0] for c in range(CLASSES)])
    index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))]
    return digits.train_batches(index, batch_size=15, augment="none")


COLUMNS: dict[str, Callable[[str], str]] = {
    "million parameters": _parameters,
    "CKA-SR": stages,
    "report": reported,
    "sparse execution": sparse_share,
    **{method: partial(_trained, method) for method in methods.METHODS},
}
"""What is measured of each model, by the heading of the column."""


if __name__ == "__main__":
    main()
