"""Promises of the data: disjoint splits, batches that depend on (seed, epoch, step) alone, augmentation per image."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from optuna_nas import data as data_module
from optuna_nas.data import (
    CHOICES,
    REPORT,
    SPLITS,
    TEST,
    TRAIN,
    WEIGHTS,
    Augmentation,
    ImageData,
    ImageFolderData,
    digits,
    seeded_generator,
)
from optuna_nas.data import folder as folder_module
from optuna_nas.data.folder import IMAGENET_MEAN, IMAGENET_STD


def arrays(n=120, classes=3, shape=(8, 8), dtype=np.float32, seed=0):
    """Images of noise, and labels whose classes have n/2, n/4, ... images: stratification shows."""
    random = np.random.default_rng(seed)
    x = random.random((n, *shape))
    x = (x * 256).astype(np.uint8) if dtype == np.uint8 else x.astype(dtype)
    y = np.minimum(np.floor(-np.log2(1 - np.arange(n) / n)), classes - 1).astype(int)
    return x, y


def positions(data, split):
    return data.splits[split].tolist()


def images_of(data, splits, **kwargs):
    batches = list(data.batches(splits, kwargs.pop("batch_size", 16), **kwargs))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_splits_are_disjoint_and_cover_every_image(seed):
    data = ImageData.from_arrays(*arrays(), seed=seed)
    everyone = [position for split in SPLITS for position in positions(data, split)]
    assert sorted(everyone) == list(range(120))


def test_split_sizes_are_the_documented_shares():
    data = ImageData.from_arrays(*arrays(n=200))
    assert {split: data.size([split]) for split in SPLITS} == {TEST: 40, REPORT: 40, CHOICES: 40, WEIGHTS: 80}
    assert data.size(TRAIN) == 120
    assert data.size(SPLITS) == 200


def test_split_sizes_follow_the_fractions():
    data = ImageData.from_arrays(*arrays(n=200), fractions={CHOICES: 0.0, REPORT: 0.1, TEST: 0.5})
    assert {split: data.size([split]) for split in SPLITS} == {TEST: 100, REPORT: 10, CHOICES: 0, WEIGHTS: 90}


def test_every_split_has_every_class_in_proportion():
    data = ImageData.from_arrays(*arrays(n=160))  # 80, 40 and 40 images a class
    for split in SPLITS:
        counted = np.bincount(data.labels[data.splits[split]].numpy(), minlength=3)
        expected = np.array([2, 1, 1]) / 4 * data.size([split])
        np.testing.assert_allclose(counted, expected, atol=1)


def test_the_seed_decides_the_splits():
    first, again, other = (ImageData.from_arrays(*arrays(), seed=seed) for seed in (3, 3, 4))
    assert all(positions(first, split) == positions(again, split) for split in SPLITS)
    assert all(positions(first, split) != positions(other, split) for split in SPLITS)


def test_a_given_test_split_is_the_test_split_and_nothing_else():
    x, y = arrays()
    x_test, y_test = arrays(n=30, seed=1)
    data = ImageData.from_arrays(x, y, x_test, y_test)
    assert positions(data, TEST) == list(range(120, 150))
    torch.testing.assert_close(data.images[data.splits[TEST]][:, 0], torch.from_numpy(x_test), rtol=0, atol=0)
    assert data.labels[data.splits[TEST]].tolist() == y_test.tolist()
    assert sorted(torch.cat([data.splits[split] for split in (WEIGHTS, CHOICES, REPORT)]).tolist()) == list(range(120))
    assert data.size([REPORT]) == data.size([CHOICES]) == 30


# --- layouts and types ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int64])
def test_all_layouts_give_the_same_images(dtype):
    x, y = arrays(shape=(3, 8, 9))
    x = (x * 255).astype(dtype)
    first, last = ImageData.from_arrays(x, y), ImageData.from_arrays(x.transpose(0, 2, 3, 1), y)
    assert first.input_shape == last.input_shape == (3, 8, 9)
    assert first.images.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
    assert torch.equal(first.images, last.images)
    np.testing.assert_array_equal(first.images.numpy(), x.astype(np.float32))


def test_grey_images_need_no_channel_dimension():
    x, y = arrays()
    grey = ImageData.from_arrays(x, y)
    assert grey.input_shape == (1, 8, 8)
    assert torch.equal(grey.images, ImageData.from_arrays(x[..., None], y).images)
    assert torch.equal(grey.images, ImageData.from_arrays(x[:, None], y).images)


def test_channels_settles_a_shape_that_is_open():
    x, y = arrays(shape=(3, 8, 3))
    assert ImageData.from_arrays(x, y, channels="first").input_shape == (3, 8, 3)
    data = ImageData.from_arrays(x, y, channels="last")
    assert torch.equal(data.images, torch.from_numpy(x).permute(0, 3, 1, 2))
    five, _ = arrays(shape=(8, 8, 5))
    assert ImageData.from_arrays(five, y, channels="last").input_shape == (5, 8, 8)


def test_bytes_and_fractions_of_one_are_the_same_images():
    x, y = arrays(dtype=np.uint8)
    as_bytes, as_floats = ImageData.from_arrays(x, y), ImageData.from_arrays(x.astype(np.float32) / 255, y)
    torch.testing.assert_close(images_of(as_bytes, SPLITS)[0], images_of(as_floats, SPLITS)[0], rtol=0, atol=1e-5)


def test_number_of_classes_is_counted_or_given():
    x, y = arrays()
    assert ImageData.from_arrays(x, y).classes == 3
    assert ImageData.from_arrays(x, y, classes=10).classes == 10


# --- bad input --------------------------------------------------------------------------------------------------------

X, Y = arrays()


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((changed(X, (7, 0, 0), np.nan), Y), r"`x` must be finite but image 7 \(and 0 more\)"),
        ((changed(X, (slice(3, 5), 0, 0), np.inf), Y), r"`x` must be finite but image 3 \(and 1 more\)"),
        ((X, changed(Y, 4, -1)), r"`y` must hold labels from 0 to 2 but got -1"),
        ((X, Y.astype(float)), r"`y` must be integers but has dtype float64"),
        ((X, Y > 0), r"`y` must be integers but has dtype bool"),
        ((X, Y[:-1]), r"`y` must have shape \(120,\), one label an image, but has \(119,\)"),
        ((X, np.stack([Y, Y], 1)), r"`y` must have shape \(120,\)"),
        ((X, np.zeros_like(Y)), r"`classes` must be at least 2 but got 1"),
        ((X, changed(Y, 0, 3)), r"`y` must have enough images of every class"),
        ((X, changed(Y, 0, 50)), r"`y` must hold every label from 0 to 50 but lacks 3"),
        ((X[0], Y), r"`x` must have shape \(N, H, W\)"),
        ((X[:0], Y[:0]), r"`x` must hold at least one image"),
        ((X.astype(str), Y), r"`x` must be real numbers"),
        ((X, Y, X), r"`x_test` and `y_test` must be given together"),
        ((X, Y, X[:, :4], Y), r"`x_test` must have images like `x`, \(1, 8, 8\)"),
        ((X, Y, changed(X, 0, np.nan), Y), r"`x_test` must be finite"),
        ((X, Y, X, changed(Y, 0, -2)), r"must hold labels from 0 to 2 but got -2"),
        ((X, Y, X[:9], Y), r"`y_test` must have shape \(9,\)"),
    ],
)
def test_bad_arrays_get_one_clear_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ImageData.from_arrays(*arguments)


def test_a_label_beyond_the_given_classes_is_refused():
    with pytest.raises(ValueError, match="`y` must hold labels from 0 to 1 but got 2"):
        ImageData.from_arrays(X, Y, classes=2)


@pytest.mark.parametrize("shape", [(3, 8, 3), (1, 8, 1), (8, 8, 8)])
def test_a_shape_that_leaves_the_channels_open_is_refused(shape):
    with pytest.raises(ValueError, match="`channels` must say 'first' or 'last'"):
        ImageData.from_arrays(arrays(shape=shape)[0], Y)


def test_unknown_channels_are_refused():
    with pytest.raises(ValueError, match="`channels` must be 'first', 'last' or None but got 'middle'"):
        ImageData.from_arrays(arrays(shape=(3, 8, 8))[0], Y, channels="middle")


@pytest.mark.parametrize(
    ("fractions", "sentence"),
    [
        ({"weights": 0.5}, "must use 'choices', 'report' and 'test' but got 'weights'"),
        ({"validation": 0.5}, "got 'validation'"),
        ({REPORT: -0.1}, "must not be negative"),
        ({REPORT: 0.6, CHOICES: 0.4}, "must leave images for 'weights'"),
        ({TEST: 1.0}, "must leave images for 'weights'"),
    ],
)
def test_bad_fractions_are_refused(fractions, sentence):
    with pytest.raises(ValueError, match=sentence):
        ImageData.from_arrays(X, Y, fractions=fractions)


@pytest.mark.parametrize("n_images", [2, 3])
def test_a_class_with_fewer_images_than_splits_is_refused(n_images):
    y = np.arange(120) % 2
    y[:n_images] = 2
    with pytest.raises(ValueError, match="`y` must have enough images of every class"):
        ImageData.from_arrays(X, y)


def test_a_rare_class_fits_fewer_splits():
    y = np.arange(120) % 2
    y[:4] = 2
    data = ImageData.from_arrays(X, y, fractions={TEST: 0, CHOICES: 0})
    assert [int((data.labels[data.splits[split]] == 2).sum()) for split in (WEIGHTS, REPORT)] == [3, 1]


@pytest.mark.parametrize("train_dtype", [np.uint8, np.float32])
def test_training_and_test_images_of_different_types_are_refused_or_brought_to_one_scale(train_dtype):
    x, y = arrays(dtype=np.uint8)
    kinds = {np.uint8: x, np.float32: (x / 255).astype(np.float32)}
    x_train, x_test = (kinds.pop(train_dtype), kinds.popitem()[1])
    try:
        data = ImageData.from_arrays(x_train, y, x_test, y)
    except ValueError:
        return
    train, test = data.images[:120], data.images[120:]
    torch.testing.assert_close(train, test, rtol=0, atol=1e-6)


def test_a_read_only_array_is_welcome():
    x, y = arrays(dtype=np.uint8)
    x.setflags(write=False)
    assert ImageData.from_arrays(x, y).size(SPLITS) == 120


def test_writing_into_the_array_afterwards_leaves_the_data_alone():
    x, y = arrays(dtype=np.uint8)
    data = ImageData.from_arrays(x, y)
    before = data.images.clone()
    x[:] = 0
    assert torch.equal(data.images, before)


def test_an_unknown_split_is_refused():
    data = ImageData.from_arrays(X, Y)
    with pytest.raises(ValueError, match="`split` must be one of"):
        data.size(["validation"])
    with pytest.raises(ValueError, match="`split` must be one of"):
        list(data.batches(["validation"], 8))


def test_a_batch_of_no_images_is_refused():
    with pytest.raises(ValueError, match="`batch_size` must be at least 1 but got 0"):
        list(ImageData.from_arrays(X, Y).batches(TRAIN, 0))


def test_augmentation_is_of_numbers():
    assert json.dumps(Augmentation(np.int64(2), np.bool_(True)).describe())
    with pytest.raises(ValueError, match="`cutout` must be a number or a suggestion but got '4'"):
        Augmentation(cutout="4")


@pytest.mark.parametrize("name", ["crop_padding", "cutout"])
def test_negative_augmentation_is_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must not be negative but got -1"):
        Augmentation(**{name: -1})


# --- batches ----------------------------------------------------------------------------------------------------------

CHANGING = Augmentation(crop_padding=2, flip=True, cutout=3)


def equal(one, other):
    return len(one) == len(other) and all(
        torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) for a, b in zip(one, other, strict=True)
    )


def test_without_epoch_every_image_comes_once_in_order():
    data = ImageData.from_arrays(*arrays(dtype=np.uint8), augmentation=CHANGING)
    batches = list(data.batches([REPORT, WEIGHTS], 7))
    assert [len(batch.targets) for batch in batches] == [7] * 10 + [2]  # 24 of report and 48 of weights
    order = positions(data, REPORT) + positions(data, WEIGHTS)
    images, labels = images_of(data, [REPORT, WEIGHTS], batch_size=7)
    assert labels.tolist() == data.labels[order].tolist()
    pixels = images * data.std[:, None, None] + data.mean[:, None, None]
    torch.testing.assert_close(pixels, data.images[order] / 255, rtol=0, atol=1e-6)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_an_epoch_shows_every_image_at_most_once_and_drops_the_incomplete_batch():
    data = ImageData.from_arrays(*arrays())
    plain, _ = images_of(data, TRAIN)
    batches = list(data.batches(TRAIN, 7, seed=5, epoch=2))
    assert [len(batch.targets) for batch in batches] == [7] * (72 // 7)
    shown = Counter(image.numpy().tobytes() for batch in batches for image in batch.inputs)
    assert set(shown.values()) == {1}
    assert set(shown) < {image.numpy().tobytes() for image in plain}


def test_an_incomplete_batch_stays_where_it_is_the_only_one():
    data = ImageData.from_arrays(*arrays())
    assert [len(batch.targets) for batch in data.batches(TRAIN, 1000, epoch=0)] == [72]


@pytest.mark.parametrize("epoch", [None, 0, 3])
def test_a_late_start_gives_exactly_the_tail(epoch):
    data = ImageData.from_arrays(*arrays(), augmentation=CHANGING)
    batches = list(data.batches(TRAIN, 8, seed=2, epoch=epoch))
    for start in range(len(batches) + 2):
        assert equal(list(data.batches(TRAIN, 8, seed=2, epoch=epoch, start=start)), batches[start:])


@pytest.mark.parametrize("augmentation", [None, CHANGING])
def test_batches_depend_on_seed_and_epoch_and_on_nothing_else(augmentation):
    data = ImageData.from_arrays(*arrays(), augmentation=augmentation)

    def batches(seed, epoch):
        torch.manual_seed(np.random.default_rng().integers(1000))
        return list(data.batches(TRAIN, 8, seed=seed, epoch=epoch))

    first = batches(0, 0)
    assert equal(first, batches(0, 0))
    assert not equal(first, batches(1, 0))
    assert not equal(first, batches(0, 1))
    assert not equal(batches(1, 0), batches(0, 1))


def test_batches_leave_the_global_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    data = ImageData.from_arrays(*arrays(), augmentation=CHANGING)
    list(data.batches(TRAIN, 8, epoch=0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_training_images_have_mean_zero_and_deviation_one_in_every_channel(dtype):
    x, y = arrays(shape=(8, 8, 3))
    x = x * [0.2, 0.5, 0.9] + [0.1, 0.3, 0.0]
    x = (x * 255).astype(np.uint8) if dtype == np.uint8 else x.astype(dtype)
    data = ImageData.from_arrays(x, y)
    images, _ = images_of(data, TRAIN)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-5)


def test_normalisation_never_looks_at_report_or_test():
    x, y = arrays()
    data = ImageData.from_arrays(x, y)
    held_out = positions(data, REPORT) + positions(data, TEST)
    again = ImageData.from_arrays(changed(x, held_out, 1e3), y)
    assert torch.equal(data.mean, again.mean)
    assert torch.equal(data.std, again.std)


def test_a_constant_channel_is_not_divided_by_zero():
    x, y = arrays(shape=(8, 8, 3))
    x[..., 1] = 0.5
    images, _ = images_of(ImageData.from_arrays(x, y), SPLITS)
    assert images.isfinite().all()
    assert (images[:, 1] == 0).all()


# --- augmentation against a slow reference ----------------------------------------------------------------------------


def slow_crops(image, padding, flip):
    """Give every crop of the padded image, mirrored too if `flip`, by its (top, left, mirrored)."""
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 2 * padding, width + 2 * padding), image.dtype)
    padded[:, padding : padding + height, padding : padding + width] = image
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + height, left : left + width]
            yield (top, left, False), crop
            if flip:
                yield (top, left, True), crop[:, :, ::-1]


@pytest.mark.parametrize(("padding", "flip"), [(1, False), (2, True), (0, True)])
def test_every_image_becomes_one_crop_or_mirrored_crop_of_itself(padding, flip):
    images = torch.rand(300, 2, 5, 6, generator=torch.Generator().manual_seed(0)) + 0.1
    out = Augmentation(padding, flip)(images, torch.Generator().manual_seed(1))
    assert out.shape == images.shape
    drawn = Counter()
    for before, after in zip(images.numpy(), out.numpy(), strict=True):
        (found,) = [draw for draw, crop in slow_crops(before, padding, flip) if np.array_equal(crop, after)]
        drawn[found] += 1
    possible = (2 * padding + 1) ** 2 * (1 + flip)
    assert len(drawn) == possible  # each draw occurs: images draw for themselves
    expected = 300 / possible
    assert max(drawn.values()) < expected + 5 * expected**0.5 + 1


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_cutout_clears_one_square_clipped_at_the_border(side):
    height, width, n_images = 7, 9, 600
    images = torch.rand(n_images, 2, height, width, generator=torch.Generator().manual_seed(0)) + 0.1
    out = Augmentation(cutout=side)(images, torch.Generator().manual_seed(1))
    centres = Counter()
    for before, after in zip(images.numpy(), out.numpy(), strict=True):
        cleared = (after == 0).all(axis=0)
        rows, columns = np.flatnonzero(cleared.any(1)), np.flatnonzero(cleared.any(0))
        expected = before.copy()
        expected[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 0
        np.testing.assert_array_equal(after, expected)  # a rectangle in all channels, and nothing else
        for cleared_range, size in ((rows, height), (columns, width)):
            at_border = cleared_range[0] == 0 or cleared_range[-1] == size - 1
            assert len(cleared_range) == side or (at_border and side // 2 <= len(cleared_range) < side)
        centres[rows[0], columns[0]] += 1
    # All places with the square's centre in the image; those that hang over the border top or left begin at 0.
    assert len(centres) == (height - side // 2) * (width - side // 2)


def test_augmentation_off_changes_nothing():
    images = torch.rand(4, 1, 5, 5)
    assert torch.equal(Augmentation()(images, torch.Generator()), images)


def test_augmentation_happens_in_training_batches_only():
    x, y = arrays()
    plain, changing = (ImageData.from_arrays(x, y, augmentation=a) for a in (None, CHANGING))
    assert equal(list(plain.batches(TRAIN, 8)), list(changing.batches(TRAIN, 8)))
    before, after = (next(iter(data.batches(TRAIN, 72, epoch=0))) for data in (plain, changing))
    assert torch.equal(before.targets, after.targets)
    assert torch.equal(CHANGING(before.inputs, seeded_generator(torch.device("cpu"), 0, 0, 0)), after.inputs)
    assert not torch.equal(before.inputs, after.inputs)


def test_steps_of_an_epoch_draw_their_own_augmentation():
    data = ImageData.from_arrays(np.ones((120, 8, 8)), Y, augmentation=Augmentation(cutout=1))
    data = replace(data, mean=data.mean * 0)  # images of ones, so that only the draws show
    first, second = list(data.batches(TRAIN, 36, epoch=0))
    assert not torch.equal(first.inputs, second.inputs)


# --- descriptions -----------------------------------------------------------------------------------------------------


def test_description_is_json_and_repeats():
    data = ImageData.from_arrays(X, Y, name="mine", seed=3)
    description = data.describe()
    assert json.loads(json.dumps(description)) == description
    assert description == ImageData.from_arrays(X, Y, name="mine", seed=3).describe()
    assert description["name"] == "mine"
    assert description["seed"] == 3
    assert description["classes"] == 3
    assert description["input_shape"] == [1, 8, 8]
    assert description["sizes"] == {split: data.size([split]) for split in SPLITS}
    assert len(set(description["split_digests"].values())) == 4


def test_digests_tell_a_changed_pixel_a_changed_label_and_changed_splits():
    one = ImageData.from_arrays(X, Y).describe()
    for other in (
        ImageData.from_arrays(changed(X, (5, 0, 0), 0.5), Y).describe(),
        ImageData.from_arrays(X, changed(Y, [0, 119], [2, 0])).describe(),
    ):
        assert other["digest"] != one["digest"]
    other = ImageData.from_arrays(X, Y, seed=1).describe()
    assert other["digest"] == one["digest"]
    assert all(other["split_digests"][split] != one["split_digests"][split] for split in SPLITS)


def test_normalisation_and_names_of_classes_are_described():
    data = ImageData.from_arrays(X, Y, class_names=["cat", "dog", "cow"])
    others = [
        replace(data, mean=data.mean + 0.01),
        replace(data, std=data.std * 2),
        replace(data, class_names=("dog", "cat", "cow")),
        replace(data, class_names=()),
    ]
    assert all(other.describe() != data.describe() for other in others)
    assert json.dumps(replace(data, mean=data.mean * 0, std=data.std * 0).describe(), allow_nan=False)


def test_sums_in_another_order_give_the_same_description():
    data = ImageData.from_arrays(X - X.mean(), Y)
    near = replace(data, mean=-data.mean * 1e-9, std=data.std * (1 + 1e-6))
    assert repr(near.describe()) == repr(replace(data, mean=data.mean * 0).describe())


def test_a_path_is_a_name():
    assert (
        ImageData.from_arrays(X, Y, name=Path("pets")).describe() == ImageData.from_arrays(X, Y, name="pets").describe()
    )


def test_to_the_same_device_is_the_same_object():
    data = ImageData.from_arrays(X, Y)
    assert data.to("cpu") is data
    assert data.device == torch.device("cpu")


def test_to_another_device_moves_everything():
    moved = ImageData.from_arrays(X, Y).to("meta")
    tensors = [moved.images, moved.labels, moved.mean, moved.std, *moved.splits.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_seeded_generator_depends_on_the_whole_key():
    device = torch.device("cpu")
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2, 1), (0, 1, 2), (2**40, 1)]
    drawn = {tuple(torch.randint(2**40, (4,), generator=seeded_generator(device, *key)).tolist()) for key in keys}
    assert len(drawn) == len(keys)
    assert torch.equal(
        torch.rand(3, generator=seeded_generator(device, 4, 5)), torch.rand(3, generator=seeded_generator(device, 4, 5))
    )


# --- known data sets --------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data = digits()
    assert (data.name, data.classes, data.input_shape) == ("digits", 10, (1, 8, 8))
    assert data.size(SPLITS) == 1797
    np.testing.assert_array_equal(data.images[:, 0].numpy() * 16, load_digits().images)
    np.testing.assert_array_equal(data.labels.numpy(), load_digits().target)
    assert positions(digits(seed=1), TEST) != positions(data, TEST)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "mnist"])
def test_a_missing_download_is_one_clear_sentence(name, tmp_path):
    with pytest.raises(ValueError, match=r"`root` must hold \w+ but .* does not; set download=True"):
        getattr(data_module, name)(tmp_path / "nowhere", download=False)


def test_fashion_mnist_through_torchvision(data_folder):
    root = data_folder / "fashion_mnist"
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    data = data_module.fashion_mnist(root, download=False)
    assert (data.name, data.classes, data.input_shape) == ("FashionMNIST", 10, (1, 28, 28))
    assert {split: data.size([split]) for split in SPLITS} == {
        WEIGHTS: 30_000,
        CHOICES: 15_000,
        REPORT: 15_000,
        TEST: 10_000,
    }
    assert np.bincount(data.labels[data.splits[REPORT]]).tolist() == [1500] * 10
    raw = np.fromfile(root / "FashionMNIST/raw/t10k-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)
    np.testing.assert_array_equal(data.images[data.splits[TEST]][:, 0].numpy(), raw)
    batch = next(iter(data.batches(TRAIN, 256, epoch=0)))
    assert abs(batch.inputs.mean()) < 0.15
    assert abs(batch.inputs.std() - 1) < 0.15


def test_cifar10_as_arrays(data_folder):
    root = data_folder / "cifar10"
    if not root.is_dir():
        pytest.skip(f"{root} is absent")

    def read(path):
        sheet = np.asarray(Image.open(path).convert("RGB"))
        return sheet.reshape(25, 32, 40, 32, 3).transpose(0, 2, 1, 3, 4).reshape(1000, 32, 32, 3)

    x, x_test = read(root / "train_00.webp"), read(root / "test_0.webp")
    with np.load(root / "labels.npz") as labels:
        y, y_test = labels["train"][:1000], labels["test"][:1000]
    data = ImageData.from_arrays(x, y, x_test, y_test, name="cifar10", augmentation=Augmentation(4, True, 16))
    assert (data.classes, data.input_shape, data.images.dtype) == (10, (3, 32, 32), torch.uint8)
    assert {split: data.size([split]) for split in SPLITS} == {WEIGHTS: 500, CHOICES: 250, REPORT: 250, TEST: 1000}
    np.testing.assert_array_equal(data.images[7].permute(1, 2, 0).numpy(), x[7])
    # The published means of all 50,000, in 255ths: a thousand images come near.
    np.testing.assert_allclose(data.mean.numpy() * 255, [125.3, 123.0, 113.9], atol=6)
    images, _ = images_of(data, TRAIN, epoch=0, batch_size=250)
    cleared = (images == 0).all(dim=1).float().mean()
    assert 0.15 < cleared < 0.35  # cutout 16 of 32 x 32, clipped at borders, and padding


# --- folders of images ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """Make train and val folders of two classes, 12 and 3 images each, colours telling classes apart."""
    root = tmp_path_factory.mktemp("imagenet")
    random = np.random.default_rng(0)
    for part, n_images in (("train", 12), ("val", 3)):
        for number, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(n_images):
                pixels = random.integers(0, 100, (20 + i, 24, 3)) + 120 * (np.arange(3) == number)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.jpg", quality=95)
    return root


def folder_data(root, **kwargs):
    return ImageFolderData(root, **{"size": 16, "workers": 0, "fractions": {REPORT: 0.25}, **kwargs})


def test_a_folder_of_images_is_split_by_class(image_folder):
    data = folder_data(image_folder)
    assert (data.name, data.classes, data.input_shape) == (image_folder.name, 2, (3, 16, 16))
    assert {split: data.size([split]) for split in SPLITS} == {WEIGHTS: 18, CHOICES: 0, REPORT: 6, TEST: 6}
    assert sorted(torch.cat([data.splits[split] for split in SPLITS]).tolist()) == list(range(30))
    for split, of_each in ((WEIGHTS, 9), (REPORT, 3), (TEST, 3)):
        (batch,) = data.batches([split], 100)
        assert np.bincount(batch.targets).tolist() == [of_each] * 2


def test_images_of_a_folder_arrive_normalised_with_their_labels(image_folder):
    (batch,) = folder_data(image_folder).batches([REPORT], 100)
    assert batch.inputs.shape == (6, 3, 16, 16)
    assert batch.inputs.dtype == torch.float32
    pixels = batch.inputs * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]
    assert 0 <= pixels.min() < pixels.max() <= 1 + 1e-6
    means = pixels.mean((2, 3))
    assert ((means[:, 1] > means[:, 0]).long() == batch.targets).all()  # red cats, green dogs


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # fork, Python 3.12
@pytest.mark.parametrize("epoch", [None, 1])
@pytest.mark.process
def test_workers_and_restarts_give_the_same_batches(image_folder, epoch):
    alone, helped = folder_data(image_folder), folder_data(image_folder, workers=2)
    batches = list(alone.batches(TRAIN, 4, seed=3, epoch=epoch))
    assert len(batches) == (5 if epoch is None else 4)
    assert equal(list(helped.batches(TRAIN, 4, seed=3, epoch=epoch)), batches)
    assert equal(list(alone.batches(TRAIN, 4, seed=3, epoch=epoch, start=2)), batches[2:])


def test_training_images_of_a_folder_change_with_seed_and_epoch(image_folder):
    data = folder_data(image_folder)
    first, again, other_epoch, other_seed = (
        list(data.batches(TRAIN, 4, seed=seed, epoch=epoch)) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert equal(first, again)
    assert not equal(first, other_epoch)
    assert not equal(first, other_seed)


def test_random_crops_lie_inside_and_cover_areas_and_aspects():
    random = np.random.default_rng(0)
    drawn = [folder_module._random_crop(random, 60, 80) for _ in range(2000)]
    areas = np.array([height * width for _, _, height, width in drawn]) / 4800
    aspects = np.array([width / height for _, _, height, width in drawn])
    assert all(0 <= top <= 60 - height and 0 <= left <= 80 - width for top, left, height, width in drawn)
    assert 0.07 < areas.min() < 0.12
    assert 0.9 < areas.max() <= 1
    assert 0.65 < aspects.min() < 0.8
    assert 1.25 < aspects.max() < 1.5


def test_description_of_a_folder_is_json_and_tells_its_files(image_folder, tmp_path):
    description = folder_data(image_folder).describe()
    assert json.loads(json.dumps(description)) == description
    assert description == folder_data(image_folder, workers=1).describe()
    assert description["sizes"] == {WEIGHTS: 18, CHOICES: 0, REPORT: 6, TEST: 6}
    assert folder_data(image_folder, seed=1).describe()["split_digests"] != description["split_digests"]


def test_other_pictures_in_files_of_equal_size_are_described(tmp_path):
    def described(first):
        for part, n_images in (("train", 12), ("val", 2)):
            for name, value in (("cat", first), ("dog", 250 - first)):
                (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
                for i in range(n_images):
                    Image.fromarray(np.full((100, 100, 3), value, np.uint8)).save(tmp_path / part / name / f"{i}.bmp")
        return folder_data(tmp_path).describe()

    one, other = described(50), described(200)
    assert one.pop("examples") != other.pop("examples")
    assert one == other


def test_a_description_opens_a_bounded_number_of_files(image_folder, monkeypatch):
    opened = Mock(wraps=open)
    monkeypatch.setattr(folder_module, "MAX_OPENED", 5)
    monkeypatch.setattr(folder_module, "open", opened, raising=False)
    data = folder_data(image_folder)
    assert data.describe() == data.describe() == data.to("meta").describe()
    assert opened.call_count == 5


def test_numbers_of_a_folder_may_be_numpys(image_folder):
    description = folder_data(image_folder, size=np.int64(16), workers=np.int64(0)).describe()
    assert json.dumps(description)
    assert description == folder_data(image_folder).describe()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"size": 8.0}, "`size` must be an integer of at least 1 but got 8.0"),
        ({"size": "8"}, "`size` must be an integer of at least 1 but got '8'"),
        ({"size": 0}, "`size` must be an integer of at least 1 but got 0"),
        ({"workers": -1}, "`workers` must be an integer of at least 0 but got -1"),
    ],
)
def test_numbers_of_a_folder_are_whole(arguments, sentence, image_folder):
    with pytest.raises(ValueError, match=sentence):
        folder_data(image_folder, **arguments)


def test_a_folder_goes_to_a_device_with_its_splits(image_folder):
    data = folder_data(image_folder, seed=5)
    assert data.to("cpu") is data
    moved = data.to("meta")
    assert moved.device == torch.device("meta")
    assert moved.splits is data.splits
    assert moved.describe() == data.describe()


@pytest.mark.parametrize("missing", ["everything", "val", "images"])
def test_a_folder_without_images_is_refused(missing, image_folder, tmp_path):
    if missing != "everything":
        (tmp_path / "train").symlink_to(image_folder / "train")
    if missing == "images":
        (tmp_path / "val" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="`root` must hold train/CLASS/IMAGE and val/CLASS/IMAGE"):
        folder_data(tmp_path)


def test_an_unknown_split_of_a_folder_is_refused(image_folder):
    with pytest.raises(ValueError, match="`split` must be one of"):
        folder_data(image_folder).size(["validation"])


def test_a_validation_folder_with_other_classes_is_refused(image_folder, tmp_path):
    (tmp_path / "train").symlink_to(image_folder / "train")
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "dog").symlink_to(image_folder / "val" / "dog")  # dog is class 1 of train, 0 of val
    with pytest.raises(ValueError, match="class"):
        folder_data(tmp_path)


def test_a_folder_leaves_the_global_random_state_alone(image_folder):
    before = torch.get_rng_state()
    list(folder_data(image_folder).batches(TRAIN, 4, epoch=0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(workers, image_folder, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(image_folder, root)
    damaged = sorted((root / "train").rglob("*.jpg"))[0]
    damaged.write_bytes(damaged.read_bytes()[:200])
    data = folder_data(root, workers=workers)
    splits = [split for split in ("weights", "choices", "report") if data.size([split])]
    with pytest.raises(ValueError, match=f"`root` must hold images that can be read but .*{damaged.name} can't"):
        _ = [list(data.batches([split], 4)) for split in splits]
