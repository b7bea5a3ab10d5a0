"""Failures of a strong term, and where no class has a path: what counts, and what is drawn."""

import pytest
from matplotlib.collections import LineCollection
from synthetic import record

from ckasr.analysis import (
    accuracy_and_floor,
    failure_cells,
    failure_signatures,
    failures_of,
    floor_groups,
    write_failures,
    write_floor,
)
from ckasr.analysis.failures import failures_table
from ckasr.analysis.failures_floor_figure import live_share


def run(accuracy=0.5, *, norm=10.0, ratio=0.1, seconds=10.0, memory=1e9, **settings):
    found = record(accuracy, sparsity=0.995, epochs=4, **settings)
    count = len(found["curves"]["epoch"])
    found["curves"]["seconds"] = [seconds] * count
    if settings.get("beta"):
        found["curves"]["gradient_ratio"] = [ratio / 10] * (count - 1) + [ratio]
    if found["weights"]:
        found["weights"]["frobenius_norm"] = norm
    return {**found, "peak_memory_bytes": int(memory)}


def cell_of(**changes):
    """Two seeds of a baseline, a weak arm (beta 1e-4) and one (beta 1) with these changes."""
    runs = [run(seed=seed, beta=beta) for seed in (0, 1) for beta in (0.0, 1e-4)]
    (cell,) = failure_cells([*runs, *(run(seed=s, beta=1.0, **changes) for s in (0, 1))])
    return cell


def shown(**changes):
    cell = cell_of(**changes)
    return failures_of(cell, max(cell.arms, key=lambda arm: arm.beta))


class TestFailures:
    @pytest.mark.parametrize(
        ("changes", "name"),
        [
            ({"accuracy": 0.44}, "accuracy collapsed"),
            ({"ratio": 1.1}, "gradient of the term dominates"),
            ({"norm": 15.1}, "weights grow"),
            ({"dead_classes": 4}, "more dead classes"),
            ({"seconds": 11.1}, "slower"),
            ({"memory": 1.2e9}, "more memory"),
            ({"status": "diverged"}, "diverged"),
        ],
    )
    def test_each_failure_is_detected_alone(self, changes, name):
        assert shown(**changes) == [name]

    def test_below_the_thresholds_there_is_no_failure(self):
        near = {"accuracy": 0.46, "ratio": 0.9, "norm": 14.9, "seconds": 10.9, "memory": 1.05e9}
        assert shown(**near) == []

    def test_a_cell_needs_a_baseline_and_betas_of_one_setting(self):
        weak, strong = run(beta=1e-4), run(beta=1.0)
        assert failure_cells([weak, strong]) == []
        assert failure_cells([run(), weak]) == []
        assert failure_cells([run(), weak, run(beta=1.0, samples=4)]) == []
        assert len(failure_cells([run(), weak, strong])) == 1


class TestTableAndFigure:
    def test_a_row_for_each_arm(self):
        text = failures_table([cell_of(accuracy=0.4, ratio=3.0)])
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in text.splitlines()
            if line.startswith("| ")
        ]
        values = dict(zip(rows[0], rows[3], strict=True))
        assert values["test accuracy, %"] == "40.00"
        assert values["gradient ratio"] == "3.000", "the highest of the epochs"
        assert values["failures"] == "accuracy collapsed, gradient of the term dominates"
        assert rows[1][-1] == rows[2][-1] == "none"
        assert failures_table([]).startswith("There are no runs")

    def test_panels(self):
        axes = failure_signatures(cell_of(norm=900.0)).axes
        labels = [axis.get_ylabel() for axis in axes]
        assert len(labels) == len(set(labels)) == 8
        assert axes[0].get_ylim() == (0, 100)
        norms = axes[4]
        assert norms.get_yscale() == "log"
        means = [float(c.lines[0].get_ydata()[0]) for c in norms.containers]
        assert means == pytest.approx([10, 10, 900])

    def test_diverged_runs_are_counted_in_the_panel_of_the_accuracy(self):
        (text,) = failure_signatures(cell_of(status="diverged")).axes[0].texts
        assert text.get_text() == "2 of 2\ndiverged"

    def test_files(self, tmp_path):
        runs = [run(beta=beta) for beta in (0.0, 1e-4, 1.0)]
        written = write_failures(runs, tmp_path)
        assert [path.suffix for path in written] == [".md", ".png", ".svg"]
        assert write_failures(runs[:2], tmp_path) == []


class TestFloor:
    def beyond(self, dead=(90, 100)):
        return [
            record(0.01 * (2 - place), sparsity=sparsity, dead_classes=count, seed=seed)
            for place, (sparsity, count) in enumerate(zip((0.998, 0.9995), dead, strict=True))
            for seed in (0, 1)
        ]

    def test_the_share_of_classes_with_a_path_is_drawn_as_a_level(self):
        (group,) = floor_groups(self.beyond())
        assert [live_share(cell) for cell in group] == pytest.approx([0.1, 0.0])
        (axis,) = accuracy_and_floor(group).axes
        lines = [c for c in axis.collections if isinstance(c, LineCollection)]
        levels = [float(line.get_segments()[0][0, 1]) for line in lines[-2:]]
        assert levels == pytest.approx([10.0, 0.0])

    def test_only_beyond_the_papers_sparsities_and_with_a_dead_class(self, tmp_path):
        assert floor_groups([record(0.1, sparsity=0.998, dead_classes=60)]) == []
        assert floor_groups([record(0.1, sparsity=0.9995, dead_classes=0)]) == []
        assert write_floor([record(0.1, sparsity=0.998)], tmp_path) == []
        written = write_floor(self.beyond(), tmp_path)
        assert [path.suffix for path in written] == [".png", ".svg"]
