"""Data sets: splits, subsets, and what is refused."""

from __future__ import annotations

import collections

import numpy as np
import pytest

import tiny_runs
from switokd_jax import config
from switokd_jax.data import dataset
from switokd_jax.errors import UserError

DIGITS = config.DataConfig(name="digits")
DIGITS_WITH_VALIDATION = config.DataConfig(name="digits", validation_fraction=0.1)
FEW_DIGITS = config.DataConfig(name="digits", train_examples=200)


def test_digits_are_eight_by_eight_pixels_of_sixteen_levels() -> None:
    data = dataset.load_dataset(DIGITS, 3)
    assert data.image_spec.shape == (8, 8, 1)
    assert isinstance(data.train, dataset.Split)
    assert (data.train.images.dtype, data.train.images.max()) == (np.uint8, 16)


def test_digits_test_split_is_a_stratified_fifth() -> None:
    train, validation, test = tiny_runs.resident_splits(DIGITS, 3)
    assert (len(train), len(validation), len(test)) == (1437, 0, 360)
    shares = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    np.testing.assert_allclose(shares, 0.2, atol=0.006)


def test_digits_test_split_does_not_depend_on_the_seed_of_the_run() -> None:
    tests = [tiny_runs.resident_splits(DIGITS, seed)[2] for seed in (3, 4)]
    np.testing.assert_array_equal(tests[0].images, tests[1].images)


def test_validation_split_is_stratified() -> None:
    train, validation, _ = tiny_runs.resident_splits(DIGITS_WITH_VALIDATION)
    assert (len(train), len(validation)) == (1437 - 144, 144)
    assert set(np.bincount(validation.labels)) <= {14, 15}


def test_validation_split_is_fixed_by_the_seed() -> None:
    first, same, other = (tiny_runs.resident_splits(DIGITS_WITH_VALIDATION, seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.images, same.images)
    assert not np.array_equal(first.images, other.images)


def test_training_and_validation_split_make_the_full_training_split() -> None:
    train, validation, _ = tiny_runs.resident_splits(DIGITS_WITH_VALIDATION)
    full, _, _ = tiny_runs.resident_splits(DIGITS)
    parts = np.concatenate([train.images, validation.images]).reshape(1437, -1)
    assert collections.Counter(map(bytes, parts)) == collections.Counter(map(bytes, full.images.reshape(1437, -1)))


def test_a_subset_of_the_training_images_is_stratified_and_leaves_the_test_split() -> None:
    train, _, test = tiny_runs.resident_splits(FEW_DIGITS)
    assert np.bincount(train.labels).tolist() == [20] * 10
    assert len(test) == 360


def test_a_subset_of_the_training_images_is_the_same_in_every_run() -> None:
    first, other = (tiny_runs.resident_splits(FEW_DIGITS, seed)[0] for seed in (0, 1))
    np.testing.assert_array_equal(first.images, other.images)


def test_a_subset_larger_than_the_training_split_is_refused() -> None:
    with pytest.raises(UserError, match=r"config.data.train_examples is 2000, and 'digits' has 1437"):
        dataset.load_dataset(config.DataConfig(name="digits", train_examples=2000), 0)


@pytest.mark.parametrize(("examples", "fraction", "held_out"), [(0, 1e-5, "0 of 1437"), (1, 0.9, "1 of 1")])
def test_a_validation_split_of_none_or_all_is_refused(examples: int, fraction: float, held_out: str) -> None:
    spec = config.DataConfig(name="digits", train_examples=examples, validation_fraction=fraction)
    with pytest.raises(UserError, match=f"config.data.validation_fraction is {fraction}, which is {held_out} "):
        dataset.load_dataset(spec, 0)


def test_an_image_size_for_resident_images_is_refused() -> None:
    with pytest.raises(UserError, match=r"config.data.image_size is 16, and config.data.pipeline 'resident'"):
        dataset.load_dataset(config.DataConfig(name="digits", image_size=16), 0)


def test_an_unknown_data_set_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="no data set 'cifar1000'; did you mean 'cifar100'"):
        dataset.load_dataset(config.DataConfig(name="cifar1000"), 0)


@pytest.mark.usefixtures("own_additions")
def test_a_registered_source_is_a_data_set() -> None:
    split = tiny_runs.random_split(20)
    dataset.SOURCES["own"] = lambda spec: dataset.in_memory(split, split.take(np.arange(5)), "abcdefghij")
    data = dataset.load_dataset(config.DataConfig(name="own"), 0)
    assert (len(data.train), len(data.test), data.image_spec.shape, len(data.classes)) == (20, 5, (8, 8, 1), 10)
