"""Arrays of a user's own data set: every mistake is named before a network sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from switokd_jax import config
from switokd_jax.data import dataset
from switokd_jax.data.image_records import ArrayRecords, RecordSplit, load_example
from switokd_jax.errors import UserError


def arrays(count: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, 6, 5, 3)).astype(np.uint8), np.arange(count, dtype=np.int32) % 4


def load(
    change_train: Callable[[Any, Any], tuple[Any, Any]] = lambda x, y: (x, y),
    change_test: Callable[[Any, Any], tuple[Any, Any]] = lambda x, y: (x, y),
) -> dataset.Dataset:
    """Loads 20 training and 8 test images of four classes, after a change."""
    dataset.SOURCES["made"] = lambda spec: dataset.in_memory(
        dataset.Split(*change_train(*arrays(20))), dataset.Split(*change_test(*arrays(8))), "abcd"
    )
    return dataset.load_dataset(config.DataConfig(name="made"), 0)


def minus_one_at(index: int) -> Callable[[Any, Any], tuple[Any, Any]]:
    return lambda x, y: (x, np.where(np.arange(len(y)) == index, -1, y))


LABELS: dict[str, tuple[Callable[[Any, Any], tuple[Any, Any]], str]] = {
    "minus one": (minus_one_at(5), "image 5 has label -1, and labels of 4 classes are 0 to 3"),
    "one-based": (lambda x, y: (x, y + 1), r"image 3 has label 4, .* count from 0: labels - 1"),
    "all unlabeled": (lambda x, y: (x, 0 * y - 1), "image 0 has label -1, .* set config.data.test_split"),
    "column": (lambda x, y: (x, y[:, None]), r"labels have the shape \[\d+, 1\], not \[n\]; take labels\[:, 0\]"),
    "one-hot": (lambda x, y: (x, np.eye(4)[y]), r"labels have the shape \[\d+, 4\], .*labels\.argmax\(1\)"),
    "float": (lambda x, y: (x, y.astype(np.float32)), r"labels are float32, such as \[0\.0\]; give whole numbers"),
    "text": (lambda x, y: (x, y.astype(str)), "labels are <U11, such as"),
    "too few": (lambda x, y: (x, y[:-3]), r"there are \d+ images and \d+ labels"),
    "ragged": (lambda x, y: (x, [[1], *[[1, 2]] * (len(y) - 1)]), "labels are object"),
}
IMAGES: dict[str, tuple[Callable[[Any, Any], tuple[Any, Any]], str]] = {
    "float": (lambda x, y: (x / 255.0, y), "images are float64; convert them to uint8"),
    "uint16": (lambda x, y: (x.astype(np.uint16), y), "images are uint16; convert them to uint8"),
    "channels first": (
        lambda x, y: (x.transpose(0, 3, 1, 2).repeat(2, 3), y),
        r".* channels come last: transpose\(0, 2, 3, 1\)",
    ),
    "no channels": (lambda x, y: (x[..., 0], y), r"images have the shape \[\d+, 6, 5\], .*add \[\.\.\., None\]"),
    "list": (lambda x, y: ([*x], y), "images are a list; give one NumPy array"),
}


@pytest.mark.usefixtures("own_additions")
@pytest.mark.parametrize(("change", "message"), [*LABELS.values(), *IMAGES.values()], ids=[*LABELS, *IMAGES])
def test_the_split_and_the_mistake_are_named(change: Callable[[Any, Any], tuple[Any, Any]], message: str) -> None:
    with pytest.raises(UserError, match=f"data set 'made', test split: {message}"):
        load(change_test=change)
    if change not in [fault for fault, _ in LABELS.values()]:
        return
    with pytest.raises(UserError, match=f"data set 'made', train split: {message}"):
        load(change_train=change)


@pytest.mark.usefixtures("own_additions")
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_whole_numbers_of_any_dtype_are_labels(dtype: Any) -> None:
    data = load(lambda x, y: (x, y.astype(dtype)), lambda x, y: (x, y.tolist()))
    assert data.train.labels is not None
    assert data.test.labels is not None
    assert data.train.labels.dtype == data.test.labels.dtype == np.int32
    np.testing.assert_array_equal(data.train.labels, arrays(20)[1])


@pytest.mark.usefixtures("own_additions")
def test_images_of_both_splits_have_one_shape() -> None:
    with pytest.raises(
        UserError, match=r"test split: images are \[5, 5, 3\], and those of the train split \[6, 5, 3\]"
    ):
        load(change_test=lambda x, y: (x[:, 1:], y))


@pytest.mark.usefixtures("own_additions")
def test_a_data_set_without_a_test_split_needs_held_out_images() -> None:
    def none(x: Any, y: Any) -> tuple[Any, Any]:
        return x[:0], y[:0]

    with pytest.raises(UserError, match=r"'made' has no test split; set config\.data\.validation_fraction"):
        load(change_test=none)
    data = dataset.load_dataset(config.DataConfig(name="made", validation_fraction=0.25), 0)
    assert (len(data.train), len(data.validation), len(data.test)) == (15, 5, 0)


def test_labels_of_a_stream_are_checked_as_they_are_read() -> None:
    images, labels = arrays(8)
    split = RecordSplit(ArrayRecords(images, labels + 1), np.arange(8), None)
    spec = dataset.ImageSpec((6, 5, 3), resized=False)
    checked = dataset.check(dataset.SourceData(split, split, tuple("abcd"), spec), "made").train
    assert isinstance(checked, RecordSplit)
    assert load_example(checked, 0, spec, None)[1] == 1
    with pytest.raises(UserError, match="image 3 has label 4, and labels are 0 to 3"):
        load_example(checked, 3, spec, None)
