"""What a newcomer adds: a set of texts with a Transformer, and a folder of images.

Everything that they need is in this file and enters by the public doors, ``data.register`` and
``models.register``. If one of these tests needs a change elsewhere in the package, a door is shut.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ckasr import data, models
from ckasr.analysis import learned, methods_table, runs_table, write_all
from ckasr.analysis.tables import DEAD_CLASSES, EFFECTIVE, UNKNOWN_PATHS
from ckasr.data import Batch, registry
from ckasr.data.sampling import keyed_generator
from ckasr.experiments import Settings, records, run
from ckasr.models import registry as model_registry
from ckasr.tasks import CLASSIFICATION, Task


@pytest.fixture(autouse=True)
def _own_registries(monkeypatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_sources", dict(registry._sources))
    monkeypatch.setattr(model_registry, "_builders", dict(model_registry._builders))


# --- texts: the file of the data set ---------------------------------------------------------

LENGTH, VOCABULARY, PADDING = 12, 30, 0


class TokenBatches:
    """Tokens (n, length) int64, padded with 0, and labels (n,) int64."""

    can_capture = True

    def __init__(
        self, tokens: Tensor, labels: Tensor, batch_size: int, seed: int, device: torch.device | str
    ) -> None:
        self.device, self.batch_size, self.seed = torch.device(device), batch_size, seed
        self.tokens, self.labels = tokens.to(self.device), labels.to(self.device)

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def batch_indices(self, epoch: int) -> Iterator[tuple[Tensor, ...]]:
        generator = keyed_generator("order", self.seed, epoch)
        order = torch.randperm(len(self.labels), generator=generator).to(self.device)
        return ((part,) for part in order[: len(self) * self.batch_size].split(self.batch_size))

    def batch(self, indices: tuple[Tensor, ...]) -> Batch:
        (order,) = indices
        return self.tokens.index_select(0, order), self.labels.index_select(0, order)

    def in_order(self, batch_size: int | None = None) -> Iterator[Batch]:
        size = batch_size or self.batch_size
        return zip(self.tokens.split(size), self.labels.split(size), strict=True)


@dataclass(frozen=True, eq=False)
class TokenSet:
    """The label of a text is whether its first token is in the upper half of the vocabulary."""

    tokens: Tensor
    labels: Tensor
    name: str = "toy-texts"
    task: Task = CLASSIFICATION
    num_classes: int = 2

    @property
    def train_labels(self) -> Tensor:
        return self.labels[:320]

    @property
    def example_input(self) -> Tensor:
        return self.tokens[:1]

    @property
    def model_options(self) -> Mapping[str, Any]:
        return {"vocabulary": VOCABULARY}

    def train_batches(
        self,
        index: Tensor,
        *,
        batch_size: int,
        augment: str = "default",
        seed: int = 0,
        order_seed: int = -1,
        device: torch.device | str = "cpu",
    ) -> TokenBatches:
        if augment not in ("default", "none"):
            raise ValueError(f"augment={augment!r}: texts have no augmentation, choose none")
        return TokenBatches(self.tokens[index], self.labels[index], batch_size, seed, device)

    def test_batches(self, *, batch_size: int, device: torch.device | str = "cpu") -> TokenBatches:
        return TokenBatches(self.tokens[320:], self.labels[320:], batch_size, 0, device)


def load_texts(root: Path) -> TokenSet:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCABULARY, (400, LENGTH), generator=generator)
    lengths = torch.randint(3, LENGTH + 1, (400, 1), generator=generator)
    tokens[torch.arange(LENGTH) >= lengths] = PADDING
    return TokenSet(tokens, (tokens[:, 0] >= VOCABULARY // 2).long())


# --- texts: the file of the model ------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, key_padding_mask=padding, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ToyTransformer(nn.Module):
    def __init__(self, num_classes: int, input_shape: Sequence[int], *, vocabulary: int) -> None:
        super().__init__()
        width = 16
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.position = nn.Parameter(torch.randn(input_shape[0], width) * 0.1)
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.fc = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == PADDING
        x = self.embedding(tokens) + self.position
        for block in self.blocks:
            x = block(x, padding)
        return self.fc(x[:, 0])


def texts(**changes: Any) -> Settings:
    data.register("toy-texts")(load_texts)
    models.register("toy-transformer")(ToyTransformer)
    values = {
        "dataset": "toy-texts",
        "model": "toy-transformer",
        "method": "random",
        "sparsity": 0.5,
        "beta": 1e-2,
        "every": 2,
        "epochs": 1,
        "batch_size": 16,
        "validation": 40,
    }
    return Settings(**values | changes)


def test_texts_and_a_transformer_are_a_file_each(tmp_path):
    record = run(texts(epochs=8, learning_rate=0.05), tmp_path, device="cpu", progress=None)
    assert records.load(tmp_path, record["id"]) == record
    assert record["status"] == "finished"
    assert record["curves"]["term"][0] > 0
    assert record["curves"]["gradient_ratio"][0] > 0
    sparsity = record["sparsity"]
    # In each block: the input and output projections of attention, and two linear layers.
    assert sparsity["weights"] == 2 * (4 * 16 * 16 + 2 * 2 * 16 * 16) + 2 * 16
    assert sparsity["kept"] == sparsity["weights"] / 2
    assert sparsity["not_followed"] == "the inputs are torch.int64"
    assert record["layer_cka"]["layers"] == ["stem", "blocks.0", "blocks.1"]
    assert record["test_accuracy"] > 0.6, "chance is 0.5"


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_scores_read_the_loss_of_the_task(method, tmp_path):
    record = run(texts(method=method, beta=0.0), tmp_path, device="cpu", progress=None)
    assert record["sparsity"]["kept"] == record["sparsity"]["weights"] / 2


def test_the_loss_and_the_metric_are_those_of_the_task(tmp_path):
    """A task of its own: the loss is constant in the outputs, and every prediction is correct."""
    flat = Task("flat", lambda outputs, _: 0 * outputs.sum() + 3, lambda _, y: y.new_tensor(len(y)))
    data.register("flat-texts")(lambda root: replace(load_texts(root), task=flat))
    record = run(texts(dataset="flat-texts", beta=0.0), tmp_path, device="cpu", progress=None)
    assert record["curves"]["loss"] == [3.0]
    assert record["curves"]["validation_accuracy"] == [1.0]
    assert record["test_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resmlp"}, "model 'resmlp' does not fit the data set: .*'vocabulary'"),
        ({"dataset": "digits"}, "model 'toy-transformer' does not fit .*'vocabulary'"),
        ({"augment": "crop"}, "texts have no augmentation"),
    ],
)
def test_an_unsuitable_model_is_one_line_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        run(texts(**changes), tmp_path / "results", device="cpu", progress=None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()


# --- a folder of images: its file ------------------------------------------------------------


class FolderBatches:
    """Images that are read from their files when their batch is needed."""

    can_capture = False

    def __init__(
        self, files: list[Path], labels: Tensor, batch_size: int, seed: int, device: Any
    ) -> None:
        self.device, self.batch_size, self.seed = torch.device(device), batch_size, seed
        self.files, self.labels = files, labels

    def __len__(self) -> int:
        return len(self.files) // self.batch_size

    def batch_indices(self, epoch: int) -> Iterator[tuple[Tensor, ...]]:
        order = torch.randperm(
            len(self.files), generator=keyed_generator("order", self.seed, epoch)
        )
        return ((part,) for part in order[: len(self) * self.batch_size].split(self.batch_size))

    def batch(self, indices: tuple[Tensor, ...]) -> Batch:
        (order,) = indices
        images = torch.stack([read(self.files[i]) for i in order.tolist()])
        return images.to(self.device), self.labels[order].to(self.device)

    def in_order(self, batch_size: int | None = None) -> Iterator[Batch]:
        parts = torch.arange(len(self.files)).split(batch_size or self.batch_size)
        return (self.batch((part,)) for part in parts)


READ: list[Path] = []


def read(file: Path) -> Tensor:
    """An image of any size as (1, 8, 8)."""
    from PIL import Image

    READ.append(file)
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("L").resize((8, 8)), np.float32)
    return torch.from_numpy(pixels)[None] / 127.5 - 1


@dataclass(frozen=True, eq=False)
class Folder:
    """``<root>/toy-folder/<split>/<class>/*.png``."""

    train: list[Path]
    test: list[Path]
    name: str = "toy-folder"
    task: Task = CLASSIFICATION
    num_classes: int = 2

    @property
    def train_labels(self) -> Tensor:
        return classes(self.train)

    @property
    def example_input(self) -> Tensor:
        return torch.zeros(1, 1, 8, 8)

    @property
    def model_options(self) -> Mapping[str, Any]:
        return {}

    def train_batches(
        self,
        index: Tensor,
        *,
        batch_size: int,
        augment: str = "default",
        seed: int = 0,
        order_seed: int = -1,
        device: torch.device | str = "cpu",
    ) -> FolderBatches:
        files = [self.train[i] for i in index.tolist()]
        return FolderBatches(files, classes(files), batch_size, seed, device)

    def test_batches(self, *, batch_size: int, device: torch.device | str = "cpu") -> FolderBatches:
        return FolderBatches(self.test, classes(self.test), batch_size, 0, device)


def classes(files: list[Path]) -> Tensor:
    return torch.tensor([int(file.parent.name) for file in files])


def load_folder(root: Path) -> Folder:
    train, test = (
        sorted((root / "toy-folder" / split).glob("*/*.png")) for split in ("train", "test")
    )
    return Folder(train, test)


def test_a_folder_of_images_is_one_file_and_is_read_batch_by_batch(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(20):
        label, split = number % 2, "train" if number < 12 else "test"
        shape = rng.integers(8, 20, 2)
        pixels = (rng.integers(0, 100, shape) + 150 * label).astype(np.uint8)
        path = tmp_path / "data" / "toy-folder" / split / str(label) / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    data.register("toy-folder")(load_folder)
    READ.clear()
    folder = data.load("toy-folder", tmp_path / "data")
    batches = folder.train_batches(torch.arange(12), batch_size=4)
    first, *_ = batches.batch_indices(0)
    assert not READ
    batches.batch(first)
    assert len(READ) == 4

    settings = Settings(
        dataset="toy-folder",
        model="resmlp",
        method="random",
        sparsity=0.5,
        beta=1e-2,
        every=1,
        samples=4,
        epochs=1,
        batch_size=4,
        validation=4,
    )
    record = run(settings, tmp_path, device="cpu", progress=None, data=tmp_path / "data")
    assert record["status"] == "finished"
    assert record["curves"]["term"][0] is not None
    assert record["sparsity"]["kept"] == record["sparsity"]["weights"] / 2
    assert record["sparsity"]["effective"] >= record["sparsity"]["nominal"]
    assert record["test_accuracy"] in {k / 8 for k in range(9)}


def test_tables_say_why_the_paths_of_a_network_are_not_known(tmp_path):
    base = texts()
    cells = [
        replace(base, method=method, beta=beta, seed=seed, sparsity=sparsity)
        for method in ("random", "magnitude")
        for beta in (0.0, 1e-2)
        for seed in (0, 1)
        for sparsity in (0.5, 0.9985)
    ]
    found = [run(cell, tmp_path, device="cpu", progress=None) for cell in cells]
    assert {record["sparsity"]["classes"] for record in found} == {2}
    assert any(path.suffix == ".png" for path in write_all(found, tmp_path))
    for table in (runs_table(found), methods_table(found)):
        header = next(line for line in table.splitlines() if line.startswith("| sparsity"))
        assert EFFECTIVE not in header
        assert DEAD_CLASSES not in header
        assert f"{UNKNOWN_PATHS}: the inputs are torch.int64" in table
    assert not learned(found), "one epoch: the accuracy of two classes is below 100 %"
