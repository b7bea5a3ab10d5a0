"""Settings: their checks, their defaults, and what depends on them."""

import dataclasses
import json

import pytest
from digit_runs import CPU, digits

from ckasr import methods
from ckasr.data import load
from ckasr.experiments import Settings
from ckasr.experiments.build import build_engine


@pytest.mark.parametrize("method", [name for name in methods.METHODS if name != "dense"])
def test_distribution_changes_the_id_where_the_method_reads_it(method):
    """Whether it reads it is seen from a training."""

    class Context(methods.Context):
        read = False

        def __getattribute__(self, name: str):
            if name == "distribution":
                type(self).read = True
            return super().__getattribute__(name)

    settings = digits(method=method, epochs=1, beta=0.0)
    engine = build_engine(settings, load("digits"), CPU)
    old = {f.name: getattr(engine.context, f.name) for f in dataclasses.fields(methods.Context)}
    engine.context = Context(**old)
    Context.read = False
    for _ in engine.epochs():
        pass
    other = dataclasses.replace(settings, distribution="uniform")
    assert (other.id != settings.id) == Context.read
    with pytest.raises(ValueError, match=r"^setting distribution "):
        dataclasses.replace(settings, distribution="erdos")


def test_decay_is_no_setting_where_there_are_no_milestones():
    assert Settings(milestones=(), decay=0.5) == Settings(milestones=())
    assert Settings(milestones=(0.5,), decay=0.5) != Settings(milestones=(0.5,))


def test_id_depends_on_values_not_on_how_they_are_written():
    assert Settings(beta=1, milestones=[0.5, 0.75]).id == Settings(beta=1.0).id
    assert Settings(beta=1.0).id != Settings(beta=1.0, every=1).id


def test_every_setting_changes_the_id():
    other = {
        "dataset": "digits",
        "model": "resnet32",
        "method": "rigl",
        "method_options": {"fraction": 0.5},
        "distribution": "er",
        "term": "shuffled",
        "variant": "paper",
        "pairs": "all",
        "milestones": (0.5,),
        "nesterov": False,
        "label_smoothing": 0.1,
        "dropout": 0.1,
        "noise": 0.1,
        "hsic": 0.1,
        "augment": "none",
        "precision": "bf16",
    }
    base = Settings(method="set", beta=0.5, sparsity=0.5)
    ids = {base.id}
    for item in dataclasses.fields(Settings):
        value = getattr(base, item.name)
        changed = other.get(item.name, value * 2 if isinstance(value, float) and value < 0.5 else 7)
        if item.name == "sparsity":
            changed = 0.25
        if item.name == "momentum":
            changed = 0.5
        ids.add(dataclasses.replace(base, **{item.name: changed}).id)
    assert len(ids) == len(dataclasses.fields(Settings)) + 1


def test_method_options_are_read_as_the_method_reads_them():
    chosen = Settings(method="lth", method_options={"rewind": 2})
    for written in ("2", 2.0):
        assert Settings(method="lth", method_options={"rewind": written}).id == chosen.id
    default = methods.create("lth").rewind
    assert Settings(method="lth", method_options={"rewind": default}) == Settings(method="lth")


def test_baselines_of_all_terms_are_one_run():
    assert Settings(beta=0.0, variant="paper", samples=0, every=1, pairs="all").id == Settings().id
    assert Settings(beta=1e-3, variant="aug", seed=2).baseline() == Settings(seed=2)


def test_settings_survive_json():
    settings = Settings(
        beta=1e-4, method="lth", method_options={"rewind": 2}, milestones=(0.25, 0.5)
    )
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(LookupError, match="unknown setting 'betta'"):
        Settings.from_dict({"betta": 1})


def test_short_schedules_are_named():
    assert Settings(epochs=159).schedule == "short"
    assert Settings().schedule == "full"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sparsity", 1.0),
        ("sparsity", -0.1),
        ("sparsity", "0.9"),
        ("beta", float("nan")),
        ("beta", -1e-4),
        ("samples", 3),
        ("every", 0),
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", True),
        ("batch_size", 1),
        ("learning_rate", 0.0),
        ("momentum", 1.0),
        ("milestones", (0.75, 0.5)),
        ("decay", 0.0),
        ("learning_rate", float("inf")),
        ("weight_decay", float("inf")),
        ("weight_decay", float("nan")),
        ("milestones", (0.5, float("nan"))),
        ("milestones", ("0.5",)),
        ("seed", -1),
        ("seed", 2**63),
        ("batch_size", 10**30),
        ("epochs", 10_001),
        ("validation", -1),
        ("label_smoothing", 1.0),
        ("dropout", -0.1),
        ("dropout", 1.0),
        ("noise", -1.0),
        ("noise", float("nan")),
        ("hsic", -1.0),
        ("variant", "offical"),
        ("pairs", "some"),
        ("distribution", "erdos"),
        ("augment", "flip"),
        ("precision", "fp16"),
    ],
)
def test_bad_settings_are_one_clear_line(name, value):
    with pytest.raises(ValueError, match=f"^setting {name} ") as error:
        Settings(**{"beta": 0.1, name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "near"),
    [
        ("dataset", "cifar-100", r"'cifar-100'; nearest: cifar100,? .*\(all: "),
        ("model", "resnet-20", r"'resnet-20'; nearest: resnet20,? "),
        ("dataset", "movies", r"'movies' \(all: "),
        ("method", "xyz", r"'xyz' \(all: dense, "),
    ],
)
def test_unknown_names_are_refused_and_only_near_ones_offered(name, value, near):
    with pytest.raises(LookupError, match=f"^unknown (data set|model|method) {near}"):
        Settings(**{name: value})


def test_both_terms_must_be_in_the_same_steps():
    with pytest.raises(ValueError, match=r"^setting hsic = 0.1 .* 0 with a term .* is not 5"):
        Settings(beta=0.1, every=1, hsic=0.1)
    assert Settings(beta=0.0, every=1, hsic=0.1) == Settings(hsic=0.1)


def test_a_baseline_keeps_the_settings_that_are_not_of_the_term():
    with_all = {"label_smoothing": 0.1, "dropout": 0.2, "noise": 0.3, "hsic": 0.4}
    assert Settings(beta=0.1, **with_all).baseline() == Settings(**with_all)


def test_a_baseline_is_checked_like_the_other_arm():
    with pytest.raises(ValueError, match=r"^setting variant "):
        Settings(beta=0.0, variant="offical")
