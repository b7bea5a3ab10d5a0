"""The figure of information and accuracy against beta and during training."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckasr.storage import write_text

from .cells import BASELINE, Arm, arm_of, power_of_ten
from .information import (
    CRITERION,
    Result,
    first_layer,
    information_effects,
    information_table,
)
from .marks import NOTE, draw_means, draw_seeds
from .style import ARM_LOOKS, BASELINE_LOOK, GUIDE, Look, blank, legend, save, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arms = Mapping[Arm, Sequence[Result]]


@styled
def information_and_accuracy(results: Iterable[Result]) -> "Figure":
    """Draw the information of the noisy layers and the test accuracy against beta.

    The panels show the information of the first noisy layer, both bounds for the last noisy layer,
    the test accuracy, and the information of the first noisy layer against the validation accuracy.
    The last panel shows means over seeds from the first to the last measured epoch, for the largest
    beta of each term.

    Args:
        results: results of ``run_information`` with one sparsity.

    Raises:
        ValueError: if there is no result, or if the sparsities differ.
    """
    import numpy as np

    runs = list(results)
    if len({run["settings"]["sparsity"] for run in runs}) != 1:
        raise ValueError("results of exactly one sparsity are needed")
    arms: dict[Arm, list[Result]] = {}
    for run in runs:
        arms.setdefault(arm_of(run["settings"]), []).append(run)
    entropy = float(np.log(runs[0]["samples"]))
    figure = blank(7.2, 5.6)
    first, last, tested, plane = figure.subplots(2, 2).flat
    _against_beta(first, arms, first_layer)
    first.set_title("first noisy layer")
    first.set_ylabel("I(X; T) (nats)")
    _against_beta(last, arms, lambda run: run["lower"][-1][-1])
    _against_beta(last, arms, lambda run: run["upper"][-1][-1])
    last.set_title("last noisy layer: lower and upper bound")
    last.set_ylabel("bounds of I(X; T) (nats)")
    for axis in (first, last):
        axis.axhline(entropy, **{**GUIDE, "linestyle": (0, (1, 3))})
        axis.set_ylim(-0.02 * entropy, 1.08 * entropy)
    _against_beta(tested, arms, lambda run: 100 * run["test_accuracy"])
    tested.set_title("accuracy without noise")
    tested.set_ylabel("test accuracy (%)")
    _plane(plane, arms)
    count = runs[0]["samples"]
    images = f"X is uniform on {count} training images. Dotted lines show its entropy, log {count}."
    legend(figure, [first], f"{NOTE} {images}")
    return figure


def write_information(folder: Path) -> list[Path]:
    """Write a table and one figure per sparsity for the results in ``folder/information/``.

    Args:
        folder: folder of results.

    Returns:
        The written files; none if there are no results.
    """
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("information/*.json"))]
    if not results:
        return []
    table = folder / "tables" / "information.md"
    write_text(table, f"{information_table(information_effects(results))}\n\n{CRITERION}\n")
    written = [table]
    for sparsity in sorted({result["settings"]["sparsity"] for result in results}):
        runs = [result for result in results if result["settings"]["sparsity"] == sparsity]
        path = folder / "figures" / f"information_s{100 * sparsity:g}.png"
        written += save(information_and_accuracy(runs), path)
    return written


def _look_of(arm: Arm, arms: Arms) -> Look:
    terms = sorted({other.term for other in arms if other != BASELINE})
    return BASELINE_LOOK if arm == BASELINE else ARM_LOOKS[terms.index(arm.term) % len(ARM_LOOKS)]


def _name_of(arm: Arm) -> str:
    return arm.label.partition(",")[0]


def _against_beta(axis: "Axes", arms: Arms, value: Callable[[Result], float]) -> None:
    """Draw a value of every run against beta, with the arms of one beta side by side."""
    betas = sorted({arm.beta for arm in arms})
    terms = sorted({arm.term for arm in arms if arm != BASELINE})
    labelled: set[str] = set()
    for arm in sorted(arms):
        place = float(betas.index(arm.beta))
        if arm != BASELINE:
            place += 0.7 * ((terms.index(arm.term) + 0.5) / len(terms) - 0.5)
        values = [value(run) for run in arms[arm]]
        look, name = _look_of(arm, arms), _name_of(arm)
        draw_seeds(axis, place - 0.06, values, look)
        draw_means(axis, [place + 0.06], [values], look, None if name in labelled else name)
        labelled.add(name)
    axis.set_xticks(range(len(betas)), [power_of_ten(beta) if beta else "0" for beta in betas])
    axis.set_xlabel("β")


def _plane(axis: "Axes", arms: Arms) -> None:
    """Draw information against accuracy during training, as means over seeds.

    The arms are the baseline and the largest beta of each term.
    """
    import numpy as np

    largest = {term: max(a for a in arms if a.term == term) for term in {a.term for a in arms}}
    for arm in sorted({BASELINE, *largest.values()} & set(arms)):
        runs, look = arms[arm], _look_of(arm, arms)
        information = np.mean([[layers[0] for layers in run["lower"]] for run in runs], axis=0)
        accuracy = 100 * np.mean([run["validation_accuracy"] for run in runs], axis=0)
        axis.plot(information, accuracy, **{**look, "markersize": 3})
    axis.set_title("first noisy layer during training, largest β")
    axis.set_xlabel("I(X; T) (nats)")
    axis.set_ylabel("validation accuracy (%)")
