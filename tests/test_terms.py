"""Terms: the registry that everything reads, and the placebos, which must be placebos."""

import itertools

import pytest
import torch
from method_runs import finished, killed, outcome
from synthetic import pairs, record
from torch import nn
from typer.testing import CliRunner

from ckasr import CKASR, cka_sr_loss, cli, terms
from ckasr.analysis import training_curves
from ckasr.analysis.cells import arm_of, cells
from ckasr.analysis.paper import PUBLISHED, lookup, paper_difference
from ckasr.analysis.precision import precision_rows
from ckasr.analysis.precision_figure import precision_differences
from ckasr.analysis.tables import runs_table
from ckasr.experiments import Settings, grid
from ckasr.experiments.progress import title
from ckasr.experiments.sweeps import groups
from ckasr.notebooks import cells as notebook_cells
from ckasr.notebooks import read_profile
from ckasr.terms.cca import RIDGE
from ckasr.terms.cka_sr import CKASRTerm
from ckasr.terms.placebo import Placebo
from theory.trained_networks import units

OTHERS = [name for name in terms.TERMS if name != "cka_sr"]
PLACEBOS = [name for name, kind in terms.TERMS.items() if issubclass(kind, Placebo)]
OPTIONS = {"samples": 8, "every": 1, "variant": "official", "pairs": None}
# A cell and a beta for which the paper has a number.
PAPER = {"sparsity": 0.95, "epochs": 160, "beta": 1e-4}


class Penalty(CKASR):
    """A newcomer's term, registered by the tests below and nowhere else."""

    name, label, summary = "penalty", "newcomer", "added by a test"

    def __init__(self, model, beta, *, seed=0, **options):
        super().__init__(model, beta, **options)


def blocks(layers: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*(nn.Sequential(nn.Linear(12, 12), nn.Tanh()) for _ in range(layers)))


def term_of(name: str, model: nn.Module, **options) -> terms.Term:
    options = {"stages": [[layer for layer, _ in model.named_children()]]} | OPTIONS | options
    made = terms.create(name, model, 1.0, **options)
    made.reset(3)
    return made


# ---- the registry


@pytest.mark.parametrize("what", ["name", "label", "summary"])
def test_a_term_with_the_label_of_another_is_refused(what):
    own = {"name": "mine", "label": "my term", "summary": "mine"}
    inherits = type("Mine", (CKASRTerm,), {k: v for k, v in own.items() if k != what})
    with pytest.raises(TypeError, match=f"Mine must define its own {what}"):
        terms.registry(CKASRTerm, inherits)
    copies = type("Mine", (CKASRTerm,), own | {what: getattr(CKASRTerm, what)})
    with pytest.raises(TypeError, match=f"CKASRTerm and Mine have the same {what}"):
        terms.registry(CKASRTerm, copies)
    assert list(terms.registry(CKASRTerm, type("Mine", (CKASRTerm,), own))) == ["cka_sr", "mine"]


def test_a_new_term_needs_one_entry_and_is_named_everywhere(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(Penalty, "compute", lambda self: made.append(1) or CKASR.compute(self))
    with pytest.raises(LookupError, match="unknown term 'penalty'"):
        Settings(term="penalty")
    monkeypatch.setitem(terms.TERMS, "penalty", Penalty)
    runs = [
        finished(tmp_path, method="random", epochs=1, beta=beta, term="penalty")
        for beta in (0.0, 1e-3)
    ]
    assert made
    assert runs[1]["settings"]["term"] == "penalty"
    assert "newcomer official beta 0.001" in title(Settings.from_dict(runs[1]["settings"]))
    table = runs_table(runs)
    assert "newcomer, β = 1e-3" in table
    assert "CKA-SR" not in table
    said = {axis.get_ylabel() for axis in training_curves(runs).axes}
    assert {
        "newcomer term\n(before the factor β)",
        "ratio of gradient norms,\nβ × newcomer to loss",
    } <= said
    listed = CliRunner().invoke(cli.app, ["terms"], catch_exceptions=False).output
    assert [line.split()[0] for line in listed.splitlines()] == list(terms.TERMS)
    assert "penalty           added by a test" in listed


def test_an_unknown_term_is_one_clear_line():
    with pytest.raises(LookupError, match="unknown term 'shufled'; nearest: shuffled"):
        Settings(term="shufled")


# ---- names of records


def test_the_term_is_part_of_the_id_and_ids_of_cka_sr_do_not_change():
    assert Settings(beta=1e-3).id == Settings(beta=1e-3, term="cka_sr").id == "dc9ae8c51472"
    assert Settings(beta=1e-3, term="shuffled").id == "554b50e08129"
    old = Settings(beta=1e-3).to_dict()
    del old["term"]
    assert Settings.from_dict(old) == Settings(beta=1e-3)
    assert Settings(term="shuffled") == Settings()
    assert Settings(term="shuffled", beta=1e-3).baseline() == Settings()


# ---- what is printed


@pytest.mark.parametrize("name", OTHERS)
def test_the_papers_numbers_are_compared_with_cka_sr_only(name):
    label = terms.TERMS[name].label
    assert "CKA-SR" not in label
    own = [record(s, **PAPER, term=t)["settings"] for s, t in ((0.5, "cka_sr"), (0.5, name))]
    assert lookup(own[0]).percent == 48.26
    assert paper_difference(own[0], arm_of(own[0])) == pytest.approx(0.0099)
    assert paper_difference(own[1], arm_of(own[1])) is None
    for number in PUBLISHED:
        if number.beta:
            settings = own[1] | {
                "dataset": number.dataset,
                "model": number.model,
                "method": number.method,
                "sparsity": number.sparsity,
            }
            assert lookup(settings, arm_of(own[1])._replace(beta=number.beta)) is None


def test_baseline_cka_sr_and_placebo_stand_in_one_table():
    common = {k: v for k, v in PAPER.items() if k != "beta"}
    runs = pairs([0.46, 0.47, 0.48], [0.47, 0.48, 0.491], **common)
    runs += pairs([0.46, 0.47, 0.48], [0.471, 0.48, 0.49], term="shuffled", **common)
    (cell,) = cells(runs)
    assert [(arm.beta, arm.term) for arm in cell.arms] == [
        (0.0, "cka_sr"),
        (1e-4, "cka_sr"),
        (1e-4, "shuffled"),
    ]
    text = runs_table(runs)
    rows = [
        [c.strip() for c in line.split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    columns = {row[2]: row for row in rows}
    assert list(columns) == ["arm", "baseline", "CKA-SR, β = 1e-4", "shuffled placebo, β = 1e-4"]
    paper = columns["arm"].index("paper, %")
    assert [row[paper] for row in rows[1:]] == ["47.27", "48.26", "-"]
    assert [row[paper + 2] for row in rows[1:]] == ["-", "reproduced", "positive"]
    said = {axis.get_ylabel() for axis in training_curves(runs).axes}
    assert {"term\n(before the factor β)", "ratio of gradient norms,\nβ × term to loss"} <= said


def test_the_figure_of_precisions_names_the_term():
    for term, label in (("cka_sr", "CKA-SR"), ("shuffled", "shuffled placebo")):
        runs = [
            run
            for precision in ("fp32", "bf16")
            for run in pairs([0.5, 0.6], [0.6, 0.8], precision=precision, term=term)
        ]
        (rows,) = precision_rows(runs)
        said = [axis.get_title() for axis in precision_differences(rows).axes]
        assert f"effect of {label} on test accuracy" in said


def test_a_claim_about_cka_sr_does_not_count_placebos():
    runs = [
        record(beta=b, term=t) for b, t in ((0, "cka_sr"), (1e-4, "cka_sr"), (1e-4, "shuffled"))
    ]
    ((chain,),) = units(runs)
    assert [run["settings"]["term"] for run in chain] == ["cka_sr", "cka_sr"]
    assert units([runs[0], runs[2]]) == []


# ---- what is run


def test_a_grid_has_one_baseline_for_all_terms_in_one_group():
    chosen = grid(
        Settings(),
        sparsities=[0.95, 0.98],
        betas=[0, 1e-3],
        seeds=[0],
        terms=["cka_sr", "shuffled"],
    )
    arms = [(0.0, "cka_sr"), (1e-3, "cka_sr"), (1e-3, "shuffled")]
    assert [(c.beta, c.term) for c in chosen] == 2 * arms
    assert groups(chosen) == [chosen[:3], chosen[3:]]
    one = {"sparsities": [0.9], "betas": [1e-4], "seeds": [0]}
    assert grid(Settings(term="shuffled", beta=1), **one)[0].term == "shuffled"
    line = "sweep --dry-run --sparsities 0.95,0.98 --betas 0,1e-3 --seeds 0 --terms cka_sr,shuffled"
    said = CliRunner().invoke(cli.app, line.split(), catch_exceptions=False).output
    assert [text.split()[0] for text in said.splitlines()[:-1]] == [c.id for c in chosen]


def test_a_sweep_keeps_the_other_settings_of_the_term():
    line = "sweep --dry-run --sparsities 0.9 --betas 0,1e-3 --seeds 0 --variant aug --samples 0"
    said = CliRunner().invoke(cli.app, line.split(), catch_exceptions=False).output
    wanted = [Settings(sparsity=0.9), Settings(sparsity=0.9, beta=1e-3, variant="aug", samples=0)]
    assert [text.split()[0] for text in said.splitlines()[:-1]] == [s.id for s in wanted]


def test_the_profile_of_the_placebo_shares_its_baselines_with_cka_sr():
    placebo, other = (
        {cell.id: cell for step in read_profile(name).steps for cell in notebook_cells(step)}
        for name in ("verdict02_placebo_995", "verdict01_resnet20_995")
    )
    new = [cell for i, cell in placebo.items() if i not in other]
    assert [(c.term, c.beta, c.sparsity, c.seed) for c in new] == [
        ("shuffled", 1e-3, 0.995, seed) for seed in range(5)
    ]
    assert {c.baseline().id for c in new} == {i for i, c in placebo.items() if not c.beta}
    assert len({c.baseline().id for c in new} & other.keys()) == 5


# ---- the placebos


@pytest.mark.parametrize("name", terms.TERMS)
def test_a_term_leaves_the_global_generator_alone(name):
    model = blocks()
    before = torch.get_rng_state()
    made = term_of(name, model)
    for _ in range(3):
        model(torch.ones(8, 12) * torch.arange(8.0)[:, None])
        assert made.compute().item() == pytest.approx(made.term.item())
        made.advance()
    made.remove()
    assert torch.equal(before, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", PLACEBOS)
def test_a_placebo_is_new_at_every_step_and_the_same_again_from_its_key(name):
    """The gradient of 2 epochs of 2 steps; the second copy begins in the second epoch."""
    x = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))

    def gradients(seed: int, epochs: tuple[int, ...], samples: int | None) -> list[torch.Tensor]:
        model = blocks()
        made = term_of(name, model, seed=seed, samples=samples)
        found = []
        for epoch in epochs:
            made.reset(epoch)
            for _ in range(2):
                model.zero_grad()
                model(x)
                made.compute().backward()
                made.advance()
                found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        return found

    for samples in (8, None):
        whole = gradients(0, (10_000, 10_001), samples)
        torch.testing.assert_close(whole[2:], gradients(0, (10_001,), samples), rtol=0, atol=0)
        different = [*whole, *gradients(1, (10_000, 10_001), samples)]
        assert not any(torch.allclose(a, b) for a, b in itertools.combinations(different, 2))


def test_copies_of_one_layer_are_no_longer_alike():
    """Two layers with the same features: CKA is 1, and about 0 for samples paired at random."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(20, 20), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).clone())

    x = torch.randn(256, 20, generator=torch.Generator().manual_seed(0))
    values = {}
    for name in ("cka_sr", "shuffled"):
        model = Twice()
        made = term_of(name, model, stages=[["first", "second"]], samples=None)
        model(x)
        # Of the sum over ordered pairs, 2 is the diagonal and the rest is twice the one pair.
        values[name] = (made.compute().item() - 2) / 2
    assert values["cka_sr"] == pytest.approx(1, abs=1e-5)
    assert abs(values["shuffled"]) < 0.1


def test_the_shuffled_term_is_cka_sr_of_permuted_features_and_covers_all_of_them_evenly():
    """4 samples have 24 permutations: the steps must show each, and on average the pair is 0."""
    model = blocks(2)
    made = term_of("shuffled", model, samples=4, stages=[["0", "1"]])
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    a = model[0](x).detach()
    b = model[1](a).detach()
    possible = torch.tensor(
        [cka_sr_loss([[a, b[list(p)]]]).item() for p in itertools.permutations(range(4))]
    )
    assert (possible - 2).mean().item() == pytest.approx(0, abs=1e-5)
    counts = torch.zeros(24)
    for _ in range(600):
        model(x)
        made.compute()
        distance, index = (possible - made.term).abs().min(0)
        assert distance < 1e-5
        counts[index] += 1
        made.advance()
    # Some permutations have the same value, so cells are merged by value before they are counted.
    values, where = torch.unique(possible.mul(1e4).round(), return_inverse=True)
    seen = torch.zeros(len(values)).index_add_(0, where, counts)
    expected = torch.zeros(len(values)).index_add_(0, where, torch.ones(24)) * 25
    assert ((seen - expected).square() / expected).sum() < 60


@pytest.mark.parametrize("name", PLACEBOS)
@pytest.mark.parametrize("samples", [8, 0])
def test_a_placebo_goes_on_after_a_kill_bit_for_bit(tmp_path, name, samples):
    settings = {"method": "random", "beta": 0.05, "every": 3, "term": name, "samples": samples}
    whole = finished(tmp_path / "whole", **settings)
    parts, stops = killed(tmp_path / "parts", **settings)
    assert stops
    assert outcome(parts) == outcome(whole)
    official = finished(tmp_path / "official", **settings | {"term": "cka_sr"})
    assert whole["curves"]["term"] != official["curves"]["term"]


def test_a_random_direction_is_as_long_as_the_gradient_of_cka_sr():
    """Parameter by parameter, over the kept weights, whichever loss is beside it."""
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    found = {}
    for name in ("cka_sr", "random_direction"):
        model = blocks()
        kept = torch.rand(12, 12, generator=torch.Generator().manual_seed(2)) < 0.3
        weights = [p for p in model.parameters() if p.dim() == 2]
        with torch.no_grad():
            for weight in weights[:2]:
                weight.mul_(kept)
            weights[2].zero_()  # a collapsed layer
        made = term_of(name, model)
        loss = model(x).square().sum()
        value = made.compute()
        plain = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        (loss + value).backward()
        gradients = [p.grad - g for p, g in zip(model.parameters(), plain, strict=True)]
        assert name == "cka_sr" or not any(gradients[i][~kept].abs().gt(1e-4).any() for i in (0, 2))
        masked = [g * kept if i in (0, 2) else g for i, g in enumerate(gradients)]
        found[name] = [masked[i] for i in (0, 1, 2, 3)], gradients[4], value.item()
    (own, _, value), (other, collapsed, same) = found.values()
    assert same == pytest.approx(value)
    assert collapsed.abs().max() < 1e-4
    for a, b in zip(own, other, strict=True):
        assert b.norm().item() == pytest.approx(a.norm().item(), rel=1e-3, abs=1e-5)
    a, b = (torch.cat([g.flatten() for g in gradients]) for gradients in (own, other))
    assert abs(torch.cosine_similarity(a, b, dim=0)) < 0.5


def test_every_epoch_of_every_phase_has_a_number_of_its_own(tmp_path, monkeypatch):
    numbers = []
    reset = Placebo.reset
    monkeypatch.setattr(
        Placebo, "reset", lambda self, epoch=0: (numbers.append(epoch), reset(self, epoch))
    )
    options = {"method": "lth", "method_options": {"levels": "0.8,0.9"}, "beta": 0.01}
    record = finished(tmp_path, term="shuffled", **options)
    phases = len(set(record["curves"]["phase"]))
    assert phases > 1
    # A step is reset to 0 where it is made, once for each phase.
    of_epochs = sorted(numbers)[phases:]
    assert len(set(of_epochs)) == len(record["curves"]["epoch"])


def test_a_smaller_last_batch_is_shuffled_too():
    model = blocks()
    made = term_of("shuffled", model, samples=None)
    for count in (16, 5, 16, 20):
        model(torch.randn(count, 12))
        assert torch.isfinite(made.compute())
        made.advance()


# ---- terms by other formulas


def centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(0)


def plain_hsic(a: torch.Tensor, b: torch.Tensor, variant: str) -> torch.Tensor:
    """By double sums (Song et al. 2012, eq. 5), or by the trace (Gretton et al. 2005, eq. 9)."""
    n = len(a)
    if variant != "official":
        return (centred(a).T @ centred(b)).square().sum() / (n - 1) ** 2
    k, m = (g.fill_diagonal_(0) for g in (a @ a.T, b @ b.T))
    total = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
    return total / (n * (n - 3))


def plain_cca(a: torch.Tensor, b: torch.Tensor, variant: str) -> torch.Tensor:
    """The mean squared canonical correlation, from regularised covariances of the features."""
    a, b = centred(a), centred(b)
    n = len(a)

    def covariance(x: torch.Tensor) -> torch.Tensor:
        ridge = RIDGE * x.square().sum() / (n - 1)
        return x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype)

    cross = a.T @ b
    squares = torch.linalg.solve(covariance(a), cross) @ torch.linalg.solve(covariance(b), cross.T)
    return squares.trace() / (n - 1)


@pytest.mark.parametrize("variant", ["official", "paper", "aug"])
@pytest.mark.parametrize(("name", "pair"), [("hsic", plain_hsic), ("cca", plain_cca)])
def test_the_value_of_a_term_on_pairs_is_its_plain_formula(name, pair, variant):
    """Layers of 12 features, with 8 samples and with 16; two stages."""
    stages = [["0", "1", "2"], ["3", "4"]]
    for samples in (8, 16):
        model = blocks(5).double()
        x = torch.randn(16, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        made = term_of(name, model, variant=variant, samples=samples, stages=stages)
        model(x)
        value = made.compute().item()
        made.remove()
        layers, outputs = {}, x
        for key, layer in model.named_children():
            layers[key] = outputs = layer(outputs)
        few = {key: output[:samples].detach() for key, output in layers.items()}
        if variant == "aug":
            chosen = list(itertools.combinations(few, 2))
            scale = 1 / len(chosen)
        else:
            chosen = [both for stage in stages for both in itertools.product(stage, stage)]
            scale = 1
        expected = sum(pair(few[a], few[b], variant).item() for a, b in chosen) * scale
        assert value == pytest.approx(expected, rel=1e-9)


def test_the_value_of_l2_is_the_mean_square():
    model = blocks(2)
    made = term_of("l2_features", model, samples=4, stages=[["0", "1"]])
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    model(x)
    value = made.compute().item()
    made.remove()
    a = model[0](x)[:4]
    expected = (a.square().mean() + model[1](a).square().mean()) / 2
    assert value == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *itertools.product(("cka_sr", "hsic", "cca"), ("official", "aug")),
        ("l2_features", "official"),
    ],
)
def test_the_gradient_of_a_term_is_that_of_finite_differences(name, variant):
    model = blocks(3).double()
    x = torch.randn(8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = term_of(name, model, variant=variant)

    def value() -> torch.Tensor:
        model(x)
        return made.compute()

    parameters = list(model.parameters())
    gradients = torch.autograd.grad(value(), parameters, materialize_grads=True)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        directions = [torch.randn(p.shape, generator=generator).double() for p in parameters]
        slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)).item()
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                torch._foreach_add_(parameters, directions, alpha=step)
                ends.append(value().item())
                torch._foreach_add_(parameters, directions, alpha=-step)
        assert abs(slope) > 1e-6
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_cca_neither_depends_on_scale_nor_is_constant_with_few_samples():
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)).double()
    values = []
    for scale in (1.0, 1e-3, 0.0):
        model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12, bias=False)).double()
        torch.manual_seed(0)
        nn.init.normal_(model[0].weight)
        nn.init.normal_(model[1].weight)
        with torch.no_grad():
            model[1].weight.mul_(scale)
        made = term_of("cca", model, stages=[["0", "1"]])
        model(x)
        value = made.compute()
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, model[0].weight))
        values.append(value.item())
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    assert 0 < values[2] < 1  # a dead layer: the other layer with itself is left
    assert values[0] < 4 * 0.99


@pytest.mark.parametrize("option", [{"variant": "paper"}, {"pairs": "all"}])
def test_l2_refuses_options_that_it_does_not_have(option):
    (key, value), *_ = option.items()
    with pytest.raises(ValueError, match=f"compares no layers, so {key}='{value}' has no meaning"):
        term_of("l2_features", blocks(), **option)


@pytest.mark.parametrize("name", ["hsic", "cca", "l2_features"])
def test_a_run_has_the_term_of_its_settings(name, tmp_path):
    record = finished(tmp_path, method="random", beta=1e-6, term=name, epochs=1)
    assert record["settings"]["term"] == name
    (value,), (ratio,) = record["curves"]["term"], record["curves"]["gradient_ratio"]
    assert value > 0
    assert ratio > 0
