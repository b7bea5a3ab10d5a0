"""Methods side by side: the right rows in the right order, published numbers kept apart."""

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from synthetic import pairs, record, study

from ckasr.analysis import (
    all_tables,
    method_accuracy,
    method_families,
    methods_table,
    runs_table,
    write_all,
)
from ckasr.analysis.methods import COLUMNS
from ckasr.analysis.references import reference
from ckasr.experiments import Settings, grid

ACCURACIES = {"dense": 0.66, "random": 0.60, "snip": 0.55, "synflow": 0.58, "lth": 0.63}
RECIPE = {"dataset": "cifar10", "epochs": 2, "milestones": (0.5,)}


def made(settings: Settings, accuracy: float | None, **extra: Any) -> dict:
    values = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    return record(accuracy, dead_classes=0, **values) | extra


def comparison(seeds: int = 1, **recipe: Any) -> list[dict]:
    """Five methods at two sparsities, at the higher one 20 points down; LTH trains twice."""
    methods = ["lth levels={sparsity}" if name == "lth" else name for name in ACCURACIES]
    cells = grid(
        Settings(**{**RECIPE, **recipe}),
        sparsities=[0.95, 0.995],
        betas=[0],
        seeds=range(seeds),
        methods=methods,
    )
    runs = []
    for cell in cells:
        down = 0.2 if cell.sparsity > 0.99 else 0.0
        run = made(cell, ACCURACIES[cell.method] - down + 0.01 * cell.seed)
        if cell.method == "lth":
            run["curves"] = {k: v * 2 for k, v in run["curves"].items()}
        runs.append(run)
    return runs


def rows(text: str) -> list[dict[str, str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    table = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    return [dict(zip(table[0], row, strict=True)) for row in table if row[0] != "sparsity"]


class TestTable:
    def test_rows_by_sparsity_and_best_first(self):
        found = rows(methods_table(comparison()[::-1]))
        assert [(row["sparsity"], row["method"]) for row in found] == [
            ("0 %", "dense"),
            ("95 %", "lth levels=0.95"),
            ("95 %", "random"),
            ("95 %", "synflow"),
            ("95 %", "snip"),
            ("99.5 %", "lth levels=0.995"),
            ("99.5 %", "random"),
            ("99.5 %", "synflow"),
            ("99.5 %", "snip"),
        ]

    def test_a_row_by_hand(self):
        runs = comparison(seeds=3)
        lth = next(row for row in rows(methods_table(runs)) if row["method"] == "lth levels=0.95")
        assert lth == {
            "sparsity": "95 %",
            "method": "lth levels=0.95",
            "test accuracy, % ± sd (n)": "64.00 ± 1.00 (3)",
            "validation accuracy, %": "64.00",
            "actual sparsity": "95.00 %",
            "effective sparsity": "97.50 %",
            "dead classes": "0 of 100",
            "dead layers": "0",
            "epochs trained (× dense)": "4 (2 ×)",
            "minutes": "0.4",
            "paper, %": "-",
            "Synaptic-Flow's data, %": "-",
        }
        assert list(lth) == list(COLUMNS)

    def test_the_second_arm_follows_its_baseline(self):
        runs = comparison()
        for run in [r for r in runs if r["settings"]["method"] in ("random", "snip")]:
            settings = Settings.from_dict(run["settings"] | {"beta": 1e-4})
            runs.append(made(settings, run["test_accuracy"] + 0.3))  # order: by the baseline
        names = [row["method"] for row in rows(methods_table(runs)) if row["sparsity"] == "95 %"]
        assert names == [
            "lth levels=0.95",
            "random",
            "random, CKA-SR, β = 1e-4",
            "synflow",
            "snip",
            "snip, CKA-SR, β = 1e-4",
        ]

    def test_dead_layers_are_of_any_seed(self):
        runs = [record(0.5, method="snip", sparsity=0.95, seed=seed) for seed in range(3)]
        for run, dead in zip(runs, (["a"], ["a", "b"], []), strict=True):
            run["sparsity"]["dead_layers"] = dead
        ((_, snip),) = method_families([record(0.5, method="dense"), *runs])
        assert snip.dead_layers == ["a", "b"]

    def test_options_distinguish_the_entries_of_a_method(self):
        runs = [
            record(0.5 + i / 100, sparsity=0.95, **form)
            for i, form in enumerate(
                [
                    {"method": "rigl"},
                    {"method": "rigl", "distribution": "uniform"},
                    {"method": "lth", "method_options": {"rewind": 5, "levels": "0.8,0.95"}},
                ]
            )
        ]
        assert [row["method"] for row in rows(methods_table(runs))] == [
            "lth levels=0.8,0.95 rewind=5",
            "rigl uniform",
            "rigl",
        ]

    def test_each_recipe_has_its_own_table(self):
        text = methods_table(comparison() + comparison(epochs=160) + comparison(precision="bf16"))
        assert text.count("### Methods: CIFAR-10, ResNet20") == 3
        assert "2 epochs, learning-rate drops at 50 %, bf16" in text

    def test_diverged_runs_and_other_sparsities_are_listed(self):
        runs = comparison()
        snip = next(r for r in runs if r["settings"]["method"] == "snip")
        snip["sparsity"]["nominal"] = 0.90
        broken = Settings(method="gmp", sparsity=0.995, **RECIPE)
        runs.append(made(broken, None, status="diverged", test_accuracy=None))
        text = methods_table(runs)
        assert (
            "- Not comparable, because the sparsity differs from the target: snip at 95 %\n" in text
        )
        assert "- Diverged and excluded from the mean: gmp at 99.5 %, seed 0\n" in text
        assert "- There is one seed per method" in text
        last = rows(text)[-1]
        assert (last["method"], last["test accuracy, % ± sd (n)"]) == ("gmp", "- (0)")
        assert "One seed per method" not in methods_table(comparison(seeds=2))

    def test_one_method_alone_is_no_comparison(self):
        assert methods_table(study(2)) == "There are no two methods to compare yet.\n"
        assert method_families(study(2)) == []


class TestPublished:
    def test_numbers_stand_at_the_sparsity_they_were_measured_at(self):
        found = {(r["method"], r["sparsity"]): r for r in rows(methods_table(comparison()))}
        assert found["random", "95 %"]["paper, %"] == "84.16"
        assert found["random", "99.5 %"]["paper, %"] == "-"
        others = {k: r["Synaptic-Flow's data, %"] for k, r in found.items()}
        assert others["random", "95 %"] == "91.60 at 94.38 %"
        assert others["snip", "99.5 %"] == "88.85 at 99.44 %"
        assert others["synflow", "95 %"] == "93.69 at 94.38 %"
        assert others["dense", "0 %"] == "94.95 at 0.00 %"

    def test_published_numbers_are_those_without_cka_sr(self):
        """Its arm has the appendix's number for its beta, and none of Synaptic-Flow's."""
        settings = Settings(sparsity=0.95, beta=1e-4, **RECIPE)
        found = rows(methods_table([*comparison(), made(settings, 0.61)]))
        treated = next(row for row in found if "CKA-SR" in row["method"])
        assert treated["paper, %"] == "84.97"
        assert treated["Synaptic-Flow's data, %"] == "-"

    def test_published_accuracies_are_marked_as_not_comparable(self):
        text = methods_table(comparison())
        assert "**not directly comparable**" in text
        assert "ResNet18, accuracy after the last of 160 epochs" in text
        assert (
            "differs from the paper's: 2 epochs (paper: 160), learning-rate drops at 50 %" in text
        )
        elsewhere = methods_table(comparison(dataset="digits"))
        assert "published" not in elsewhere.lower()
        assert "Synaptic-Flow" not in elsewhere

    @pytest.mark.parametrize("k", range(4, 13))
    def test_the_nearest_is_within_half_a_step(self, k):
        published = 1 - 10 ** (-k / 4)
        for shift in (-0.49, 0.0, 0.49):
            near = reference("cifar100", "synflow", 1 - 10 ** (-(k + shift) / 4))
            assert near.sparsity == pytest.approx(published)

    def test_settings_without_a_published_number(self):
        assert reference("cifar10", "random", 0.7) is None  # between 0 and 90 %
        assert reference("cifar10", "random", 0.9999) is None
        assert reference("cifar10", "rigl", 0.95) is None
        assert reference("cifar100", "magnitude", 0.95) is None
        assert reference("digits", "dense", 0.0) is None

    def test_random_falls_monotonically_and_magnitude_collapses(self):
        sparsities = [1 - 10 ** (-k / 4) for k in range(4, 13)]
        for dataset in ("cifar10", "cifar100"):
            values = [reference(dataset, "random", s).percent for s in sparsities]
            assert values == sorted(values, reverse=True)
        assert {reference("cifar10", "magnitude", s).percent for s in sparsities[1:]} == {10.0}


def positions(axis) -> dict[float, float]:
    """Row -> accuracy of each mean that is drawn."""
    lines = [container.lines[0] for container in axis.containers]
    return {line.get_ydata()[0]: line.get_xdata()[0] for line in lines}


class TestFigure:
    def test_one_panel_per_sparsity_and_one_row_per_method(self):
        lower, higher = method_accuracy(comparison()).axes
        names = ["lottery tickets, 2 × epochs", "random ERK masks", "SynFlow", "SNIP"]
        assert [label.get_text() for label in lower.get_yticklabels()] == names
        assert (lower.get_title(), higher.get_title()) == ("sparsity 95 %", "sparsity 99.5 %")
        assert positions(lower) == pytest.approx({0: 63, 1: 60, 2: 58, 3: 55})
        assert positions(higher) == pytest.approx({0: 43, 1: 40, 2: 38, 3: 35})
        assert lower.get_ylim()[0] > lower.get_ylim()[1]  # the best on top

    def test_dense_and_chance_bound_every_panel(self):
        for axis in method_accuracy(comparison()).axes:
            levels = [line for line in axis.lines if len(set(line.get_xdata())) == 1]
            labels = {line.get_label(): line.get_xdata()[0] for line in levels}
            assert labels["dense training: 66.0 %"] == pytest.approx(66)
            assert labels["chance: 1 %"] == pytest.approx(1)

    def test_seeds_and_their_interval(self):
        axis, _ = method_accuracy(comparison(seeds=3)).axes
        swarms = [c for c in axis.collections if isinstance(c, PathCollection)]
        assert list(swarms[0].get_offsets()[:, 0]) == pytest.approx([63, 64, 65])
        (low, _), (high, _) = axis.containers[0].lines[2][0].get_segments()[0]
        half = 4.302653 / math.sqrt(3)
        assert (low, high) == pytest.approx((64 - half, 64 + half))

    def test_another_sparsity_has_a_hollow_marker_and_dead_layers_are_listed(self):
        runs = comparison()
        for run in runs:
            if run["settings"]["method"] == "snip":
                run["sparsity"] |= {"nominal": 0.5, "dead_layers": ["a", "b"], "dead_classes": 1}
        figure = method_accuracy(runs)
        markers = [c.lines[0] for c in figure.axes[0].containers]
        assert [m.get_markerfacecolor() == "white" for m in markers] == [False, False, False, True]
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert texts == ["dead: 2 layers, 1 class"]
        assert "Hollow" in figure.legends[0].get_title().get_text()

    def test_arms_stand_apart_in_their_row(self):
        runs = comparison()
        for run in [r for r in runs if r["settings"]["method"] == "snip"]:
            settings = Settings.from_dict(run["settings"] | {"beta": 1e-4})
            runs.append(made(settings, run["test_accuracy"] + 0.1))
        axis = method_accuracy(runs).axes[0]
        drawn = positions(axis)
        assert drawn[0] == pytest.approx(63)  # alone in its row
        rows_of_snip = sorted(y for y in drawn if round(y) == 3)
        assert np.diff(rows_of_snip) == pytest.approx([0.25])
        assert [drawn[y] for y in rows_of_snip] == pytest.approx([55, 65])

    def test_dead_layers_of_two_arms_are_written_once_if_they_are_equal(self):
        runs = comparison()
        for run in [r for r in runs if r["settings"]["method"] == "snip"]:
            run["sparsity"] |= {"dead_layers": ["a", "b"]}
            settings = Settings.from_dict(run["settings"] | {"beta": 1e-4})
            other = made(settings, 0.6)
            other["sparsity"] |= {"dead_layers": ["a", "b"]}
            runs.append(other)
        texts = method_accuracy(runs).axes[0].texts
        assert [(text.get_text(), text.xy[1]) for text in texts] == [("dead: 2 layers", 3)]
        runs[-1]["sparsity"] |= {"dead_layers": ["a"]}
        texts = method_accuracy(runs).axes[1].texts
        assert [text.get_text() for text in texts] == ["dead: 2 layers", "dead: 1 layer"]

    def test_each_form_of_a_method_has_its_own_row(self):
        lazy = Settings(method="random", distribution="uniform", sparsity=0.95, **RECIPE)
        axis, _ = method_accuracy([*comparison(), made(lazy, 0.61)]).axes
        names = [label.get_text() for label in axis.get_yticklabels()]
        assert names[1:3] == ["random uniform masks", "random ERK masks"]
        assert positions(axis)[1] == pytest.approx(61)

    def test_records_of_no_or_several_recipes_are_refused(self):
        for runs, number in ((study(1), 0), (comparison() + comparison(epochs=3), 2), ([], 0)):
            with pytest.raises(ValueError, match=f"the records have {number} such"):
                method_accuracy(runs)


class TestWriting:
    def test_methods_have_one_table_and_one_figure(self, tmp_path):
        written = write_all(comparison(), tmp_path)
        assert [path.relative_to(tmp_path).as_posix() for path in written] == [
            "tables/runs.md",
            "tables/methods.md",
            "figures/cifar10_resnet20_2ep_milestones-0.5_methods.png",
            "figures/cifar10_resnet20_2ep_milestones-0.5_methods.svg",
        ]
        before = [path.read_bytes() for path in written]
        assert write_all(comparison()[::-1], tmp_path) == written
        assert [path.read_bytes() for path in written] == before

    def test_a_comparison_with_cka_sr_keeps_its_own_table(self, tmp_path):
        runs = comparison() + pairs([0.6], [0.61], method="rigl", sparsity=0.95, **RECIPE)
        names = [path.name for path in write_all(runs, tmp_path)]
        assert sum(name.endswith("_accuracy.png") for name in names) == 1
        assert sum(name.endswith("_methods.png") for name in names) == 1
        text = (tmp_path / "tables" / "runs.md").read_text()
        assert "### CIFAR-10, ResNet20, RigL (ERK)" in text
        assert text.count("###") == 1

    def test_all_tables_are_those_that_are_written(self, tmp_path):
        tables = all_tables(comparison())
        assert list(tables) == ["runs", "methods"]
        write_all(comparison(), tmp_path)
        found = {path.stem: path.read_text() for path in (tmp_path / "tables").iterdir()}
        assert found == tables
        assert list(all_tables(study(1))) == ["runs"]

    def test_runs_table_links_to_the_table_of_methods(self):
        assert runs_table(comparison()) == (
            "The methods are compared in a separate table: [methods.md](methods.md).\n"
        )
        assert "methods.md" not in runs_table(study(1))
