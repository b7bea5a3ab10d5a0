"""Sets of texts, and the Transformer that reads them."""

from pathlib import Path

import pytest
import torch

from ckasr import data, models
from ckasr.data import texts
from ckasr.data.texts import LENGTH, PADDING, UNKNOWN, Files, TextFiles, text_dataset, tokenise
from ckasr.experiments import Settings, run

REVIEWS = (
    "sentence\tlabel\na good film \t1\na bad film , a bad plot\t0\ngood !\t1\nbad bad bad\t0\n"
)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_texts_are_words_and_punctuation_marks_in_lower_case():
    assert tokenise("It's 2 Ästhetik—films, NOT one!") == [
        *("it", "'", "s", "2", "ästhetik", "—", "films", ",", "not", "one", "!")
    ]


def test_the_vocabulary_is_of_the_training_texts_that_have_a_word_twice(tmp_path):
    train = texts.glue(write(tmp_path / "train.tsv", REVIEWS))
    test = [("a film of the bad", 0), ("zebra", 1)]
    dataset = text_dataset("reviews", train, test, 2)
    # Twice or more, sorted: a, bad, film, good; behind padding and unknown.
    a, bad, film, good = range(2, 6)
    assert dataset.vocabulary == 6
    assert dataset.train_tokens.shape == (4, LENGTH)
    assert dataset.train_tokens[0, :4].tolist() == [a, good, film, PADDING]
    assert dataset.train_tokens[1, :7].tolist() == [a, bad, film, UNKNOWN, a, bad, UNKNOWN]
    assert dataset.train_labels.tolist() == [1, 0, 1, 0]
    assert dataset.test_tokens[0, :6].tolist() == [a, film, UNKNOWN, UNKNOWN, bad, PADDING]
    assert dataset.test_tokens[1, :2].tolist() == [UNKNOWN, PADDING]


def test_a_long_text_is_cut_off():
    dataset = text_dataset("long", [("word " * 100, 0)], [("word", 0)], 2)
    assert dataset.train_tokens.shape == (1, LENGTH)
    assert (dataset.train_tokens == 2).all()


def test_news_is_read_as_published_and_as_tsv(tmp_path):
    rows = '"3","Oil, again","Prices ""rise"""\n"1","Peace","Talks"\n'
    assert texts.news_csv(write(tmp_path / "a.csv", rows)) == [
        ('Oil, again Prices "rise"', 2),
        ("Peace Talks", 0),
    ]
    lines = "Prices rise\tBusiness\nTalks\tWorld\n"
    assert texts.news_tsv(write(tmp_path / "a.tsv", lines)) == [("Prices rise", 2), ("Talks", 0)]


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (texts.glue, "text\tlabel\n", "first line must be 'sentence'"),
        (texts.glue, "sentence\tlabel\nfine\t1\nno label\n", "line 3: must end in a tab and one"),
        (texts.glue, "sentence\tlabel\nfine\t2\n", "line 2: must end in a tab and one of 0, 1"),
        (texts.news_tsv, "fine\tWeather\n", "line 1: must end in a tab and one of World"),
        (texts.news_csv, '"5","a","b"\n', "row 1: must be a topic 1 to 4"),
        (texts.news_csv, '"1","a"\n', "row 1: must be a topic 1 to 4"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, parse, text, message):
    path = write(tmp_path / "damaged", text)
    with pytest.raises(ValueError, match=message) as caught:
        parse(path)
    assert str(path) in str(caught.value)


def reviews(tmp_path: Path, counts: tuple[int, int]) -> TextFiles:
    write(tmp_path / "train.tsv", REVIEWS)
    write(tmp_path / "test.tsv", REVIEWS)
    elsewhere = Files(("missing.tsv",), "test.tsv", texts.glue)
    here = Files(("train.tsv",), "test.tsv", texts.glue)
    return TextFiles("reviews", 2, counts, (elsewhere, here), "its authors")


def test_the_first_way_whose_files_are_there_is_read(tmp_path):
    assert len(reviews(tmp_path, (4, 4)).load(tmp_path).test_labels) == 4


def test_a_truncated_file_is_refused_by_its_number_of_texts(tmp_path):
    with pytest.raises(ValueError, match="4 training and 4 test texts, not 5 and 4: get"):
        reviews(tmp_path, (5, 4)).load(tmp_path)


def test_missing_files_are_named_with_their_source(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no sst2: expected .*SST-2/train\.tsv.* GLUE"):
        data.load("sst2", tmp_path)


# Batches


def toy(count: int = 40) -> texts.TextDataset:
    """The label is whether the text begins with "good"; lengths are from 1 to 10."""
    samples = [
        (("good" if label else "bad") + " film" * (number % 10), label)
        for number in range(count)
        for label in [number // 2 % 2]
    ]
    return text_dataset("toy", samples, samples, 2)


def test_an_epoch_contains_each_text_once_and_is_repeatable():
    batches = toy().train_batches(torch.arange(40), batch_size=8, seed=3)
    first, again, other = (
        torch.cat([order for (order,) in batches.batch_indices(epoch)]) for epoch in (1, 1, 2)
    )
    assert first.sort().values.tolist() == list(range(40))
    assert first.tolist() == again.tolist() != other.tolist()
    moved = toy().train_batches(torch.arange(40), batch_size=8, seed=3, order_seed=0)
    assert torch.cat([order for (order,) in moved.batch_indices(1)]).tolist() != first.tolist()


def test_a_batch_is_as_long_as_its_longest_text():
    dataset = toy()
    batches = dataset.train_batches(torch.arange(40), batch_size=4)
    tokens, labels = batches.batch((torch.tensor([0, 3, 5]),))
    assert tokens.shape == (3, 6)
    assert torch.equal(tokens, dataset.train_tokens[[0, 3, 5], :6])
    assert labels.tolist() == dataset.train_labels[[0, 3, 5]].tolist()


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match=r"unknown augment 'crop'.* \(all: default, none\)"):
        toy().train_batches(torch.arange(40), batch_size=8, augment="crop")


def test_too_few_texts_for_a_batch_are_refused():
    with pytest.raises(ValueError, match="40 texts do not fill one batch of 64"):
        next(toy().train_batches(torch.arange(40), batch_size=64).batch_indices(0))


# The Transformer


def test_padding_changes_neither_the_output_nor_the_features():
    torch.manual_seed(0)
    model = models.create("text_transformer", num_classes=2, input_shape=(20,), vocabulary=9).eval()
    tokens = torch.randint(1, 9, (5, 12))
    tokens[torch.arange(12) >= torch.tensor([[12], [1], [5], [9], [3]])] = PADDING
    features = []
    model.blocks[2].register_forward_hook(lambda *args: features.append(args[-1]))
    longer = torch.nn.functional.pad(tokens, (0, 8))
    torch.testing.assert_close(model(tokens), model(longer))
    torch.testing.assert_close(features[0], features[1][:, :12])
    assert not features[1][:, 12:].any()
    assert not features[0][1, 1:].any()


def test_an_image_is_refused():
    with pytest.raises(ValueError, match="the model reads tokens"):
        models.create("text_transformer", num_classes=2, input_shape=(3, 8, 8), vocabulary=9)


def test_a_run_on_texts_learns_them(tmp_path, monkeypatch):
    monkeypatch.setattr(data.registry, "_sources", dict(data.registry._sources))
    data.register("toy-reviews")(lambda root: toy(400))
    settings = Settings(
        dataset="toy-reviews",
        model="text_transformer",
        method="random",
        sparsity=0.9,
        beta=1e-4,
        epochs=3,
        batch_size=20,
        validation=40,
        learning_rate=0.05,
    )
    record = run(settings, tmp_path, device="cpu", progress=None)
    assert record["test_accuracy"] > 0.9, "chance is 0.5"
    assert record["curves"]["term"][0] > 0
    assert record["sparsity"]["nominal"] == pytest.approx(0.9, abs=1e-4)
