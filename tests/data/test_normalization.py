"""Normalization constants: measured ones, the formula, and their JSON form in record.json."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from switokd_jax.data import normalization, transforms
from switokd_jax.data.normalization import Preprocess


def test_normalize_is_pixels_over_scale_minus_mean_over_std() -> None:
    preprocess = normalization.PUBLISHED["cifar100"]
    pixels = np.asarray([0, 128, 255], np.uint8).reshape(1, 1, 1, 3)
    expected = (np.asarray([0, 128 / 255, 1]) - preprocess.mean) / preprocess.std
    np.testing.assert_allclose(transforms.normalize(pixels, preprocess, np.float32).ravel(), expected, atol=1e-6)


def test_normalize_returns_the_dtype_of_the_run() -> None:
    pixels = np.zeros((1, 2, 2, 3), np.uint8)
    assert transforms.normalize(pixels, normalization.IMAGENET, jnp.bfloat16).dtype == jnp.bfloat16


def test_measured_constants_are_numpys_mean_and_std() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3)).astype(np.uint8)
    preprocess = normalization.measure(images)
    np.testing.assert_allclose(preprocess.mean, (images / 255).mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(preprocess.std, (images / 255).std((0, 1, 2)), atol=1e-4)


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    assert normalization.measure(np.full((2, 4, 4, 1), 51, np.uint8)).std == (1.0,)


@pytest.mark.parametrize("name", normalization.PUBLISHED)
def test_preprocess_survives_a_json_file(name: str) -> None:
    preprocess = normalization.PUBLISHED[name]
    assert Preprocess.from_json(json.loads(json.dumps(preprocess.to_json()))) == preprocess


def test_preprocess_of_a_record_that_an_older_version_wrote_is_read() -> None:
    """The literal form of record.json: names and types must not change."""
    text = '{"mean": [0.491, 0.482, 0.447], "std": [0.247, 0.243, 0.262], "scale": 255.0, "padding": 4, "flip": true}'
    assert Preprocess.from_json(json.loads(text)) == normalization.PUBLISHED["cifar10"]
    assert json.dumps(normalization.PUBLISHED["cifar10"].to_json()) == text
