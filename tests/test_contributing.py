"""The code of CONTRIBUTING.md runs as it stands."""

import re
from pathlib import Path

import pytest

from ckasr import methods, terms
from ckasr.data import registry as data_registry
from ckasr.experiments import Settings, run
from ckasr.models import registry as model_registry
from ckasr.tasks import Task

GUIDE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"


@pytest.fixture
def added(monkeypatch) -> dict[str, object]:
    """What the blocks of code define. What they register is gone after the test."""
    monkeypatch.setattr(data_registry, "_sources", dict(data_registry._sources))
    monkeypatch.setattr(model_registry, "_builders", dict(model_registry._builders))
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.M | re.S):
        exec(compile(block, GUIDE.name, "exec"), names)
    return names


def test_a_method_a_term_a_model_and_a_data_set_train_together(added, monkeypatch, tmp_path):
    monkeypatch.setitem(methods.METHODS, "smallest", added["Smallest"])
    monkeypatch.setitem(terms.TERMS, "opposite", added["Opposite"])
    settings = Settings(
        dataset="stripes",
        model="tiny_resnet",
        method="smallest",
        sparsity=0.5,
        term="opposite",
        beta=1e-3,
        every=1,
        epochs=6,
        batch_size=50,
        validation=100,
    )
    record = run(settings, tmp_path, device="cpu", progress=None)
    assert record["test_accuracy"] > 0.9, "chance is 0.5"
    assert record["sparsity"]["kept"] == record["sparsity"]["weights"] // 2
    assert record["curves"]["term"][0] is not None


def test_the_added_task_is_a_task(added):
    assert isinstance(added["LABEL_SMOOTHING"], Task)


def test_every_file_that_it_names_is_there():
    root = GUIDE.parent
    links = re.findall(r"\]\(([^)]+)\)", GUIDE.read_text())
    assert links
    assert [link for link in links if not (root / link).is_file()] == []


def test_there_is_a_section_for_each_kind_of_extension():
    titles = re.findall(r"^## (.*)$", GUIDE.read_text(), re.M)
    wanted = ("method", "term", "model", "data set", "task", "claim", "experiment", "device")
    assert all(any(word in title for title in titles) for word in wanted)
