"""The paper's results on trained networks, tested on the run records of this repository.

Claim: With CKA-SR the layer-by-layer CKA falls with beta, the histogram of weights develops a peak
at zero (figures 1 and 2), and ||W||_F^2 shrinks (summary of the main text).

Statement: In trained networks, as beta grows, the mean CKA between different layers falls, the
fraction of kept weights below 1e-2 rises, and ||W||_F of the kept weights falls.

Assumptions: Only finished runs of the full schedule (160 epochs or more) count. A unit is one
baseline run with all CKA-SR runs that share everything else with it: seed, mask and data order. The
value of a unit is the mean change from a lower to a higher beta over all pairs of its runs. Units
count as independent; the records cannot show whether this holds for different sparsities with the
same seed.

Verdict: With fewer than 14 units the statement is inconclusive, because the smallest p-value of so
few units could not pass Holm's correction. Otherwise exact one-sided Wilcoxon signed-rank tests
decide. It holds numerically if all three measures change as the paper says; it is false
(counterexample) if at least one changes in the opposite direction (two-sided p); it is inconclusive
in all other cases. Scale-free sparsity and effective rank are reported too.
"""

import json
import math
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckasr.experiments.records import load_all
from ckasr.experiments.settings import Settings
from theory.plots import panels, style
from theory.result import (
    ALPHA,
    FALSE,
    HOLDS,
    REFUTES,
    SUPPORTS,
    Condition,
    Result,
    at_least,
    judge,
    rejects,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, Any]
Measure = Callable[[Record], float | None]
RESULTS = Path(__file__).resolve().parents[1] / "results"
LEAST_UNITS = 14
CLAIMED = {"layer CKA": -1, "share below 1e-2": 1, "||W||_F": -1}
"""Direction in which the paper says a measure changes as beta grows: +1 rises, -1 falls."""


def mean_layer_cka(record: Record) -> float | None:
    """Mean CKA of all pairs of different layers; None if the record has no CKA."""
    matrix = (record.get("layer_cka") or {}).get("matrix") or []
    pairs = [matrix[i][j] for i, j in combinations(range(len(matrix)), 2)]
    return sum(pairs) / len(pairs) if pairs else None


def of_weights(name: str) -> Measure:
    """A function that returns the weight statistic ``name`` of a record, or None."""
    return lambda record: (record.get("weights") or {}).get(name)


MEASURES: dict[str, Measure] = {
    "layer CKA": mean_layer_cka,
    "share below 1e-2": of_weights("fraction_below_1e-2"),
    "||W||_F": of_weights("frobenius_norm"),
    "share below 0.1 rms": of_weights("fraction_below_tenth_rms"),
    "Hoyer sparsity": of_weights("hoyer"),
    "effective rank": of_weights("effective_rank"),
}


def found(results: Path) -> list[Record]:
    """All records in ``<results>/*/records``, one per id."""
    folders = sorted(path.parent for path in results.glob("*/records"))
    return list({r["id"]: r for folder in folders for r in load_all(folder)}.values())


def units(records: Iterable[Record]) -> list[list[list[Record]]]:
    """Group the finished runs of the full schedule into units.

    Returns:
        One list of chains per baseline run. A chain is a list of records in the order of beta: the
        baseline and CKA-SR runs that differ from each other in beta only. All ran on one device.
    """
    baselines: dict[str, Record] = {}
    chains: dict[str, dict[str, dict[float, Record]]] = {}
    for record in records:
        settings = Settings.from_dict(record["settings"])
        if record["status"] != "finished" or settings.schedule != "full":
            continue
        if settings.term != "cka_sr":  # The claim is about CKA-SR only.
            continue
        base = settings.baseline().id
        if settings.beta == 0:
            baselines[base] = record
        else:
            term = json.dumps([settings.variant, settings.samples, settings.every, settings.pairs])
            chains.setdefault(base, {}).setdefault(term, {})[settings.beta] = record
    found_units = []
    for base in sorted(chains.keys() & baselines):
        first, unit = baselines[base], []
        for runs in chains[base].values():
            same = [runs[b] for b in sorted(runs) if runs[b].get("device") == first.get("device")]
            unit += [[first, *same]] if same else []
        found_units += [unit] if unit else []
    return found_units


def change(chains: list[list[float]]) -> float:
    """Mean change from a lower to a higher beta, over all pairs of a chain and then over chains.

    Args:
        chains: values of one measure per chain, in the order of beta.
    """
    means = []
    for values in chains:
        steps = [b - a for a, b in combinations(values, 2)]
        means.append(sum(steps) / len(steps))
    return sum(means) / len(means)


def one_sided(changes: list[float], direction: int) -> float:
    """P-value of the null hypothesis that the values do not change in the given direction.

    Args:
        changes: one change per unit.
        direction: +1 for a rise, -1 for a fall.
    """
    from scipy.stats import wilcoxon

    signed = [direction * c for c in changes]
    return float(wilcoxon(signed, alternative="greater").pvalue) if any(signed) else 1.0


def check(
    fast: bool = False,
    seed: int = 0,
    records: Iterable[Record] | None = None,
    measures: dict[str, Measure] | None = None,
    claimed: dict[str, int] | None = None,
) -> Result:
    """Run the check. It uses no random numbers.

    Args:
        fast: has no effect.
        seed: has no effect.
        records: run records; None for all records in ``results/``.
        measures: functions that return one number per record, by name; None for `MEASURES`.
        claimed: direction in which each tested measure should change; None for `CLAIMED`.
    """
    measures, claimed = measures or MEASURES, claimed or CLAIMED
    groups = units(found(RESULTS) if records is None else records)
    changes: dict[str, list[float]] = {}
    relative: dict[str, list[float]] = {}
    for name, measure in measures.items():
        rows = [[[measure(run) for run in chain] for chain in group] for group in groups]
        rows = [row for row in rows if all(None not in chain for chain in row)]
        changes[name] = [change(row) for row in rows]
        starts = [abs(row[0][0]) for row in rows]
        relative[name] = [c / a for c, a in zip(changes[name], starts, strict=True) if a]
    count = min(len(changes[name]) for name in claimed)
    conditions: list[Condition] = [at_least("units of run records", count, LEAST_UNITS)]
    verdict, consequence, reason = HOLDS, SUPPORTS, f"all three as the paper says, in {count} units"
    if count >= LEAST_UNITS:
        against = {n: min(1, 2 * one_sided(changes[n], -d)) for n, d in claimed.items()}
        if contrary := [name for name, p in against.items() if p <= ALPHA]:
            verdict, consequence = FALSE, REFUTES
            reason = f"against the paper, in {count} units: " + ", ".join(
                f"{name} {'falls' if claimed[name] > 0 else 'rises'}" for name in contrary
            )
            conditions += [
                rejects(f"{n} does not change against the claim", against[n]) for n in contrary
            ]
        else:
            conditions += [
                rejects(
                    f"{name} does not {'rise' if d > 0 else 'fall'}", one_sided(changes[name], d)
                )
                for name, d in claimed.items()
            ]
    return judge(
        __name__,
        __doc__,
        conditions,
        verdict=verdict,
        consequence=consequence,
        reason=reason,
        figure={"relative": relative, "claimed": claimed, "units": len(groups)},
    )


def figure(result: Result) -> "Figure | None":
    """The relative change of every unit and its median, per measure; None if there are no units."""
    data = result.figure
    if not data["units"]:
        return None
    drawing, (axis,) = panels(1, width=7.5)
    names = list(data["relative"])
    for place, name in enumerate(names):
        values = sorted(100 * c for c in data["relative"][name])
        spread = [place + 0.25 * math.sin(7 * i) for i in range(len(values))]
        axis.plot(values, spread, "o", color="0.6", markersize=3)
        if values:
            axis.plot([values[len(values) // 2]], [place], **style(0) | {"marker": "|"}, ms=22)
    arrows = {1: " (paper: rises)", -1: " (paper: falls)"}
    labels = [name + arrows.get(data["claimed"].get(name), "") for name in names]
    axis.set_yticks(range(len(names)), labels)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.axvline(0, color="k", linewidth=1)
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlabel("change from a lower to a higher beta, % of the baseline (bar: median)")
    axis.set_title(f"{data['units']} units of run records, full schedule", fontsize="medium")
    return drawing
