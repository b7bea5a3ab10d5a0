"""Every model with every method: it trains, or it is refused in one line."""

import json

import pytest

from ckasr import methods, models
from ckasr.experiments import compatibility
from ckasr.methods import structured

FAST = ("lenet300", "resmlp", "resnet20")
EXTRAS = {"structured": "torch_pruning"}


def refusal(model: str, method: str) -> str:
    """The message of a refusal; empty where the pair runs. All other errors are raised."""
    if model.startswith("timm:"):
        pytest.importorskip("timm")
    if method in EXTRAS:
        pytest.importorskip(EXTRAS[method])
    try:
        compatibility.smoke(model, method)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("model", FAST)
def test_small_models_run_with_every_method(model, method):
    assert refusal(model, method) == ""


@pytest.mark.slow
@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("model", [name for name in compatibility.MODELS if name not in FAST])
def test_models_run_or_are_refused(model, method):
    """Beside SynFlow and structured pruning, which need a certain kind of network, all run."""
    message = refusal(model, method)
    assert "\n" not in message
    assert message == "" or method in ("synflow", "structured")


def test_every_model_but_other_depths_of_one_family_is_in_the_table():
    missing = set(models.names()) - set(compatibility.MODELS) - {"text_transformer"}
    plain = {name.split("_")[0] for name in missing}
    assert plain == {"resnet20", "resnet32", "resnet44", "resnet56", "resnet110"}


@pytest.mark.parametrize(
    ("model", "method", "message"),
    [
        ("vit", "synflow", "uses layer_norm"),
        ("mobilenet_v2", "structured", "is a grouped convolution"),
        ("vit", "structured", "cannot take channels out of VisionTransformer"),
    ],
)
def test_refusals_come_before_the_training(model, method, message, monkeypatch):
    if method in EXTRAS:
        pytest.importorskip(EXTRAS[method])
    monkeypatch.setattr(structured.Structured, "end_phase", lambda *args: pytest.fail("trained"))
    with pytest.raises(ValueError, match=message) as error:
        compatibility.smoke(model, method)
    assert "\n" not in str(error.value)


def test_outcomes_are_stored_and_the_table_is_made_from_them(tmp_path, monkeypatch):
    measured = []

    def refuse(name):
        raise ValueError(f"{name} is refused")

    def count(name):
        measured.append(name)
        return "yes"

    columns = {"snip": count, "synflow": refuse, "rigl": lambda name: [][0]}
    monkeypatch.setattr(compatibility, "COLUMNS", columns)
    for _ in range(2):
        compatibility.main(["resmlp", "lenet300", "--results", str(tmp_path)])
    assert measured == ["resmlp", "lenet300"]  # once each
    kept = json.loads((tmp_path / "compatibility.json").read_text())
    assert kept["resmlp"]["synflow"] == "refused: resmlp is refused"
    table = (tmp_path / "compatibility.md").read_text()
    assert "| model | snip | synflow | rigl |" in table
    assert "| `lenet300` | yes | refused (1) | fails (2) |" in table
    assert "1. refused: lenet300 is refused" in table
    assert "2. fails: IndexError: list index out of range" in table
