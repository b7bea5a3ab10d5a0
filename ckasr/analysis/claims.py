"""The table of the paper's claims about accuracy and of what the records of all folders show.

A separate table in theory/README.md lists the claims of the theory.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckasr.notebooks import profiles

from . import words
from .aa import aa_checks
from .cells import BASELINE, Arm, Record, cell_title, percent
from .paper import CLAIM_TERMS, CLAIMS, SELECTION, lookup, paper_difference
from .statistics import Comparison, paired_differences
from .tables import NOTHING, VERDICT, interval_text, markdown, points_text
from .verdict import RULE, learned, place, verdict_on

NOT_RUN = "not run yet"
AA_PROFILE = "verdict00_aa"
OFFICIAL = Arm(1e-4, "official", 8, 5, "")
COLUMNS = (
    "claim",
    "source",
    "paper",
    "our runs",
    "difference, points [95 % interval], n pairs",
    VERDICT,
    "command",
    "core-hours",
)

HEADING = """\
# Claims of the paper and results of our runs

`make figures` writes this file from the records under `results/`; nothing is written by hand.

"""

LEGEND = f"""\
Difference: test accuracy after the last epoch with CKA-SR minus that without it, averaged over \
pairs with the same seed, mask and data order, with Student's t interval. The paper's numbers: \
{SELECTION}. Core-hours are those of both arms of the row, and a baseline counts in the row of \
every arm that is compared with it. Runs shorter than the paper's 160 epochs have a "short \
schedule" and do not test the paper's number. The claims of the theory are in \
[theory/README.md](../theory/README.md).

{CLAIM_TERMS}.

{RULE}
"""


@dataclass(frozen=True)
class Statement:
    """A claim, the settings of the cells that test it, and the profile that runs these cells."""

    text: str
    made: str
    number: str  # The published number, as text.
    where: Mapping[str, Any]  # Settings of the cells; a tuple allows any of its values.
    profile: str | None = None  # Name of the profile in workflow/, or None.
    gain: float | None = None  # The gain claimed for all cells, a fraction of 1.
    appendix: bool = False  # If True, only arms with a number in the appendix count.
    headline: str = ""  # Text in the short table of README; empty if not listed.

    def gain_of(self, comparison: Comparison) -> float | None:
        """Return the paper's gain for this comparison as a fraction of 1, or None if not known."""
        if self.appendix:
            return paper_difference(comparison.cell.settings, comparison.arm)
        return self.gain

    @property
    def has_number(self) -> bool:
        """Whether the paper has a number for the claim."""
        return self.appendix or self.gain is not None

    def about(self, comparison: Comparison) -> bool:
        """Return whether the comparison tests the claim, which is about CKA-SR, not a placebo."""
        if comparison.arm.term != BASELINE.term:
            return False
        settings = comparison.cell.settings
        for name, wanted in self.where.items():
            if settings[name] not in (wanted if isinstance(wanted, tuple) else (wanted,)):
                return False
        return not self.appendix or self.gain_of(comparison) is not None


_ERK20 = {"model": "resnet20", "method": "random", "distribution": "erk"}


def _appendix(where: Mapping[str, Any]) -> tuple[float, float]:
    """Return the accuracies of the appendix without and with the term, in percent."""
    without, official = (lookup(where, arm) for arm in (BASELINE, OFFICIAL))
    if without is None or official is None:
        raise LookupError(f"the appendix has no pair of numbers for {dict(where)}")
    return without.percent, official.percent


def _table_1(sparsity: float, profile: str | None, headline: str = "") -> Statement:
    """Return the statement of table 1 on random ERK pruning of ResNet20 on CIFAR-100."""
    where = {**_ERK20, "dataset": "cifar100", "sparsity": sparsity}
    without, official = _appendix(where)
    return Statement(
        f"accuracy increases at {percent(sparsity)}: ResNet20, random ERK masks, CIFAR-100",
        "appendix, table 1",
        f"{without:.2f} to {official:.2f} % ({official - without:+.2f})",
        where,
        profile,
        appendix=True,
        headline=headline,
    )


OTHER_ARCHITECTURES = (
    "efficientnet_b0",
    "lenet300",
    "mobilenet_v2",
    "noisy_mlp",
    "resmlp",
    "text_transformer",
    "vgg16",
    "vit",
)
"""Networks that are not residual convolutional networks, as those of the paper are."""

_ABSTRACT = {0.995: "verdict01_resnet20_995", 0.998: "verdict01_resnet20_998"}

STATEMENTS = (
    *(
        Statement(
            f"accuracy increases by {100 * claim.gain:.0f} % or more at {percent(claim.sparsity)}: "
            "CIFAR-100, method and network not stated",
            "abstract",
            f"{100 * claim.gain:+.2f}, read as percentage points",
            {"dataset": claim.dataset, "sparsity": claim.sparsity},
            _ABSTRACT[claim.sparsity],
            gain=claim.gain,
            headline=f"CIFAR-100 at {percent(claim.sparsity)}: "
            f"{100 * claim.gain:.0f} % or more (abstract)",
        )
        for claim in CLAIMS
    ),
    _table_1(0.998, "verdict01_resnet20_998", "ResNet20 at 99.8 %, CIFAR-100 (appendix)"),
    _table_1(0.98, "gpu"),
    _table_1(0.95, "gpu", "ResNet20 at 95 %, CIFAR-100 (appendix)"),
    *(_table_1(sparsity, None) for sparsity in (0.90, 0.85, 0.70)),
    *(
        Statement(
            f"accuracy increases at 99.5 %: {words.method(method, 'erk')}, CIFAR-100",
            "abstract: several sparse training methods",
            "not known",
            {"dataset": "cifar100", "method": method, "sparsity": 0.995},
            "verdict07_hosts_gpu",
            headline=f"{words.method(method, 'erk')} at 99.5 %, CIFAR-100",
        )
        for method in ("snip", "synflow", "grasp")
    ),
    Statement(
        "few samples suffice, and a suitable beta exists: ResNet20, random ERK masks, 95 %, "
        "CIFAR-10",
        "appendix, table 2",
        "84.16 % without the term, 85.03 % with the best of 60 settings (+0.87)",
        {**_ERK20, "dataset": "cifar10", "sparsity": 0.95},
        appendix=True,
    ),
    *(
        Statement(
            f"accuracy of dense training increases: {name}, CIFAR-100",
            "appendix",
            number,
            {"dataset": "cifar100", "model": name.lower(), "method": "dense"},
            appendix=True,
        )
        for name, number in (
            ("ResNet18", "75.61 to 76.32 % (+0.71)"),
            ("ResNet50", "77.39 to 78.94 % (+1.55)"),
        )
    ),
    Statement(
        "accuracy of lottery tickets increases: MLP, MNIST",
        "first experiment that the summary suggests",
        "not known (+4.00 at 99.5 % is claimed on CIFAR-100 only)",
        {"dataset": "mnist", "method": "lth"},
        "verdict03_mnist_lottery",
        headline="lottery tickets of LeNet-300-100 at 99.5 %, MNIST",
    ),
    Statement(
        "accuracy of structured pruning increases: trained networks",
        "summary",
        "not known",
        {"method": "structured"},
        "verdict11_structured",
        headline="structured pruning of trained networks",
    ),
    Statement(
        "accuracy increases beyond 99.8 %: CIFAR-100",
        "open question of the summary",
        "none",
        {"dataset": "cifar100", "sparsity": (0.999, 0.9995, 0.9999)},
        "verdict04_beyond",
        headline="beyond 99.8 %, CIFAR-100 (open question)",
    ),
    Statement(
        "accuracy of other architectures increases",
        "open question of the summary",
        "none",
        {"model": OTHER_ARCHITECTURES, "method": "random"},
        "architectures_gpu",
    ),
)


def claims_table(folders: Mapping[str, Sequence[Record]]) -> str:
    """Return a Markdown table with a row for each claim and each comparison that tests it.

    If the paper has a number for a claim, but no comparison has the paper's schedule, an additional
    row says so.

    Args:
        folders: the records of each folder of results, by the name of the folder. The name of the
            folder is also the name of the profile whose command computes the records.
    """
    found = {name: paired_differences(runs) for name, runs in folders.items()}
    rows = []
    for statement in STATEMENTS:
        told = [
            (name, comparison)
            for name, comparisons in found.items()
            for comparison in comparisons
            if statement.about(comparison)
        ]
        # The full schedule comes first, because only the full schedule tests the claim.
        told.sort(key=lambda item: item[1].cell.settings["schedule"] != "full")
        full = any(c.n and c.cell.settings["schedule"] == "full" for _, c in told)
        if not told or (statement.has_number and not full):
            rows.append(_not_run(statement))
        rows += [_row(statement, name, comparison) for name, comparison in told]
    lines = [*markdown(COLUMNS, rows), "", *_aa(folders.values()), "", LEGEND]
    return HEADING + "\n".join(lines)


SHORT_COLUMNS = (
    "claim: CKA-SR increases accuracy",
    "gain in the paper, points",
    "our gain, points [95 % interval], n pairs",
    "verdict",
    "command",
)


def headline_table(folders: Mapping[str, Sequence[Record]]) -> str:
    """Return the short form of `claims_table` for README in Markdown, for the paper's beta of 1e-4.

    There is one row for each headline claim and sparsity. It shows the comparison with the longest
    schedule and, among several of these, the one with the most pairs.

    Args:
        folders: the records of each folder of results, by the name of the folder.
    """
    found = {name: paired_differences(runs) for name, runs in folders.items()}
    rows = []
    for statement in filter(lambda statement: statement.headline, STATEMENTS):
        best: dict[float, tuple[str, Comparison]] = {}
        for name, comparisons in found.items():
            for c in comparisons:
                if c.n and c.arm == OFFICIAL and statement.about(c):
                    key = c.cell.settings["sparsity"]
                    if key not in best or _weight(c) > _weight(best[key][1]):
                        best[key] = name, c
        head = statement.headline, _paper_points(statement)
        if not best:
            rows.append((*head, NOT_RUN, NOT_RUN, _command(statement.profile)))
        for sparsity, (name, c) in sorted(best.items()):
            several = f", {percent(sparsity)}" if len(best) > 1 else ""
            interval = "" if c.t_interval is None else f" {interval_text(c.t_interval)}"
            epochs = c.cell.settings["epochs"]
            ours = f"{points_text(c.mean)}{interval}, n = {c.n}, {epochs} epochs"
            rows.append((head[0] + several, head[1], ours, _word(statement, c), _command(name)))
    run = [row for row in rows if NOT_RUN not in row]
    gains = [
        row
        for row in run
        if row[3].startswith(("reproduced", "positive")) or "; positive" in row[3]
    ]
    show = "show" if len(gains) > 1 else "shows"
    told = f"{len(gains) or 'None'} of the {len(run)} comparisons that were run {show} a gain."
    return "\n".join([*markdown(SHORT_COLUMNS, rows), "", f"**{told}**"])


def _weight(comparison: Comparison) -> tuple[int, int]:
    return comparison.cell.settings["epochs"], comparison.n


def _paper_points(statement: Statement) -> str:
    """Return the gain that the paper states, in percentage points."""
    gain = statement.gain
    if statement.appendix:
        without, official = _appendix(statement.where)
        gain = (official - without) / 100
    return "not known" if gain is None else f"{100 * gain:+.2f}"


def _not_run(statement: Statement) -> tuple[str, ...]:
    schedule = "160 epochs (full schedule)" if statement.has_number else NOTHING
    command = _command(statement.profile)
    head = statement.text, statement.made, statement.number
    return (*head, schedule, NOT_RUN, NOT_RUN, command, NOTHING)


def _row(statement: Statement, folder: str, comparison: Comparison) -> tuple[str, ...]:
    settings, c = comparison.cell.settings, comparison
    lost = [f"{len(c.diverged)} diverged"] if c.diverged else []
    lost += [f"{len(c.incomplete)} incomplete"] if c.incomplete else []
    size = "no complete pair" if c.mean is None else f"{100 * c.mean:+.2f}"
    size += "" if c.t_interval is None else f" {interval_text(c.t_interval)}"
    return (
        statement.text,
        statement.made,
        statement.number,
        f"{cell_title(settings)}, {c.arm.label}",
        ", ".join([size, f"n = {c.n}", *lost]),
        _word(statement, c),
        _command(folder),
        core_hours(_runs(c)),
    )


def _word(statement: Statement, comparison: Comparison) -> str:
    """Return the verdict on a claim.

    For a short schedule, or without a published number, this is only what was observed.
    """
    gain = statement.gain_of(comparison)
    if comparison.cell.settings["schedule"] != "full":
        told = "" if gain is None else "claim not tested: "
        word = f"{told}short schedule; {verdict_on(comparison, None)}"
    else:
        word = verdict_on(comparison, gain)
        if gain is not None and comparison.t_interval is not None:
            where = place(gain, comparison.t_interval)
            word += f" (the paper's {100 * gain:+.2f} is {where} the interval)"
    return word if learned(_runs(comparison)) else f"{word}; accuracy is at chance"


def _runs(comparison: Comparison) -> list[Record]:
    """Return all runs of both arms of a comparison."""
    arms = comparison.cell.arms
    return [*arms.get(BASELINE, {}).values(), *arms[comparison.arm].values()]


def core_hours(runs: Sequence[Record]) -> str:
    """Return the core-hours of the runs as text: wall-clock hours times the number of threads.

    The hours of a GPU are listed separately. The text is "-" if a record has no duration.

    Args:
        runs: the records of runs.
    """
    if any("seconds" not in run for run in runs):
        return NOTHING
    on_cpu = gpu = 0.0
    for run in runs:
        threads = re.search(r"(\d+) thread\(s\)$", run["device"])
        if threads:
            on_cpu += run["seconds"] * int(threads[1]) / 3600
        else:
            gpu += run["seconds"] / 3600
    told = [f"{on_cpu:.1f}"] if on_cpu else []
    told += [f"{gpu:.1f} GPU-hours"] if gpu else []
    return " + ".join(told) or NOTHING


def _command(profile: str | None) -> str:
    return f"`make reproduce PROFILE={profile}`" if profile in profiles() else NOTHING


def _aa(folders: Iterable[Sequence[Record]]) -> list[str]:
    """Return the results of the A/A checks of the decision rule, or that there are none yet."""
    checks = [check for runs in folders for check in aa_checks(runs)]
    if not checks:
        return [f"A/A check of the decision rule: {NOT_RUN} ({_command(AA_PROFILE)})."]
    return [
        f"A/A check of the decision rule ({cell_title(check.settings)}): {check.text}."
        for check in checks
    ]
