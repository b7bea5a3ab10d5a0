"""What the term does to layers and weights: hypotheses H2 and H3 of results/PLAN.md.

The similarity of layers is ``layer_cka`` of the records. It is measured after the last epoch with
the same estimator and on the same images for both arms. The term itself cannot be used, because a
baseline does not compute it.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import mean

from .cells import BASELINE, Arm, Cell, Record, cell_title, cells
from .statistics import Comparison, compare, compare_sides
from .tables import NOTHING, markdown
from .verdict import COLLAPSE, learned, usable_interval

HOLDS = "holds here"
IN_PART = "holds in part here"
FAILS = "does not hold here"
UNDECIDED = "undecided"
UNTESTED = "not tested: the network without the term is at chance"


@dataclass(frozen=True)
class Quantity:
    """A quantity that is computed from one record.

    Attributes:
        name: name of the column of the table.
        label: label of the axis of the figure.
        read: function that returns the value of a record, or None if it was not measured.
        digits: number of decimals in the table.
    """

    name: str
    label: str
    read: Callable[[Record], float | None]
    digits: int = 3


def mean_similarity(record: Record) -> float | None:
    """Return the mean CKA over all pairs of different layers, with the stem.

    Args:
        record: the record of a run.

    Returns:
        The mean, or None if CKA was not measured.
    """
    return _mean_over_pairs(record, lambda first, second: True)


def stage_similarity(record: Record) -> float | None:
    """Return the mean CKA over the pairs of blocks in the same stage, without the stem.

    These are the pairs that the term sums.

    Args:
        record: the record of a run.

    Returns:
        The mean, or None if CKA was not measured or if no stage has two blocks.
    """
    return _mean_over_pairs(
        record,
        lambda first, second: (
            "." in first and first.rpartition(".")[0] == second.rpartition(".")[0]
        ),
    )


def _mean_over_pairs(record: Record, wanted: Callable[[str, str], bool]) -> float | None:
    measured = record["layer_cka"]
    if not measured:
        return None
    names, matrix = measured["layers"], measured["matrix"]
    pairs = [(i, j) for i in range(len(names)) for j in range(i) if wanted(names[i], names[j])]
    # A layer with a constant output has no CKA, not even with itself: its entries are 0 or null.
    if not pairs or not all(matrix[i][i] and matrix[j][j] for i, j in pairs):
        return None
    return mean(matrix[i][j] for i, j in pairs)


def _weight(name: str) -> Callable[[Record], float | None]:
    return lambda record: (record["weights"] or {}).get(name)


SIMILARITY = Quantity("CKA of all layers", "mean CKA\nof all layers", mean_similarity)
IN_STAGES = Quantity("CKA within stages", "mean CKA\nwithin stages", stage_similarity)
NORM = Quantity("norm of weights", "Frobenius norm\nof all weights", _weight("frobenius_norm"), 2)
NEAR_ZERO = Quantity(
    "share of weights below 0.01", "share of weights\nbelow 0.01", _weight("fraction_below_1e-2"), 4
)
NEAR_ZERO_SCALED = Quantity(
    "share of weights below rms / 10",
    "share of weights\nbelow rms / 10",
    _weight("fraction_below_tenth_rms"),
    4,
)
RANK = Quantity("effective rank", "effective rank,\nmean of layers", _weight("effective_rank"), 2)
QUANTITIES = (SIMILARITY, IN_STAGES, NORM, NEAR_ZERO, NEAR_ZERO_SCALED, RANK)

COLUMNS = ("arm", "pairs", *(quantity.name for quantity in QUANTITIES))

LEGEND = f"""\
Quantities are measured after the last epoch. The row of the baseline shows means over seeds. The \
rows of the other arms show mean paired differences to the baseline, with their 95 % Student-t \
intervals. CKA is unbiased and pooled over minibatches, which contain the same images in both \
arms. *Within stages* are the pairs that the term sums; *all layers* includes the stem and pairs \
of different stages. The share of weights below 0.01 depends on the scale of the weights, and the \
share below a tenth of the root mean square of the layer does not. Effective rank: participation \
ratio of the squared singular values of a layer.

H2: the CKA of all layers is lower with the term, and lower at a larger beta than at a smaller \
one. H3: more weights are below 0.01, and the norm is smaller. A part of a hypothesis is met if \
the whole interval has the predicted sign. The verdict is *{HOLDS}* if every part is met at every \
beta, *{FAILS}* if none is met, *{IN_PART}* if some are met, and *{UNDECIDED}* with fewer than 3 \
pairs, without an interval, or if too many runs diverged. Arms that lose more than \
{100 * COLLAPSE:g} points of accuracy are excluded, because a network that does not classify can \
have dissimilar layers for other reasons.
"""


@dataclass(frozen=True)
class Part:
    """One statement of a hypothesis: a difference, and its predicted sign.

    Attributes:
        text: the statement as text.
        comparison: paired differences of the quantity.
        sign: -1 if the differences are predicted to be negative, 1 if positive.
    """

    text: str
    comparison: Comparison
    sign: int

    @property
    def undecided(self) -> bool:
        """Whether there are too few pairs for a verdict."""
        return usable_interval(self.comparison) is None

    @property
    def met(self) -> bool:
        """Whether the whole interval has the predicted sign."""
        interval = self.comparison.t_interval
        return not self.undecided and interval is not None and self._inside(interval)

    def _inside(self, interval: tuple[float, float]) -> bool:
        return interval[1] < 0 if self.sign < 0 else interval[0] > 0


@dataclass(frozen=True)
class Hypothesis:
    """H2 or H3 in one cell.

    Attributes:
        name: name in results/PLAN.md.
        verdict: one of the verdicts that `LEGEND` defines.
        parts: the statements of the hypothesis.
        left_out: the arms that were left out, with the reason.
    """

    name: str
    verdict: str
    parts: tuple[Part, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The verdict and the parts that are met, in one sentence."""
        groups = {
            "met": [part.text for part in self.parts if part.met],
            "not met": [part.text for part in self.parts if not part.met and not part.undecided],
            "undecided": [part.text for part in self.parts if part.undecided],
        }
        told = [f"{word}: {', '.join(texts)}" for word, texts in groups.items() if texts]
        told += [f"excluded: {', '.join(self.left_out)}"] if self.left_out else []
        return f"{self.name}: **{self.verdict}**" + (f" ({'; '.join(told)})" if told else "")


def mechanism_cells(records: Iterable[Record]) -> list[Cell]:
    """Return the cells with a baseline and another arm that have layer CKA and weight statistics.

    Args:
        records: the records of runs.
    """
    return [cell for cell in cells(records) if len(_measured_arms(cell)) > 1]


def several_betas(cell: Cell) -> bool:
    """Return whether the arms with CKA-SR differ only in beta, so that a trend can be tested."""
    arms = [arm for arm in cell.arms if arm.beta and arm.term == BASELINE.term]
    return len(arms) > 1 and len({arm._replace(beta=0.0) for arm in arms}) == 1


def difference(cell: Cell, arm: Arm, quantity: Quantity) -> Comparison:
    """Return the paired differences of a quantity, arm minus baseline.

    Args:
        cell: a cell with a baseline.
        arm: an arm of the cell.
        quantity: the quantity. Runs without a value of it are left out.
    """
    return compare(_with_quantity(cell, quantity), arm, quantity.name)


def values_of(cell: Cell, arm: Arm, quantity: Quantity) -> list[float]:
    """Return the values of a quantity for the finished runs of an arm that have one."""
    found = [
        quantity.read(run) for run in cell.arms.get(arm, {}).values() if run["status"] == "finished"
    ]
    return [value for value in found if value is not None]


def hypotheses(cell: Cell) -> list[Hypothesis]:
    """Return the verdicts on H2 and H3 in a cell, from its arms with CKA-SR in order of beta.

    Args:
        cell: one of the cells of `mechanism_cells`.
    """
    arms = [arm for arm in _measured_arms(cell) if arm.beta and arm.term == BASELINE.term]
    if not learned(cell.arms.get(BASELINE, {}).values()):
        return [Hypothesis("H2", UNTESTED), Hypothesis("H3", UNTESTED)]
    broken = [arm for arm in arms if (compare(cell, arm).mean or 0) < -COLLAPSE]
    left_out = tuple(f"{arm.label} (accuracy collapsed)" for arm in broken)
    arms = [arm for arm in arms if arm not in broken]
    similar = [Part(f"lower at {a.label}", difference(cell, a, SIMILARITY), -1) for a in arms]
    for smaller, larger in itertools.pairwise(arms):
        if smaller._replace(beta=larger.beta) != larger:
            continue
        sides = {a.label: _with_quantity(cell, SIMILARITY).arms[a] for a in (smaller, larger)}
        step = compare_sides(cell, larger, sides, SIMILARITY.name)
        similar.append(Part(f"lower at {larger.label} than at {smaller.label}", step, -1))
    concentrated = [
        part
        for arm in arms
        for part in (
            Part(f"more weights near 0 at {arm.label}", difference(cell, arm, NEAR_ZERO), 1),
            Part(f"smaller norm at {arm.label}", difference(cell, arm, NORM), -1),
        )
    ]
    return [
        Hypothesis("H2", _verdict(similar), tuple(similar), left_out),
        Hypothesis("H3", _verdict(concentrated), tuple(concentrated), left_out),
    ]


def mechanism_table(found: Iterable[Cell]) -> str:
    """Return a Markdown table for every cell, with the verdicts on H2 and H3 below it.

    Args:
        found: the cells of `mechanism_cells`.
    """
    tables = [_table(cell) for cell in found]
    return "\n".join([*tables, LEGEND]) if tables else "There are no pairs with layer CKA yet.\n"


def _measured_arms(cell: Cell) -> list[Arm]:
    """Return the arms of a cell with at least one run that has both measurements."""
    if BASELINE not in cell.arms:
        return []
    return [
        arm
        for arm, runs in cell.arms.items()
        if any(run["layer_cka"] and run["weights"] for run in runs.values())
    ]


def _with_quantity(cell: Cell, quantity: Quantity) -> Cell:
    """Return the cell with the quantity as a field of its records.

    Finished runs without a value of the quantity are left out.
    """

    def added(runs: Mapping[int, Record]) -> dict[int, Record]:
        found: dict[int, Record] = {}
        for seed, run in runs.items():
            value = quantity.read(run)
            if value is not None or run["status"] != "finished":
                found[seed] = {**run, quantity.name: value}
        return found

    return Cell(cell.settings, {arm: added(runs) for arm, runs in cell.arms.items()})


def _verdict(parts: list[Part]) -> str:
    if not parts or any(part.undecided for part in parts):
        return UNDECIDED
    met = [part.met for part in parts]
    return HOLDS if all(met) else IN_PART if any(met) else FAILS


def _table(cell: Cell) -> str:
    arms = _measured_arms(cell)
    rows = [_row(cell, arm) for arm in arms]
    lines = [f"### Layers and weights: {cell_title(cell.settings)}", ""]
    lines += [*markdown(COLUMNS, rows), ""]
    return "\n".join(lines + [f"- {found.text}" for found in hypotheses(cell)]) + "\n"


def _row(cell: Cell, arm: Arm) -> tuple[str, ...]:
    if arm == BASELINE:
        told = [_of_baseline(values_of(cell, arm, q), q.digits) for q in QUANTITIES]
        return ("baseline", NOTHING, *told)
    found = {quantity.name: difference(cell, arm, quantity) for quantity in QUANTITIES}
    told = [difference_text(found[q.name], q.digits) for q in QUANTITIES]
    return (arm.label, str(max(c.n for c in found.values())), *told)


def _of_baseline(values: list[float], digits: int) -> str:
    return f"{mean(values):.{digits}f}" if values else NOTHING


def difference_text(comparison: Comparison, digits: int) -> str:
    """A mean paired difference with its interval, in print; a dash if there is none."""
    if comparison.mean is None:
        return NOTHING
    told = f"{comparison.mean:+.{digits}f}"
    if comparison.t_interval is not None:
        low, high = comparison.t_interval
        told += f" [{low:+.{digits}f}, {high:+.{digits}f}]"
    return told
