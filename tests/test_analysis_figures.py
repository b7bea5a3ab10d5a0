"""Figures: what is drawn is what was measured; files are the same bytes every time."""

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from synthetic import pairs, record, study

from ckasr.analysis import (
    accuracy_vs_sparsity,
    layer_cka_maps,
    save,
    training_curves,
    write_all,
)


def drawn(axis) -> dict[str, np.ndarray]:
    """Label -> y values of each labelled line of points on an axis."""
    found = {container.get_label(): container.lines[0] for container in axis.containers}
    found |= {line.get_label(): line for line in axis.lines if line.get_marker() not in ("", ".")}
    return {
        label: np.asarray(line.get_ydata())
        for label, line in found.items()
        if not label.startswith("_")
    }


def dots(axis) -> list[list[float]]:
    return [list(line.get_ydata()) for line in axis.lines if line.get_marker() == "."]


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

    def test_no_arm_shares_its_place_with_another(self):
        upper = accuracy_vs_sparsity(study(3, (1e-4, 1e-3, 1e-2))).axes[0]
        places = [
            tuple(np.round(np.float64(container.lines[0].get_xdata()), 9))
            for container in upper.containers
        ]
        assert len(set(places)) == 4
        assert all(abs(x - round(x)) < 0.5 for place in places for x in place)

    def test_different_numbers_of_pairs_are_told(self):
        runs = [*cell(), record(0.4, beta=0.001, sparsity=0.95)]
        lower = accuracy_vs_sparsity(runs).axes[1]
        assert lower.get_xticklabels()[0].get_text() == "95 %\nn = 3, 1"

    def test_diverged_runs_are_no_dots(self):
        runs = [*cell(), record(status="diverged", beta=1e-4, sparsity=0.95, seed=7)]
        assert [len(d) for d in dots(accuracy_vs_sparsity(runs).axes[0])] == [3, 3]

    def test_methods_stand_side_by_side(self):
        figure = accuracy_vs_sparsity(cell() + cell(method="dense"))
        assert len(figure.axes) == 4
        assert ["dense" in axis.get_title() for axis in figure.axes[:2]] == [True, False]

    def test_schedules_are_not_mixed(self):
        with pytest.raises(ValueError, match="different schedules"):
            accuracy_vs_sparsity(cell() + cell(epochs=30))

    @pytest.mark.parametrize("draw", [accuracy_vs_sparsity, layer_cka_maps, training_curves])
    def test_nothing_to_draw(self, draw):
        with pytest.raises(ValueError, match="no records"):
            draw([])


class TestMaps:
    def test_maps_and_histograms_are_means_over_seeds(self):
        runs = cell()
        figure = layer_cka_maps(runs)
        baseline, treated, below = figure.axes[:3]
        expected = np.mean([run["layer_cka"]["matrix"] for run in runs[:3]], axis=0)
        image = baseline.images[0]
        np.testing.assert_allclose(image.get_array(), expected)
        assert image.get_clim() == treated.images[0].get_clim() == (0, 1)
        counts = np.mean([run["weights"]["histogram"]["counts"] for run in runs[:3]], axis=0)
        np.testing.assert_allclose(below.patches[0].get_data().values, counts)
        assert below.get_xlim() == (-0.3, 0.3)
        assert baseline.get_title() == "baseline\n(n = 3)"
        assert "unbiased" in figure.get_suptitle()

    def test_weights_beyond_the_edges_are_told(self):
        runs = cell()
        for run in runs:
            run["sparsity"]["kept"] = 2 * sum(run["weights"]["histogram"]["counts"])
        note = layer_cka_maps(runs).axes[2].texts[0].get_text()
        assert note == "beyond ±0.3:\n50 %"

    def test_more_than_one_cell_is_refused(self):
        for draw in (layer_cka_maps, training_curves):
            with pytest.raises(ValueError, match=r"of one cell.*at 95 %; .*at 99\.5 %"):
                draw(cell() + pairs([0.1], [0.1], sparsity=0.995))

    def test_only_diverged_runs(self):
        with pytest.raises(ValueError, match="no finished run"):
            layer_cka_maps([record(status="diverged")])


class TestCurves:
    def test_runs_and_their_mean(self):
        runs = cell(epochs=6)
        figure = training_curves(runs)
        labels = [axis.get_ylabel().split("\n")[0] for axis in figure.axes]
        assert labels == ["training loss", "validation", "CKA-SR term", "gradient norm of"]
        accuracy = figure.axes[1]
        assert len(accuracy.lines) == 8
        curves = [run["curves"]["validation_accuracy"] for run in runs[:3]]
        np.testing.assert_allclose(accuracy.lines[3].get_ydata(), 100 * np.mean(curves, axis=0))

    def test_what_nobody_measured_has_no_panel(self):
        assert len(training_curves([record(validation=0)]).axes) == 1

    def test_a_diverged_run_ends_in_a_cross(self):
        runs = [*cell(epochs=8), record(status="diverged", epochs=8, sparsity=0.95, seed=7)]
        runs[-1]["curves"]["loss"][-1] = None
        loss = training_curves(runs).axes[0]
        crosses = [line for line in loss.lines if line.get_marker() == "x"]
        assert [list(line.get_xdata()) for line in crosses] == [[1]]


class TestSave:
    def test_the_same_bytes_whatever_the_readers_settings(self, tmp_path):
        first = save(accuracy_vs_sparsity(cell()), tmp_path / "deep" / "a.png").read_bytes()
        with mpl.rc_context({"font.size": 20, "savefig.dpi": 50, "savefig.facecolor": "red"}):
            second = save(accuracy_vs_sparsity(cell()), tmp_path / "b.png").read_bytes()
            assert mpl.rcParams["font.size"] == 20
        assert first == second
        with Image.open(tmp_path / "b.png") as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            assert set(image.info) == {"dpi"}  # neither dates nor versions
        assert [p.name for p in sorted(tmp_path.iterdir())] == ["b.png", "deep"]

    def test_only_png(self, tmp_path):
        with pytest.raises(ValueError, match=r"'a\.svg' must end in \.png"):
            save(accuracy_vs_sparsity(cell()), tmp_path / "a.svg")

    def test_a_notebook_shows_a_figure_without_pyplot(self):
        assert accuracy_vs_sparsity(cell())._repr_png_().startswith(b"\x89PNG")

    def test_figures_need_neither_pyplot_nor_a_display(self):
        code = (
            "import sys, synthetic, ckasr.analysis as a;"
            "a.accuracy_vs_sparsity(synthetic.pairs([.1, .2], [.1, .3]));"
            "assert 'matplotlib.pyplot' not in sys.modules"
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
            f"{stem}_160ep_accuracy.png",
            f"{stem}_160ep_s95_layer_cka.png",
            f"{stem}_160ep_s95_curves.png",
            f"{stem}_160ep_s99.8_curves.png",
            f"{stem}_30ep_accuracy.png",
            f"{stem}_30ep_s95_curves.png",
        ]
        assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(written)
        before = {path: path.read_bytes() for path in written}
        assert write_all(runs[::-1], tmp_path) == written
        assert {path: path.read_bytes() for path in written} == before

    def test_no_records(self, tmp_path):
        assert [path.name for path in write_all([], tmp_path)] == ["runs.md"]
