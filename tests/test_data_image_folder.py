"""Folders of images: what is listed, read and transformed, and a run on 20 small images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ckasr import data
from ckasr.data.image_folder import IMAGENET_MEAN, IMAGENET_STD, Folder, Recipe, random_crop
from ckasr.experiments import Settings, run

SMALL = Folder("small", "small", Recipe(size=16, resize=20))


@pytest.fixture
def root(tmp_path) -> Path:
    """Twenty images of two classes, of many sizes: "dark" and "light"."""
    rng = np.random.default_rng(0)
    for number in range(20):
        name, split = ("dark", "light")[number % 2], "train" if number < 12 else "val"
        pixels = rng.integers(0, 100, (*rng.integers(20, 40, 2), 3)) + 150 * (name == "light")
        path = tmp_path / "data" / "small" / split / name / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "data"


def test_classes_are_the_folders_in_alphabetical_order(root):
    dataset = SMALL.load(root)
    assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (12, 8, 2)
    assert dataset.train_labels.tolist() == [0] * 6 + [1] * 6
    assert dataset.example_input.shape == (1, 3, 16, 16)


def test_a_measured_image_is_resized_cropped_and_normalised(root):
    """Beside Pillow's resize, which rounds differently by at most one grey level or two."""
    dataset = SMALL.load(root)
    x, y = next(dataset.test_batches(batch_size=8).in_order())
    assert x.shape == (8, 3, 16, 16)
    assert y.tolist() == [0] * 4 + [1] * 4
    with Image.open(dataset.test[0][0]) as image:
        scale = 20 / min(image.size)
        width, height = (int(side * scale) for side in image.size)
        small = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    top, left = round((height - 16) / 2), round((width - 16) / 2)
    pixels = torch.from_numpy(small[top : top + 16, left : left + 16]).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(x[0] * std + mean, pixels, atol=2.5 / 255, rtol=0)


def test_an_epoch_depends_on_its_seeds_alone(root):
    dataset = SMALL.load(root)

    def epoch(number: int, **seeds: int) -> tuple[torch.Tensor, torch.Tensor]:
        batches = dataset.train_batches(torch.arange(12), batch_size=4, **seeds)
        made = [batches.batch(indices) for indices in batches.batch_indices(number)]
        return torch.cat([x for x, _ in made]), torch.cat([y for _, y in made])

    x, y = epoch(0)
    assert x.shape == (12, 3, 16, 16)
    assert y.sort().values.tolist() == [0] * 6 + [1] * 6
    assert torch.equal(epoch(0)[0], x)
    assert not torch.equal(epoch(1)[0], x)
    assert not torch.equal(epoch(0, seed=1)[0], x)
    moved = epoch(0, order_seed=0)[0]
    assert not torch.equal(moved, x)
    # The same crops and flips, in another order.
    assert moved.flatten(1).sum(1).sort().values.allclose(x.flatten(1).sum(1).sort().values)


def test_only_the_images_of_a_batch_are_read(root):
    dataset = SMALL.load(root)
    batches = dataset.train_batches(torch.arange(12), batch_size=4)
    first, second, _ = batches.batch_indices(0)
    for index in second[0].tolist():
        dataset.train[index][0].write_bytes(b"no image")
    batches.batch(first)
    with pytest.raises(ValueError, match=r"\.png is no image that can be read"):
        batches.batch(second)


def test_random_crops_lie_in_the_image_and_have_the_areas_and_ratios_of_the_recipe():
    numbers = torch.rand(2000, 4, generator=torch.Generator().manual_seed(0)).tolist()
    crops = torch.tensor([random_crop(300, 400, n) for n in numbers], dtype=torch.float64)
    top, left, height, width = crops.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    area, ratio = height * width / 120_000, width / height
    assert area.min() > 0.07
    whole = (height < 300) & (width < 400)
    assert area[whole].max() < 1
    assert ratio[whole].min() > 0.74
    assert ratio[whole].max() < 1.35
    # Uniform from 0.08 to 1; crops this small are not cut, except by a pixel's rounding.
    assert (area < 0.31).double().mean() == pytest.approx(0.25, abs=0.02)
    # Every place occurs, in both directions, independently of each other.
    free = whole & (height < 200) & (width < 250)
    places = torch.stack([top / (300 - height), left / (400 - width)])[:, free]
    assert places.mean(1).sub(0.5).abs().max() < 0.05
    assert torch.corrcoef(places)[0, 1].abs() < 0.1


def test_missing_folders_are_named(root):
    with pytest.raises(FileNotFoundError, match=r"no imagenet: expected .*imagenet.train with a"):
        data.load("imagenet", root)
    (root / "small" / "val" / "grey").mkdir()
    with pytest.raises(ValueError, match=r"has the class 'grey', which .*train lacks"):
        SMALL.load(root)


def test_an_unknown_augmentation_is_refused(root):
    with pytest.raises(
        ValueError, match=r"unknown augment 'crop'.* \(all: default, crop-flip, none\)"
    ):
        SMALL.load(root).train_batches(torch.arange(12), batch_size=4, augment="crop")


def test_a_run_reads_its_images_from_the_folder(root, tmp_path, monkeypatch):
    monkeypatch.setattr(data.registry, "_sources", dict(data.registry._sources))
    data.register("small")(SMALL.load)
    settings = Settings(
        dataset="small",
        model="resnet20",
        method="random",
        sparsity=0.5,
        beta=1e-4,
        every=1,
        samples=4,
        epochs=2,
        batch_size=4,
        validation=4,
        learning_rate=0.01,
    )
    record = run(settings, tmp_path, device="cpu", progress=None, data=root)
    assert record["status"] == "finished"
    assert record["curves"]["term"][0] > 0
    assert record["test_accuracy"] in {k / 8 for k in range(9)}
