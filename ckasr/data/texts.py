"""Sets of texts: SST-2 (sentiment of film reviews) and AG News (topic of news items).

A text is converted to lower case and split into tokens, which are words and punctuation marks. The
vocabulary consists of the tokens that occur at least twice in the training texts. To add a set of
texts, add an entry to ``TEXT_SETS``.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ckasr import devices
from ckasr.choices import check_choice
from ckasr.tasks import CLASSIFICATION, Task

from .batches import Batch, Indices
from .registry import register
from .sampling import keyed_generator

LENGTH = 64
"""Largest number of tokens of a text; further tokens are removed."""
PADDING, UNKNOWN = 0, 1
"""Token after the end of a text, and token for a word that is not in the vocabulary."""
MINIMUM_COUNT = 2
"""Smallest number of occurrences of a token of the vocabulary in the training texts."""

Augment = Literal["default", "none"]
"""Texts have no augmentation, so both names have the same effect."""

Samples = list[tuple[str, int]]
"""Texts and their labels."""


class TextBatches:
    """Tokens and labels of one split, as batches (see ``Batches``).

    A batch is tokens (B, length) int64 and labels (B,) int64. The length is that of the longest
    text of the batch. On a device that captures steps, it is the same for all batches.

    Args:
        tokens: tokens of each text, (n, length) int64, padded with 0.
        labels: class of each text, (n,) int64.
        batch_size: number of texts per training batch.
        seed: seed of the order.
        order_seed: seed of another order; -1: the order of ``seed``.
        device: device of the batches.

    Raises:
        ValueError: if the texts do not fill one batch.
    """

    def __init__(
        self,
        tokens: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int = 0,
        order_seed: int = -1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device, self.batch_size = torch.device(device), batch_size
        self.seed, self.order_seed = seed, order_seed
        self.can_capture = devices.of(self.device).can_capture
        self.tokens, self.labels = tokens.to(self.device), labels.to(self.device)

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def batch_indices(self, epoch: int) -> Iterator[Indices]:
        if not len(self):
            raise ValueError(
                f"{len(self.labels)} texts do not fill one batch of {self.batch_size}: "
                "choose a smaller batch_size"
            )
        count = len(self.labels)
        order = torch.randperm(count, generator=keyed_generator("order", self.seed, epoch))
        if self.order_seed >= 0:
            key = "reorder", self.seed, self.order_seed, epoch
            order = order[torch.randperm(count, generator=keyed_generator(*key))]
        order = devices.of(self.device).send(order[: len(self) * self.batch_size])
        return ((part,) for part in order.split(self.batch_size))

    def batch(self, indices: Indices) -> Batch:
        (order,) = indices
        tokens = self._trim(self.tokens.index_select(0, order))
        return tokens, self.labels.index_select(0, order)

    def in_order(self, batch_size: int | None = None) -> Iterator[Batch]:
        size = batch_size or self.batch_size
        return zip(map(self._trim, self.tokens.split(size)), self.labels.split(size), strict=True)

    def _trim(self, tokens: Tensor) -> Tensor:
        if self.can_capture:
            return tokens
        return tokens[:, : int((tokens != PADDING).sum(1).max())]


@dataclass(frozen=True, eq=False)
class TextDataset:
    """A set of texts in memory (see ``Dataset``).

    Args:
        name: name of the data set.
        train_tokens, test_tokens: tokens (n, ``LENGTH``) int64, padded with 0, on the CPU.
        train_labels, test_labels: labels (n,) int64, on the CPU.
        num_classes: number of classes.
        vocabulary: number of different tokens, including those for padding and unknown words.
        task: task of the data set.
    """

    name: str
    train_tokens: Tensor
    train_labels: Tensor
    test_tokens: Tensor
    test_labels: Tensor
    num_classes: int
    vocabulary: int
    task: Task = CLASSIFICATION

    @property
    def example_input(self) -> Tensor:
        return self.train_tokens[:1]

    @property
    def model_options(self) -> Mapping[str, Any]:
        return {"vocabulary": self.vocabulary}

    def train_batches(
        self,
        index: Tensor,
        *,
        batch_size: int,
        augment: str = "default",
        seed: int = 0,
        order_seed: int = -1,
        device: torch.device | str = "cpu",
    ) -> TextBatches:
        check_choice("augment", augment, Augment)
        return TextBatches(
            self.train_tokens[index],
            self.train_labels[index],
            batch_size=batch_size,
            seed=seed,
            order_seed=order_seed,
            device=device,
        )

    def test_batches(self, *, batch_size: int, device: torch.device | str = "cpu") -> TextBatches:
        return TextBatches(self.test_tokens, self.test_labels, batch_size=batch_size, device=device)


def tokenise(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def text_dataset(name: str, train: Samples, test: Samples, num_classes: int) -> TextDataset:
    """Return a data set of tokens from texts. The vocabulary is that of the training texts.

    Args:
        name: name of the data set.
        train, test: texts and their labels.
        num_classes: number of classes.
    """
    words = [tokenise(text) for text, _ in train]
    counts = Counter(word for text in words for word in text)
    # Tokens are sorted, so that their numbers do not depend on the order of the texts.
    frequent = sorted(word for word, count in counts.items() if count >= MINIMUM_COUNT)
    number = {word: UNKNOWN + 1 + place for place, word in enumerate(frequent)}

    def encode(texts: Sequence[list[str]]) -> Tensor:
        tokens = torch.full((len(texts), LENGTH), PADDING)
        for row, text in zip(tokens, texts, strict=True):
            known = [number.get(word, UNKNOWN) for word in text[:LENGTH]]
            row[: len(known)] = torch.tensor(known, dtype=torch.int64)
        return tokens

    return TextDataset(
        name,
        encode(words),
        torch.tensor([label for _, label in train]),
        encode([tokenise(text) for text, _ in test]),
        torch.tensor([label for _, label in test]),
        num_classes=num_classes,
        vocabulary=UNKNOWN + 1 + len(frequent),
    )


def glue(path: Path) -> Samples:
    """Read a file of SST-2 (GLUE): a header, then a sentence, a tab and 0 or 1 on each line.

    Raises ValueError for any other content.
    """
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    if header.split("\t") != ["sentence", "label"]:
        raise ValueError(f"{path}: the first line must be 'sentence', a tab and 'label'")
    return [_sample(path, number, line, ("0", "1")) for number, line in enumerate(lines, 2)]


TOPICS = ("World", "Sports", "Business", "Sci/Tech")
"""Classes of AG News, in the order of their numbers 1 to 4."""


def news_tsv(path: Path) -> Samples:
    """Read a file of AG News whose lines are a text, a tab and the name of the topic.

    Raises ValueError for any other content.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_sample(path, number, line, TOPICS) for number, line in enumerate(lines, 1)]


def news_csv(path: Path) -> Samples:
    """Read a published file of AG News, whose rows are the number of the topic, title and text.

    Raises ValueError for any other content.
    """
    samples = []
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            if len(row) != 3 or row[0] not in ("1", "2", "3", "4"):
                raise ValueError(f"{path}, row {number}: must be a topic 1 to 4, title and text")
            samples.append((f"{row[1]} {row[2]}", int(row[0]) - 1))
    return samples


def _sample(path: Path, number: int, line: str, labels: Sequence[str]) -> tuple[str, int]:
    text, tab, label = line.rpartition("\t")
    if not tab or label not in labels:
        raise ValueError(f"{path}, line {number}: must end in a tab and one of {', '.join(labels)}")
    return text, labels.index(label)


@dataclass(frozen=True)
class Files:
    """Paths and format of the files of a set of texts.

    Args:
        train: paths of the files of the training texts, in the folder of all data sets.
        test: path of the file of the test texts, in the folder of all data sets.
        parse: function that reads one file.
    """

    train: tuple[str, ...]
    test: str
    parse: Callable[[Path], Samples]


@dataclass(frozen=True)
class TextFiles:
    """A set of texts before it is loaded.

    Args:
        name: name of the data set.
        num_classes: number of classes.
        counts: numbers of training and test texts. They are checked instead of digests, because no
            digests of these files are published.
        files: possible paths and formats of its files.
        source: description of where to get the files, for error messages.
    """

    name: str
    num_classes: int
    counts: tuple[int, int]
    files: tuple[Files, ...]
    source: str

    def load(self, root: Path) -> TextDataset:
        """Load the data set from the first entry of ``files`` whose files all exist.

        Args:
            root: folder of all data sets.

        Raises:
            FileNotFoundError: if files are missing for every entry.
            ValueError: for a damaged file, and for a wrong number of texts.
        """
        for files in self.files:
            if all((root / name).is_file() for name in (*files.train, files.test)):
                train = [sample for name in files.train for sample in files.parse(root / name)]
                test = files.parse(root / files.test)
                if (len(train), len(test)) != self.counts:
                    raise ValueError(
                        f"{self.name} in {root} has {len(train)} training and {len(test)} test "
                        f"texts, not {self.counts[0]} and {self.counts[1]}: get the files again, "
                        f"from {self.source}"
                    )
                return text_dataset(self.name, train, test, self.num_classes)
        wanted = " or ".join(
            ", ".join(str(root / name) for name in (*files.train, files.test))
            for files in self.files
        )
        raise FileNotFoundError(
            f"no {self.name}: expected {wanted}; set CKASR_DATA to the folder that holds them, or "
            f"get them from {self.source}"
        )


TEXT_SETS = (
    # GLUE does not publish the labels of its test set, so its development set is the test set here.
    TextFiles(
        "sst2",
        2,
        (67_349, 872),
        (
            Files(("SST-2/train.tsv",), "SST-2/dev.tsv", glue),
            Files(
                ("text/sst2_glue/train.tsv", "text/sst2_glue/dev.tsv"),
                "text/sst2_glue/test.tsv",
                glue,
            ),
        ),
        "GLUE (SST-2.zip)",
    ),
    TextFiles(
        "ag-news",
        4,
        (120_000, 7_600),
        (Files(("ag_news_csv/train.csv",), "ag_news_csv/test.csv", news_csv),),
        "the AG's corpus of news articles (ag_news_csv)",
    ),
    # A part of the training texts, with all test texts. It has its own name, so that tables do not
    # mix it with the full data set.
    TextFiles(
        "ag-news-10k",
        4,
        (10_001, 7_600),
        (Files(("text/agnews/dev.tsv",), "text/agnews/test.tsv", news_tsv),),
        "the first 10,001 lines of a shuffled copy of AG News",
    ),
)

for _entry in TEXT_SETS:
    register(_entry.name)(_entry.load)
