"""Data sets and batches, against per-image references and files that are made or broken here."""

import gzip
import hashlib
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckasr import data
from ckasr.data import ImageBatches, files, image_sets, registry, split

MEAN, STD = (0.5, 0.25, 0.4), (0.2, 0.3, 0.25)


def pictures(count: int, height: int, width: int, channels: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(
        0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator
    )
    return images, torch.arange(count) % 5


def make(count: int = 50, *, height: int = 8, width: int = 8, channels: int = 3, **options):
    images, labels = pictures(count, height, width, channels)
    options = {"batch_size": 16, "augment": "crop-flip", "seed": 3} | options
    return ImageBatches(images, labels, mean=MEAN[:channels], std=STD[:channels], **options)


def epoch(batches: ImageBatches, number: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    xs, ys = zip(*batches.epoch(number), strict=True)
    return torch.cat(xs), torch.cat(ys)


# --- batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", data.AUGMENTS)
@pytest.mark.parametrize("shape", [(8, 8, 3), (5, 9, 1)])
def test_batches_equal_a_reference_that_treats_one_image_at_a_time(augment, shape):
    height, width, channels = shape
    images, labels = pictures(50, *shape)
    batches = make(height=height, width=width, channels=channels, augment=augment)
    order, corner, flip = (draw.numpy() for draw in batches.plan(2))
    x, y = epoch(batches, 2)
    assert len(x) == 48

    for k, image in enumerate(order):
        picture = images[image].numpy()
        if augment != "none":
            padded = np.zeros((height + 8, width + 8, channels), np.uint8)
            padded[4:-4, 4:-4] = picture
            top, left = divmod(int(corner[k]) - image * padded[..., 0].size, width + 8)
            assert 0 <= top <= 8 and 0 <= left <= 8  # noqa: PT018
            picture = padded[top : top + height, left : left + width]
        if flip[k]:
            picture = picture[:, ::-1]
        mean, std = (
            (255 * np.array(v[:channels], np.float64)).astype(np.float32) for v in (MEAN, STD)
        )
        expected = ((picture.astype(np.float32) - mean) / std).transpose(2, 0, 1)
        np.testing.assert_array_equal(x[k].numpy(), expected)
        assert y[k] == labels[image]


def test_batches_agree_with_torchvision():
    """Black padding before normalisation, and torchvision's order of the steps."""
    from torchvision.transforms.v2 import functional as tv

    images, _ = pictures(50, 8, 8, 3)
    batches = make()
    order, corner, flip = batches.plan(0)
    x, _ = epoch(batches)
    for k, image in enumerate(order.tolist()):
        top, left = divmod(int(corner[k]) - image * 256, 16)
        picture = tv.crop(tv.pad(images[image].permute(2, 0, 1), 4), top, left, 8, 8)
        picture = tv.horizontal_flip(picture) if flip[k] else picture
        expected = tv.normalize(tv.to_dtype(picture, torch.float32, scale=True), MEAN, STD)
        torch.testing.assert_close(x[k], expected, rtol=0, atol=1e-6)


def test_crops_and_flips_are_uniform():
    order, corner, flip = make(8100, height=2, width=2, batch_size=8100).plan(0)
    places = Counter((corner - order * 100).tolist())
    assert set(places) == {10 * top + left for top in range(9) for left in range(9)}
    chi_square = sum((n - 100) ** 2 / 100 for n in places.values())
    assert chi_square < 124.8  # 99.9 % quantile at 80 degrees of freedom
    assert abs(int(flip.sum()) - 4050) < 3.3 * 45


def test_order_and_augmentation_depend_on_seed_and_epoch_alone():
    batches = make()
    expected = epoch(batches, 5)
    torch.manual_seed(99)  # the global generator plays no part
    list(batches.epoch(1))
    for again in (epoch(batches, 5), epoch(make(), 5), epoch(make(seed=np.int64(3)), 5)):
        assert torch.equal(again[0], expected[0])
        assert torch.equal(again[1], expected[1])
    for other in (batches.plan(6), make(seed=4).plan(5)):
        for draw, before in zip(other, batches.plan(5), strict=True):
            assert not torch.equal(draw, before)


@pytest.mark.parametrize("augment", data.AUGMENTS)
def test_an_order_seed_changes_the_order_and_nothing_else(augment):
    """Each image keeps its crop and flip of the epoch."""

    def draws(**options):
        return make(augment=augment, drop_last=False, **options).plan(4)

    def by_image(plan):
        return sorted(zip(*(draw.tolist() for draw in plan), strict=True))

    seeds_own, first, second = draws(), draws(order_seed=0), draws(order_seed=1)
    assert by_image(first) == by_image(second) == by_image(seeds_own)
    assert len({tuple(plan.order.tolist()) for plan in (seeds_own, first, second)}) == 3
    assert torch.equal(draws(order_seed=-1).order, seeds_own.order)
    assert torch.equal(draws(order_seed=0).order, first.order)
    assert not torch.equal(draws(order_seed=0, seed=4).order, first.order)


def test_arms_that_differ_in_augmentation_alone_share_order_and_crops():
    crop, both, none = (make(augment=augment).plan(0) for augment in ("crop", "crop-flip", "none"))
    assert torch.equal(crop.order, both.order)
    assert torch.equal(crop.order, none.order)
    assert torch.equal(crop.corner, both.corner)
    assert not crop.flip.any()


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [16] * 3), (False, [16, 16, 16, 2])])
def test_an_epoch_sees_each_image_once(drop_last, sizes):
    batches = make(drop_last=drop_last)
    assert [len(y) for _, y in batches.epoch(0)] == sizes
    assert len(batches) == len(sizes)
    assert len(set(batches.plan(0).order.tolist())) == sum(sizes)


@pytest.mark.parametrize("augment", data.AUGMENTS)
def test_in_order_is_never_augmented_and_keeps_the_last_batch(augment):
    images, labels = pictures(50, 8, 8, 3)
    xs, ys = zip(*make(augment=augment).in_order(), strict=True)
    assert [len(y) for y in ys] == [16, 16, 16, 2]
    expected = (images.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(
        torch.cat(xs), expected.permute(0, 3, 1, 2).float(), rtol=0, atol=1e-6
    )
    assert torch.equal(torch.cat(ys), labels)
    assert [len(y) for _, y in make(augment=augment).in_order(40)] == [40, 10]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_the_same_values_rounded_once(dtype):
    exact, _ = epoch(make(dtype=torch.float64))
    x, y = epoch(make(dtype=dtype))
    assert (x.dtype, y.dtype) == (dtype, torch.int64)
    torch.testing.assert_close(x, exact.float().to(dtype) if dtype != torch.float64 else exact)
    single, _ = epoch(make())
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-6)


def test_batches_are_channels_last_and_leave_the_images_alone():
    images, labels = pictures(50, 8, 8, 3)
    before = images.clone()
    batches = ImageBatches(images, labels, mean=MEAN, std=STD, batch_size=16, augment="none")
    for x, _ in [*batches.epoch(0), *batches.in_order()]:
        assert x.is_contiguous(memory_format=torch.channels_last)
        x.zero_()
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "cutout"}, "unknown augment 'cutout'.*all: none, crop, crop-flip"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"mean": (0.5,)}, "3 channels, mean has 1"),
        ({"images": torch.zeros(50, 8, 8, 3)}, "must be uint8"),
        ({"labels": torch.zeros(49)}, "50 images but labels of shape"),
    ],
)
def test_bad_input_is_refused(options, message):
    images, labels = pictures(50, 8, 8, 3)
    given = {"images": images, "labels": labels, "mean": MEAN, "std": STD, "batch_size": 16}
    with pytest.raises(ValueError, match=message):
        ImageBatches(**(given | options))


def test_an_epoch_without_a_whole_batch_is_an_error_not_an_empty_loop():
    batches = make(batch_size=64)
    with pytest.raises(ValueError, match="50 images do not fill one batch of 64"):
        batches.epoch(0)
    assert len(list(batches.in_order())) == 1


@pytest.mark.gpu
def test_the_gpu_sees_the_same_batches_without_waiting_and_in_a_graph():
    here, there = make(), make(device="cuda")
    expected, labels = epoch(here, 1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        x, y = epoch(there, 1)
        plan = there.plan(1)
        parts = [draw.view(3, 16) for draw in plan]
        step = torch.zeros(1, dtype=torch.int64, device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(x.cpu(), expected)
    assert torch.equal(y.cpu(), labels)

    def captured() -> torch.Tensor:
        return there.batch(tuple(part.index_select(0, step)[0] for part in parts))[0]

    captured()  # warms up
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = captured()
    for k in range(3):
        step.fill_(k)
        graph.replay()
        assert torch.equal(out.cpu(), expected[16 * k : 16 * k + 16])


# --- split -----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=10, max_size=60), st.integers(0, 60), st.integers(0, 9))
def test_split_is_stratified_or_refused(labels, validation, seed):
    labels = torch.tensor(labels)
    counts = torch.bincount(labels)
    shares = counts * validation / len(labels)
    # A class too small for its share, or nothing left to train on.
    present = counts > 0
    refusable = validation >= len(labels) or bool(
        (present & ((shares < 1) | (shares > counts - 1))).any()
    )
    try:
        train, held_out = split(labels, validation, seed)
    except ValueError:
        assert refusable
        return
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(len(labels)))
    assert len(held_out) == validation
    taken = torch.bincount(labels[held_out], minlength=len(counts))
    assert ((taken - shares).abs() < 1).all()
    if validation:
        assert ((taken > 0) & (taken < counts))[present].all()
    again = split(labels.numpy(), validation, seed)
    assert torch.equal(again[0], train)


def test_split_of_a_balanced_set_is_exact_in_each_class_and_keyed_by_the_seed():
    labels = torch.arange(5000) % 100
    train, held_out = split(labels, 500, seed=0)
    assert torch.equal(torch.bincount(labels[held_out]), torch.full((100,), 5))
    assert torch.equal(torch.bincount(labels[train]), torch.full((100,), 45))
    torch.manual_seed(7)
    assert torch.equal(split(labels, 500, seed=0)[1], held_out)
    assert not torch.equal(split(labels, 500, seed=1)[1], held_out)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (-1, "validation=-1 of 20 training images is impossible: choose 0 to 19"),
        (20, "validation=20 of 20"),
        (4, r"validation=4 leaves class 4 \(2 of 20 images\) without a validation image.*more"),
        (19, r"without a training image: choose fewer, or 0"),
    ],
)
def test_an_impossible_validation_set_is_refused(validation, message):
    labels = torch.tensor([0] * 5 + [1] * 5 + [2] * 4 + [3] * 4 + [4] * 2)
    with pytest.raises(ValueError, match=message):
        split(labels, validation, seed=0)


def test_no_validation_leaves_all_images_for_training():
    train, held_out = split(torch.tensor([0, 1, 1]), 0, seed=0)
    assert train.tolist() == [0, 1, 2]
    assert held_out.tolist() == []


# --- digits ----------------------------------------------------------------------------------


def test_digits_are_scikit_learns_in_a_fixed_stratified_split():
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    assert digits.input_shape == (1, 8, 8)
    assert (len(digits.train_images), len(digits.test_images)) == (1437, 360)
    assert set(torch.bincount(digits.test_labels).tolist()) <= {34, 35, 36, 37}

    white = np.round(load_digits().images / 16 * 255 + 1e-9).astype(np.uint8)  # half upwards
    ours = torch.cat([digits.train_images, digits.test_images])[..., 0].numpy()
    labels = torch.cat([digits.train_labels, digits.test_labels]).tolist()
    expected = Counter(zip(map(bytes, white), load_digits().target.tolist(), strict=True))
    assert Counter(zip(map(bytes, ours), labels, strict=True)) == expected

    pinned = hashlib.sha256(digits.test_images.numpy().tobytes()).hexdigest()
    assert pinned.startswith(
        "1075467ce49bd859"
    )  # another split would make old records incomparable


# --- files -----------------------------------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return header + array.tobytes()


@pytest.fixture
def tiny(monkeypatch) -> dict[str, bytes]:
    """A data set "tiny" in MNIST's layout: one entry, and load and fetch know it."""
    images, labels = pictures(12, 4, 6, 1)
    images, labels = images[..., 0].numpy(), labels.numpy().astype(np.uint8)
    contents = [idx_bytes(part) for part in (images[:8], labels[:8], images[8:], labels[8:])]
    layout = files.idx("TINY/raw", [hashlib.md5(part).hexdigest() for part in contents])
    tiny = image_sets.ImageFiles("tiny", 5, (0.5,), (0.2,), layouts=(layout,), torchvision="Tiny")
    monkeypatch.setattr(registry, "_sources", dict(registry._sources))
    data.register("tiny", tiny.fetch)(tiny.load)
    return dict(zip(layout.digests, contents, strict=True))


def write(root: Path, contents: dict[str, bytes], packed: bool = False) -> None:
    (root / "TINY/raw").mkdir(parents=True)
    for name, content in contents.items():
        path = root / "TINY/raw" / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [False, True])
def test_a_new_data_set_is_one_entry(tiny, tmp_path, monkeypatch, packed):
    write(tmp_path, tiny, packed)
    monkeypatch.setenv("CKASR_DATA", str(tmp_path))
    loaded = data.load("tiny")
    images, labels = pictures(12, 4, 6, 1)
    assert loaded.input_shape == (1, 4, 6)
    assert torch.equal(torch.cat([loaded.train_images, loaded.test_images]), images)
    assert torch.equal(torch.cat([loaded.train_labels, loaded.test_labels]), labels)
    assert loaded.train_labels.dtype == torch.int64


@pytest.mark.parametrize(
    "name", [files.name for files in image_sets.IMAGE_SETS if files.name != "digits"]
)
def test_missing_files_are_named_with_a_way_to_get_them(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        data.load(name, tmp_path)
    message = str(error.value)
    assert "\n" not in message
    folder = {one.name: one for one in image_sets.IMAGE_SETS}[name].layouts[0].folder
    for part in (str(tmp_path / folder), "CKASR_DATA", f"python -m ckasr data fetch {name}"):
        assert part in message


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("harm", ["truncate", "alter", "empty"])
def test_broken_files_are_refused_in_one_line(tiny, tmp_path, packed, harm):
    write(tmp_path, tiny, packed)
    path = next(tmp_path.glob("TINY/raw/t10k-images*"))
    content = bytearray(path.read_bytes())
    if harm == "truncate":
        content = content[:-20]
    elif harm == "empty":
        content = bytearray()
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or altered") as error:
        data.load("tiny", tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_one_missing_file_of_several_is_the_one_that_is_named(tiny, tmp_path):
    write(tmp_path, tiny)
    path = tmp_path / "TINY/raw/t10k-labels-idx1-ubyte"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        data.load("tiny", tmp_path)


class Exploit:
    """A pickle that creates a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_of_unknown_digest_is_never_read(tmp_path):
    folder, mark = tmp_path / "cifar-100-python", tmp_path / "executed"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps(Exploit(mark)))
    with pytest.raises(ValueError, match="truncated or altered"):
        data.load("cifar100", tmp_path)
    assert not mark.exists()
    pickle.loads((folder / "train").read_bytes())
    assert mark.exists()  # it would have


def test_both_layouts_of_cifar10_give_the_same_arrays():
    images, labels = pictures(60, 32, 32, 3)
    planes = images.permute(0, 3, 1, 2).reshape(6, 10, 3072).numpy()
    groups = labels.view(6, 10)
    pickled = [
        pickle.dumps({b"data": rows, b"labels": group.tolist()}, protocol=2)
        for rows, group in zip(planes, groups, strict=True)
    ]
    records = [
        np.concatenate([group.numpy().astype(np.uint8)[:, None], rows], 1).tobytes()
        for rows, group in zip(planes, groups, strict=True)
    ]
    expected = images[:50], labels[:50], images[50:], labels[50:]
    for arrays in (files.parse_pickles(pickled, b"labels"), files.parse_binary(records)):
        for ours, theirs in zip(arrays, expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(LookupError, match=r"unknown data set 'cifar-10'; nearest: cifar10\b"):
        data.load("cifar-10")


# --- fetch -----------------------------------------------------------------------------------


@pytest.fixture
def server(tiny, monkeypatch) -> dict[str, object]:
    """What torchvision's class would do, file by file: bytes are written, errors raised."""
    import torchvision

    served: dict[str, object] = dict(tiny)

    class Tiny:
        def __init__(self, root: str, download: bool) -> None:
            folder = Path(root) / "TINY/raw"
            folder.mkdir(parents=True)
            for name, content in served.items():
                if isinstance(content, Exception):
                    (folder / name).write_bytes(b"half")
                    raise content
                (folder / name).write_bytes(content)

    monkeypatch.setattr(torchvision.datasets, "Tiny", Tiny, raising=False)
    return served


def test_fetch_lays_out_verified_files_and_nothing_else(server, tmp_path):
    root = tmp_path / "new" / "data"
    assert data.load("tiny", root, download=True).num_classes == 5
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in written) == sorted(server)
    server.clear()  # what is there is not fetched again
    assert sorted(data.fetch("tiny", root)) == sorted(written)


@pytest.mark.parametrize("fault", [OSError("no\nroute"), RuntimeError("no\nroute"), b"altered"])
def test_a_failed_fetch_leaves_nothing(server, tmp_path, fault):
    server["t10k-images-idx3-ubyte"] = fault
    with pytest.raises(ConnectionError, match="tiny could not be downloaded") as error:
        data.fetch("tiny", tmp_path / "new" / "data")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_fetch_replaces_a_broken_file(server, tmp_path):
    write(tmp_path, server)
    (tmp_path / "TINY/raw/train-images-idx3-ubyte").write_bytes(b"half")
    data.fetch("tiny", tmp_path)
    assert len(data.load("tiny", tmp_path).train_images) == 8


def test_embedded_digits_need_no_fetch(tmp_path):
    assert data.fetch("digits", tmp_path / "new") == []
    assert list(tmp_path.iterdir()) == []


# --- the real ones ---------------------------------------------------------------------------

REAL = {
    "digits": ((1437, 8, 8, 1), 360),
    "mnist": ((60000, 28, 28, 1), 10000),
    "fashion-mnist": ((60000, 28, 28, 1), 10000),
    "cifar10": ((50000, 32, 32, 3), 10000),
    "cifar100": ((50000, 32, 32, 3), 10000),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.cifar) if n == "cifar100" else n for n in REAL]
)
def test_real_images_have_the_shapes_and_moments_of_the_recipe(name):
    try:
        loaded = data.load(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    shape, tests = REAL[name]
    assert tuple(loaded.train_images.shape) == shape
    assert tuple(loaded.test_images.shape) == (tests, *shape[1:])
    assert loaded.train_images.dtype == torch.uint8

    labels = torch.bincount(loaded.train_labels)
    assert len(labels) == len(torch.bincount(loaded.test_labels)) == loaded.num_classes
    if name in ("cifar10", "cifar100", "fashion-mnist"):
        assert set(labels.tolist()) == {shape[0] // loaded.num_classes}
        assert set(torch.bincount(loaded.test_labels).tolist()) == {tests // loaded.num_classes}

    pixels = loaded.train_images.flatten(0, 2)
    histogram = torch.stack([torch.bincount(channel, minlength=256) for channel in pixels.T])
    share, value = histogram.double() / len(pixels), torch.arange(256).double() / 255
    mean = share @ value
    std = (share @ value**2 - mean**2).sqrt()
    torch.testing.assert_close(mean, torch.tensor(loaded.mean).double(), rtol=0, atol=1e-4)
    if name != "cifar10":  # its recipe's std is another quantity, see IMAGE_SETS
        torch.testing.assert_close(std, torch.tensor(loaded.std).double(), rtol=0, atol=1e-4)


@pytest.mark.cifar
def test_cifar100_equals_that_of_torchvision(cifar):
    import torchvision

    theirs = torchvision.datasets.CIFAR100(os.environ["CKASR_DATA"], train=False)
    np.testing.assert_array_equal(cifar.test_images.numpy(), theirs.data)
    assert cifar.test_labels.tolist() == theirs.targets
