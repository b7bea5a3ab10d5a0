"""Figures: what is drawn is what was measured; files are the same bytes every time."""

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from PIL import Image
from synthetic import pairs, record, study

from ckasr.analysis import (
    accuracy_vs_sparsity,
    layer_cka_maps,
    save,
    training_curves,
    write_all,
)
from ckasr.analysis.marks import SPREAD, draw_seeds
from ckasr.analysis.style import BASELINE_LOOK, blank
from ckasr.experiments import records


def drawn(axis) -> dict[str, np.ndarray]:
    """Label -> y values of each labelled line of points on an axis."""
    found = {container.get_label(): container.lines[0] for container in axis.containers}
    found |= {
        line.get_label(): line for line in axis.lines if line.get_marker() not in ("", "None")
    }
    return {
        label: np.asarray(line.get_ydata())
        for label, line in found.items()
        if not label.startswith("_")
    }


def dots(axis) -> list[list[float]]:
    """Values of the seeds, a list for each swarm."""
    swarms = [c for c in axis.collections if isinstance(c, PathCollection)]
    return [list(swarm.get_offsets()[:, 1]) for swarm in swarms]


def cell(**settings) -> list[dict]:
    return pairs([0.40, 0.42, 0.44], [0.41, 0.42, 0.46], sparsity=0.95, **settings)


class TestAccuracy:
    def test_dots_means_intervals_and_the_papers_numbers(self):
        runs = cell() + pairs([0.1, 0.3], [0.2, 0.3], sparsity=0.995)
        upper, lower = accuracy_vs_sparsity(runs).axes
        assert dots(upper) == [
            pytest.approx([40, 42, 44]),
            pytest.approx([10, 30]),
            pytest.approx([41, 42, 46]),
            pytest.approx([20, 30]),
        ]
        assert drawn(upper) == {
            "baseline": pytest.approx([42, 20]),
            "CKA-SR, β = 1e-4": pytest.approx([43, 25]),
            "paper, baseline": pytest.approx([47.27]),
            "paper, CKA-SR, β = 1e-4": pytest.approx([48.26]),
        }
        assert dots(lower) == [pytest.approx([1, 0, 2]), pytest.approx([10, 0])]
        segments = lower.containers[0].lines[2][0].get_segments()
        half = 4.302653 / 3**0.5
        assert segments[0][:, 1] == pytest.approx([1 - half, 1 + half])
        hollow = next(line for line in lower.lines if line.get_markerfacecolor() == "none")
        assert hollow.get_ydata() == pytest.approx([0.99])
        ticks = [tick.get_text() for tick in lower.get_xticklabels()]
        assert ticks == ["95 %\nn = 3", "99.5 %\nn = 2"]

    def test_arms_do_not_overlap(self):
        upper = accuracy_vs_sparsity(study(3, (1e-4, 1e-3, 1e-2))).axes[0]
        places = [
            tuple(np.round(np.float64(container.lines[0].get_xdata()), 9))
            for container in upper.containers
        ]
        assert len(set(places)) == 4
        assert all(abs(x - round(x)) < 0.5 for place in places for x in place)

    def test_different_numbers_of_pairs_are_stated(self):
        runs = [*cell(), record(0.4, beta=0.001, sparsity=0.95)]
        lower = accuracy_vs_sparsity(runs).axes[1]
        assert lower.get_xticklabels()[0].get_text() == "95 %\nn = 3, 1"

    def test_diverged_runs_are_not_drawn_as_dots(self):
        runs = [*cell(), record(status="diverged", beta=1e-4, sparsity=0.95, seed=7)]
        assert [len(d) for d in dots(accuracy_vs_sparsity(runs).axes[0])] == [3, 3]

    def test_methods_are_drawn_side_by_side(self):
        figure = accuracy_vs_sparsity(cell() + cell(method="dense"))
        assert len(figure.axes) == 4
        assert ["dense" in axis.get_title() for axis in figure.axes[:2]] == [True, False]

    def test_the_axis_starts_at_0_only_if_an_accuracy_is_near_chance(self):
        low = accuracy_vs_sparsity(pairs([0.01, 0.02], [0.02, 0.01])).axes[0]
        assert low.get_ylim()[0] == 0
        assert "chance: 1 %" in low.get_legend_handles_labels()[1]
        high = accuracy_vs_sparsity(pairs([0.90, 0.91], [0.92, 0.91]))
        assert high.axes[0].get_ylim()[0] > 80
        assert "Chance is 1 %." in high.legends[0].get_title().get_text()

    def test_a_baseline_alone_has_no_panel_of_differences(self):
        assert len(accuracy_vs_sparsity([record(0.4), record(0.5, seed=1)]).axes) == 1

    def test_schedules_are_not_mixed(self):
        with pytest.raises(ValueError, match="different schedules"):
            accuracy_vs_sparsity(cell() + cell(epochs=30))

    @pytest.mark.parametrize("draw", [accuracy_vs_sparsity, layer_cka_maps, training_curves])
    def test_nothing_to_draw(self, draw):
        with pytest.raises(ValueError, match="no records"):
            draw([])


def note(figure) -> str:
    return figure.legends[0].get_title().get_text().replace("\n", " ")


class TestMaps:
    def test_maps_and_histograms_are_means_over_seeds(self):
        runs = cell()
        figure = layer_cka_maps(runs)
        baseline, treated, _, _, below, _ = figure.axes[:6]
        expected = np.mean([run["layer_cka"]["matrix"] for run in runs[:3]], axis=0)
        image = baseline.collections[0]
        np.testing.assert_allclose(image.get_array(), expected)
        lowest = min(run["layer_cka"]["matrix"][0][-1] for run in runs)
        low, high = image.get_clim()
        assert (low, high) == treated.collections[0].get_clim()
        assert lowest - 0.1 <= low <= lowest
        assert high == 1
        counts = np.mean([run["weights"]["histogram"]["counts"] for run in runs[:3]], axis=0)
        np.testing.assert_allclose(below.patches[0].get_data().values, counts)
        assert below.get_xlim() == (-0.3, 0.3)
        assert baseline.get_title() == "baseline\n(n = 3)"
        assert "unbiased" in figure.get_suptitle()

    def test_changes_are_means_over_pairs_on_a_scale_centred_on_0(self):
        runs = cell()
        for run in runs[3:]:
            run["layer_cka"] = run["layer_cka"] | {"matrix": (np.eye(10) + 0.2).tolist()}
        axis = layer_cka_maps(runs).axes[3]
        sides = [[run["layer_cka"]["matrix"] for run in side] for side in (runs[3:], runs[:3])]
        change = np.mean(sides[0], axis=0) - np.mean(sides[1], axis=0)
        np.testing.assert_allclose(axis.collections[0].get_array(), change)
        low, high = axis.collections[0].get_clim()
        assert low == -high
        assert high >= np.abs(change).max()
        assert axis.get_title() == "minus baseline\n(pairs: n = 3)"

    def test_the_mean_over_pairs_of_layers_is_shown_for_both_arms(self):
        runs = cell()
        off_diagonal = ~np.eye(10, dtype=bool)
        expected = [
            [np.array(run["layer_cka"]["matrix"])[off_diagonal].mean() for run in side]
            for side in (runs[:3], runs[3:])
        ]
        assert dots(layer_cka_maps(runs).axes[2]) == [pytest.approx(each) for each in expected]

    def test_constant_layers_are_left_out_and_named(self):
        runs = cell()
        for run in runs[:3]:
            matrix = np.array(run["layer_cka"]["matrix"])
            matrix[0] = matrix[:, 0] = 0
            run["layer_cka"] = run["layer_cka"] | {"matrix": matrix.tolist()}
        figure = layer_cka_maps(runs)
        shown = np.ma.filled(figure.axes[0].collections[0].get_array(), np.nan)
        assert np.isnan(shown[0]).all()
        assert np.isfinite(shown[1:, 1:]).all()
        assert "undefined (grey)" in figure.get_suptitle()

    def test_a_baseline_alone_is_one_map_beside_its_weights(self):
        figure = layer_cka_maps(cell()[:3])
        map_, weights, *_ = figure.axes
        assert map_.collections
        assert weights.patches

    def test_weights_beyond_the_edges_are_stated(self):
        runs = cell()
        for run in runs:
            run["sparsity"]["kept"] = 2 * sum(run["weights"]["histogram"]["counts"])
        label = layer_cka_maps(runs).axes[4].get_xlabel()
        assert label == "value of kept weights\n(50 % beyond ±0.3)"

    def test_more_than_one_cell_is_refused(self):
        for draw in (layer_cka_maps, training_curves):
            with pytest.raises(ValueError, match=r"one cell.*sparsity 95 %; .*sparsity 99\.5 %"):
                draw(cell() + pairs([0.1], [0.1], sparsity=0.995))

    def test_only_diverged_runs(self):
        with pytest.raises(ValueError, match="no finished run"):
            layer_cka_maps([record(status="diverged")])


class TestCurves:
    def test_runs_and_their_mean(self):
        runs = cell(epochs=6)
        figure = training_curves(runs)
        labels = [axis.get_ylabel().split("\n")[0] for axis in figure.axes]
        assert labels == ["training loss", "validation", "CKA-SR term", "ratio of gradient norms,"]
        accuracy = figure.axes[1]
        assert len(accuracy.lines) == 8
        curves = [run["curves"]["validation_accuracy"] for run in runs[:3]]
        np.testing.assert_allclose(accuracy.lines[3].get_ydata(), 100 * np.mean(curves, axis=0))
        assert "not computed during the training of the baseline" in note(figure)

    def test_the_term_that_was_measured_is_drawn_in_all_arms(self):
        runs = cell(epochs=6)
        for shift, run in enumerate(runs):
            run["curves"]["term_measured"] = [shift + epoch / 10 for epoch in range(6)]
        figure = training_curves(runs)
        labels = [axis.get_ylabel().split("\n")[0] for axis in figure.axes]
        assert labels[2:] == ["CKA-SR term", "CKA-SR term, measured", "ratio of gradient norms,"]
        means = [line.get_ydata() for line in figure.axes[3].lines if line.get_linewidth() > 1]
        wanted = [[mean + epoch / 10 for epoch in range(6)] for mean in (1, 4)]
        np.testing.assert_allclose(means, wanted)
        assert "The measured term is computed in all arms after each epoch" in note(figure)

    def test_an_older_record_without_the_measured_term_has_no_line(self):
        runs = cell(epochs=6)
        for run in runs[3:]:
            run["curves"]["term_measured"] = [1.0] * 6
        measured = training_curves(runs).axes[3]
        assert len([line for line in measured.lines if line.get_linewidth() > 1]) == 1

    def test_many_runs_are_a_band_around_their_mean(self):
        runs = pairs([0.4] * 6, [0.5] * 6, sparsity=0.95, epochs=3)
        figure = training_curves(runs)
        loss = figure.axes[0]
        assert len(loss.lines) == len(loss.collections) == 2
        values = [run["curves"]["loss"][0] for run in runs[:6]]
        half = 2.570582 * np.std(values, ddof=1) / 6**0.5
        ends = [y for x, y in loss.collections[0].get_paths()[0].vertices if x == 1]
        assert (min(ends), max(ends)) == pytest.approx(
            (np.mean(values) - half, np.mean(values) + half)
        )
        assert "95 % Student-t interval" in note(figure)

    def test_a_logarithmic_axis_has_the_geometric_mean(self):
        runs = cell(epochs=2)
        ratios = [run["curves"]["gradient_ratio"] for run in runs[3:]]
        mean = training_curves(runs).axes[3].lines[-1].get_ydata()
        np.testing.assert_allclose(mean, np.exp(np.mean(np.log(ratios), axis=0)))

    def test_the_start_of_a_phase_is_marked(self):
        runs = cell(epochs=4)
        for run in runs:
            run["curves"]["phase"] = ["train", "train", "finetune", "finetune"]
        loss = training_curves(runs).axes[0]
        assert [list(line.get_xdata()) for line in loss.lines][-1] == [2.5, 2.5]

    def test_values_that_were_not_measured_have_no_panel(self):
        assert len(training_curves([record(validation=0)]).axes) == 1

    def test_a_diverged_run_ends_in_a_cross(self):
        runs = [*cell(epochs=8), record(status="diverged", epochs=8, sparsity=0.95, seed=7)]
        runs[-1]["curves"]["loss"][-1] = None
        loss = training_curves(runs).axes[0]
        crosses = [line for line in loss.lines if line.get_marker() == "x"]
        assert [list(line.get_xdata()) for line in crosses] == [[1]]


class TestSave:
    def test_files_do_not_depend_on_the_matplotlib_settings_of_the_user(self, tmp_path):
        files = save(accuracy_vs_sparsity(cell()), tmp_path / "deep" / "a.png")
        first = [path.read_bytes() for path in files]
        with mpl.rc_context({"font.size": 20, "savefig.dpi": 50, "savefig.facecolor": "red"}):
            files = save(accuracy_vs_sparsity(cell()), tmp_path / "b.png")
            second = [path.read_bytes() for path in files]
            assert mpl.rcParams["font.size"] == 20
        assert first == second
        with Image.open(tmp_path / "b.png") as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            assert set(image.info) == {"dpi"}  # neither dates nor versions
        assert second[1].startswith(b"<?xml")
        assert [p.name for p in sorted(tmp_path.iterdir())] == ["b.png", "b.svg", "deep"]

    def test_the_path_is_that_of_the_png(self, tmp_path):
        with pytest.raises(ValueError, match=r"'a\.svg' must end in \.png"):
            save(accuracy_vs_sparsity(cell()), tmp_path / "a.svg")

    def test_a_notebook_shows_a_figure_without_pyplot(self):
        assert accuracy_vs_sparsity(cell())._repr_png_().startswith(b"\x89PNG")

    @pytest.mark.parametrize(
        ("draw", "folder", "model"),
        [
            # The first layout of this figure places a label partly outside the left border.
            (layer_cka_maps, "verdict01_resnet20_995", "resnet20"),
            # The labels of the legend are too long for two columns.
            (accuracy_vs_sparsity, "architectures_small", "noisy_mlp"),
        ],
    )
    def test_nothing_is_cut_off_at_the_border(self, draw, folder, model, tmp_path):
        found = records.load_all(Path(__file__).parents[1] / "results" / folder)
        save(draw([r for r in found if r["settings"]["model"] == model]), tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            pixels = np.asarray(image.convert("L"))
        for border in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert (border == 255).all()

    def test_figures_need_no_display_and_leave_none_open(self):
        code = (
            "import synthetic, ckasr.analysis as a, matplotlib;"
            "before = dict(matplotlib.rcParams);"
            "a.accuracy_vs_sparsity(synthetic.pairs([.1, .2], [.1, .3]));"
            "import matplotlib.pyplot as plt;"
            "assert plt.get_fignums() == [];"
            "assert dict(matplotlib.rcParams) == before"
        )
        folder = __file__.rsplit("/", 1)[0]
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr


class TestWriteAll:
    def test_every_figure_and_table_and_again_the_same(self, tmp_path):
        runs = [*cell(), record(status="diverged", sparsity=0.998)]
        runs.append(record(status="diverged", sparsity=0.95, epochs=30))
        written = write_all(iter(runs), tmp_path)
        names = [str(path.relative_to(tmp_path)) for path in written]
        stem = "figures/cifar100_resnet20_random_erk"
        assert names == [
            "tables/runs.md",
            *(
                f"{stem}_{name}.{kind}"
                for name in (
                    "160ep_accuracy",
                    "160ep_s95_layer_cka",
                    "160ep_s95_curves",
                    "160ep_s99.8_curves",
                    "30ep_accuracy",
                    "30ep_s95_curves",
                )
                for kind in ("png", "svg")
            ),
        ]
        assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(written)
        before = {path: path.read_bytes() for path in written}
        assert write_all(runs[::-1], tmp_path) == written
        assert {path: path.read_bytes() for path in written} == before

    def test_no_records(self, tmp_path):
        assert [path.name for path in write_all([], tmp_path)] == ["runs.md"]


@pytest.mark.parametrize("horizontal", [False, True])
def test_many_seeds_do_not_overlap_and_stay_near_their_arm(horizontal):
    """A swarm of 20 equal values is wider than its place: its outer dots lie on one another."""
    axis = blank(2, 2).subplots()
    draw_seeds(axis, 3.0, [0.5] * 20, BASELINE_LOOK, horizontal=horizontal)
    (dots,) = axis.collections
    value, place = (0, 1) if horizontal else (1, 0)
    offsets = np.asarray(dots.get_offsets())
    assert (offsets[:, value] == 0.5).all()
    assert abs(offsets[:, place] - 3).max() <= SPREAD
    assert np.diff(np.sort(offsets[:, place])).min() > SPREAD / 40
