"""Splits, order, augmentation and normalisation."""

from __future__ import annotations

import collections
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_runs
from switokd_jax import config
from switokd_jax.data import dataset, decode_cache, normalization, resident, sampling, transforms
from switokd_jax.errors import UserError

DIGITS = config.DataConfig(name="digits")
IMAGES = np.arange(5 * 6 * 6 * 1, dtype=np.uint8).reshape(5, 6, 6, 1) + 1


def test_digits_test_a_stratified_fifth() -> None:
    train, validation, test = tiny_runs.resident_splits(DIGITS, 3)
    assert (len(train), len(validation), len(test)) == (1437, 0, 360)
    shares = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    np.testing.assert_allclose(shares, 0.2, atol=0.006)
    np.testing.assert_array_equal(test.images, tiny_runs.resident_splits(DIGITS, 4)[2].images)  # not the run's seed
    assert dataset.load_dataset(DIGITS, 3).image_spec.shape == (8, 8, 1)
    assert train.images.max() == 16


def test_validation_is_stratified_and_fixed_by_the_seed() -> None:
    with_slice = config.DataConfig(name="digits", validation_fraction=0.1)
    (train, one, _), (_, same, _), (_, other, _) = (tiny_runs.resident_splits(with_slice, s) for s in (0, 0, 1))
    assert len(one) == 144
    assert len(train) == 1437 - 144
    assert set(np.bincount(one.labels)) <= {14, 15}
    np.testing.assert_array_equal(one.images, same.images)
    assert not np.array_equal(one.images, other.images)
    everything = np.concatenate([train.images, one.images]).reshape(1437, -1)
    whole = tiny_runs.resident_splits(DIGITS)[0].images.reshape(1437, -1)
    assert collections.Counter(map(bytes, everything)) == collections.Counter(map(bytes, whole))


def test_a_stratified_choice_of_training_images() -> None:
    few = config.DataConfig(name="digits", train_examples=200)
    (some, _, test), (same, _, _) = (tiny_runs.resident_splits(few, seed) for seed in (0, 1))
    assert np.bincount(some.labels).tolist() == [20] * 10
    np.testing.assert_array_equal(some.images, same.images)
    assert len(test) == 360
    with pytest.raises(UserError, match=r"config.data.train_examples is 2000, and 'digits' has 1437"):
        dataset.load_dataset(config.DataConfig(name="digits", train_examples=2000), 0)


@pytest.mark.parametrize(("examples", "fraction", "found"), [(0, 1e-5, "0 of 1437"), (1, 0.9, "1 of 1")])
def test_some_examples_are_held_out_and_some_are_not(examples: int, fraction: float, found: str) -> None:
    with pytest.raises(UserError, match=f"config.data.validation_fraction is {fraction}, which is {found} "):
        dataset.load_dataset(config.DataConfig(name="digits", train_examples=examples, validation_fraction=fraction), 0)


def test_every_example_once_an_epoch_and_from_any_step_on() -> None:
    first = [sampling.train_indices(step, seed=7, examples=10, batch_size=4) for step in range(6)]
    assert [len(b) for b in first] == [4, 4, 2] * 2
    for epoch in (first[:3], first[3:]):
        assert sorted(np.concatenate(epoch)) == [*range(10)]
    assert not np.array_equal(np.concatenate(first[:3]), np.concatenate(first[3:]))
    size, later = next(resident.train_batches(10, 7, 4, sampling.ProcessShard(), first=4, total=6))
    assert size == 4
    np.testing.assert_array_equal(later.index, first[4])


def keys(count: int, epoch: int = 0) -> jax.Array:
    return transforms.example_keys(jax.random.PRNGKey(0), jnp.int32(epoch), jnp.arange(count, dtype=jnp.int32))


def test_crops_are_windows_of_the_padded_image() -> None:
    how = normalization.Preprocess((0.0,), (1.0,), padding=2, flip=True)
    images = np.repeat(IMAGES, 40, axis=0)
    out = np.asarray(transforms.random_crop_and_flip(images, keys(len(images)), how))
    offsets, mirrored = set(), set()
    for image, got in zip(images, out, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        found = [
            (r, c, flip)
            for r in range(5)
            for c in range(5)
            for flip in (False, True)
            if np.array_equal(got, padded[r : r + 6, c : c + 6][:, :: -1 if flip else 1])
        ]
        assert len(found) == 1
        offsets.add(found[0][:2])
        mirrored.add(found[0][2])
    assert len(offsets) == 25
    assert mirrored == {False, True}


def test_augmentation_depends_on_what_not_on_where() -> None:
    how = normalization.Preprocess((0.0,), (1.0,), padding=1, flip=True)
    whole = transforms.random_crop_and_flip(IMAGES, keys(5), how)
    some = transforms.random_crop_and_flip(IMAGES[3:], keys(5)[3:], how)
    np.testing.assert_array_equal(whole[3:], some)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(whole, transforms.random_crop_and_flip(IMAGES, keys(5), how))
    assert not np.array_equal(keys(5), keys(5, epoch=1))


def test_padding_is_black_before_normalisation() -> None:
    how = normalization.Preprocess((0.5,), (0.25,), padding=6, flip=False)
    out = transforms.random_crop_and_flip(np.full((64, 6, 6, 1), 255, np.uint8), keys(64), how)
    assert set(np.unique(transforms.normalize(out, how, np.float32))) == {-2.0, 2.0}


def test_normalise() -> None:
    how = normalization.PUBLISHED["cifar100"]
    pixels = np.asarray([0, 128, 255], np.uint8).reshape(1, 1, 1, 3)
    expected = (np.asarray([0, 128 / 255, 1]) - how.mean) / how.std
    np.testing.assert_allclose(transforms.normalize(pixels, how, np.float32).ravel(), expected, atol=1e-6)
    assert transforms.normalize(pixels, how, jnp.bfloat16).dtype == jnp.bfloat16


def test_measured_statistics() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3)).astype(np.uint8)
    how = normalization.measured(images, flip=False)
    np.testing.assert_allclose(how.mean, (images / 255).mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(how.std, (images / 255).std((0, 1, 2)), atol=1e-4)


def test_unknown_data_set() -> None:
    with pytest.raises(UserError, match="no data set 'cifar1000'; did you mean 'cifar100'"):
        dataset.load_dataset(config.DataConfig(name="cifar1000"), 0)


def test_data_dir_that_is_no_folder(tmp_path: object) -> None:
    with pytest.raises(UserError, match=r"config.data.dir '.*nowhere' is not a folder"):
        dataset.load_dataset(config.DataConfig(name="cifar100", dir=f"{tmp_path}/nowhere"), 0)


def test_not_prepared_and_no_network(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the command that prepares the set where there is network."""
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"run: tfds build cifar10 --file_format=array_record --data_dir="):
        dataset.load_dataset(config.DataConfig(name="cifar10", dir=str(tmp_path)), 0)


def test_decoded_splits_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a shard changes or the kept file is damaged."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shard = tmp_path / "shard"
    shard.write_bytes(b"abc")
    split = tiny_runs.random_split(9)
    reads = []

    def read() -> decode_cache.Arrays:
        reads.append(1)
        return split.images, split.labels

    def load() -> None:
        images, labels = decode_cache.decoded("some train", [shard], read)
        tiny_runs.assert_same_bits((images, labels), (split.images, split.labels))

    load()
    load()
    assert len(reads) == 1
    shard.write_bytes(b"abcd")
    load()
    load()
    assert len(reads) == 2
    for kept in (tmp_path / "cache").rglob("*.npz"):
        kept.write_bytes(kept.read_bytes()[:-100])
    load()
    load()
    assert len(reads) == 3


def test_decoded_splits_without_a_place_to_keep_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images, labels = decode_cache.decoded("some train", [], lambda: (np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1)))
    assert (len(images), len(labels)) == (1, 1)
    assert "some train will be decoded again at the next start" in caplog.text
