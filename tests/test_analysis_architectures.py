"""The effect on several networks: right values by hand, and which runs share a table."""

import math

import pytest
from synthetic import record

from ckasr.analysis import (
    architecture_differences,
    architecture_effects,
    architecture_studies,
    architectures_table,
    write_architectures,
)
from ckasr.experiments import Settings, grid

BASELINE = (0.50, 0.52, 0.54)
TREATED = (0.51, 0.55, 0.59)  # minus the baseline: 0.01, 0.03, 0.05


def runs(model: str, baseline=BASELINE, treated=TREATED, **settings) -> list[dict]:
    """Three pairs of one network; an epoch takes 2 s without the term, and 3, 3 and 6 s with it."""
    made = []
    for beta, values, times in ((0.0, baseline, (2, 2, 2)), (1e-4, treated, (3, 3, 6))):
        for seed, (accuracy, seconds) in enumerate(zip(values, times, strict=True)):
            run = record(accuracy, seed=seed, beta=beta, model=model, **settings)
            run["curves"]["seconds"] = [seconds] * len(run["curves"]["loss"])
            run["layer_cka"] = {
                **run["layer_cka"],
                "layers": ["a", "b", "c"],
                "matrix": [[1, 0.2, 0.4], [0.2, 1, 0.6 - 3000 * beta], [0.4, 0.6 - 3000 * beta, 1]],
            }
            made.append(run)
    return made


def test_effect_similarity_and_time_of_one_network():
    (effect,) = architecture_effects(runs("resnet20"))
    assert effect.accuracy.differences == pytest.approx((0.01, 0.03, 0.05))
    assert effect.accuracy.mean == pytest.approx(0.03)
    # Of the three pairs of layers, one has a CKA that is 0.3 lower.
    assert effect.similarity.mean == pytest.approx(-0.1)
    assert effect.slowdown == pytest.approx((1.5 * 1.5 * 3) ** (1 / 3))
    assert effect.time.mean == pytest.approx(math.log(1.5 * 1.5 * 3) / 3)
    assert effect.verdict == "no difference shown"  # 0.03 +- 4.303 * 0.02 / sqrt(3) contains 0


def test_a_network_at_chance_has_no_verdict():
    (effect,) = architecture_effects(runs("vit", (0.01, 0.01, 0.01), (0.01, 0.011, 0.012)))
    assert effect.verdict == "not tested: accuracy is at chance"


def test_networks_share_a_table_if_only_the_network_and_its_data_differ():
    records = [
        *runs("resnet20", sparsity=0.95),
        *runs("vit", sparsity=0.99, learning_rate=0.03),
        *runs("vgg16", dataset="cifar10"),
        *runs("resnet18", epochs=7),
    ]
    (study,) = architecture_studies(records)
    assert {e.settings["model"] for e in study} == {"resnet20", "vit", "vgg16"}
    table = architectures_table([study])
    (vit,) = [line for line in table.splitlines() if line.startswith("| ViT")]
    cells = [cell.strip() for cell in vit.split("|")[1:-1]]
    assert cells[2] == "99 %"
    assert cells[5:8] == ["52.00", "55.00", "+3.00"]
    assert cells[12] == "1.89"
    assert "ResNet18" not in table
    assert architecture_studies(runs("resnet20")) == []  # one network is no study


def test_a_network_without_layer_cka_keeps_its_row():
    records = [*runs("resnet20"), *runs("text_transformer")]
    for run in records:
        if run["settings"]["model"] == "text_transformer":
            run["layer_cka"] = None
    (study,) = architecture_studies(records)
    (text,) = [each for each in study if each.settings["model"] == "text_transformer"]
    assert text.accuracy.n == 3
    assert text.similarity.n == 0
    (row,) = [x for x in architectures_table([study]).splitlines() if x.startswith("| text Trans")]
    assert row.split("|")[12].strip() == "-"


def test_the_figure_has_a_row_for_each_network_and_a_dot_for_each_seed(tmp_path):
    records = [*runs("resnet20"), *runs("vit", (0.01,) * 3, (0.01, 0.011, 0.012))]
    (study,) = architecture_studies(records)
    accuracy = architecture_differences(study).axes[0]
    assert [label.get_text() for label in accuracy.get_yticklabels()] == [
        f"{each.label}\nn = 3" for each in study
    ]
    means = [container.lines[0] for container in accuracy.containers]
    assert [float(line.get_xdata()[0]) for line in means] == pytest.approx([3, 0.1])
    assert [line.get_markerfacecolor() == "white" for line in means] == [False, True]  # at chance
    dots = [
        sorted(float(x) for x, _ in swarm.get_offsets())
        for swarm in accuracy.collections
        if len(swarm.get_offsets()) == 3
    ]
    assert dots[0] == pytest.approx([1, 3, 5])
    assert dots[1] == pytest.approx([0, 0.1, 0.2])
    written = write_architectures(records, tmp_path)
    assert [path.name for path in written] == [
        "architectures.md",
        "random_erk_160ep_architectures.png",
        "random_erk_160ep_architectures.svg",
    ]
    assert write_architectures(runs("resnet20"), tmp_path) == []


def test_the_arms_of_a_network_share_a_row_and_differ_in_their_look():
    records = [*runs("resnet20"), *runs("resmlp")]
    placebo = [
        record(
            seed=run["settings"]["seed"],
            model=run["settings"]["model"],
            beta=1e-4,
            term="random_direction",
        )
        for run in records
        if run["settings"]["beta"]
    ]
    (study,) = architecture_studies([*records, *placebo])
    assert len(study) == 4
    figure = architecture_differences(study)
    assert len(figure.axes[0].get_yticklabels()) == 2
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["CKA-SR, β = 1e-4", "random-direction placebo, β = 1e-4"]


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="no effects to draw"):
        architecture_differences([])


def test_a_grid_has_every_network_with_and_without_the_term():
    cells = grid(
        Settings(), models=["resnet20", "vit"], sparsities=[0.9], betas=[0, 0.1], seeds=[0, 1]
    )
    assert [(c.seed, c.model, c.beta) for c in cells] == [
        (seed, model, beta) for seed in (0, 1) for model in ("resnet20", "vit") for beta in (0, 0.1)
    ]
    with pytest.raises(LookupError, match="unknown model 'resnet21'"):
        grid(Settings(), models=["resnet21"], sparsities=[0.9], betas=[0], seeds=[0])
