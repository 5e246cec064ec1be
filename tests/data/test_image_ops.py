"""Operations on one image against Pillow's."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

import tiny_runs
from switokd_jax.data import image_ops
from switokd_jax.errors import UserError

SIZES = [(32, 32), (17, 29), (8, 8), (3, 40)]
ENHANCED: dict[Any, Any] = {
    ImageEnhance.Brightness: image_ops.brightness,
    ImageEnhance.Contrast: image_ops.contrast,
    ImageEnhance.Color: image_ops.saturation,
    ImageEnhance.Sharpness: image_ops.sharpness,
}


def image_of(mode: str, size: tuple[int, int]) -> Image.Image:
    """Noise whose levels are unevenly spread, not from 0 to 255."""
    pixels = np.asarray(tiny_runs.photograph(*size, seed=sum(size))).astype(int)
    return Image.fromarray((20 + pixels**2 // 300).astype(np.uint8)).convert(mode)


def array(image: Image.Image) -> Any:
    pixels = jnp.asarray(np.asarray(image))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def assert_close(result: Any, expected: Image.Image, changed: float = 0.01) -> None:
    """At most one level apart, and rarely."""
    difference = np.abs(np.asarray(result).astype(int) - np.asarray(array(expected)).astype(int))
    assert result.dtype == jnp.uint8
    assert difference.max() <= 1
    assert difference.mean() <= changed


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("enhance", ENHANCED)
def test_blends(mode: str, size: tuple[int, int], enhance: Any) -> None:
    image = image_of(mode, size)
    for factor in (0.0, 0.1, 0.73, 1.0, 1.27, 1.9):
        assert_close(ENHANCED[enhance](array(image), factor), enhance(image).enhance(factor))


EXACT: list[tuple[Callable[[Any], Any], Callable[[Image.Image], Image.Image]]] = [
    (image_ops.equalize, ImageOps.equalize),
    (image_ops.autocontrast, ImageOps.autocontrast),
    (lambda x: image_ops.posterize(x, 5), lambda image: ImageOps.posterize(image, 5)),
    (lambda x: image_ops.posterize(x, 8), lambda image: ImageOps.posterize(image, 8)),
    (lambda x: image_ops.solarize(x, 178), lambda image: ImageOps.solarize(image, 178)),
    (lambda x: image_ops.solarize(x, 0), lambda image: ImageOps.solarize(image, 0)),
]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("ours", "pillows"), EXACT)
def test_tables_of_levels(mode: str, size: tuple[int, int], ours: Any, pillows: Any) -> None:
    image = image_of(mode, size)
    assert_close(ours(array(image)), pillows(image), changed=0.0 if pillows is not ImageOps.autocontrast else 0.01)


@pytest.mark.parametrize("level", [0, 77, 255])
def test_an_image_of_one_level_stays_as_it_is(level: int) -> None:
    image = Image.new("RGB", (9, 9), (level,) * 3)
    for ours, pillows in EXACT[:2]:
        np.testing.assert_array_equal(ours(array(image)), array(pillows(image)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("degrees", [-30.0, -9.0, 0.0, 4.5, 30.0])
def test_rotation(size: tuple[int, int], degrees: float) -> None:
    image = image_of("RGB", size)
    sources = image_ops.affine_sources(image_ops.rotation(degrees, *size), *size)
    np.testing.assert_array_equal(image_ops.take_pixels(array(image), sources), array(image.rotate(degrees)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("coefficients", [(1, 0.3, 0, 0, 1, 0), (1, 0, 0, -0.09, 1, 0), (1, 0, 5, 0, 1, -2)])
def test_affine_maps(size: tuple[int, int], coefficients: tuple[float, ...]) -> None:
    image = image_of("RGB", size)
    expected = image.transform(image.size, Image.Transform.AFFINE, coefficients)
    sources = image_ops.affine_sources(coefficients, *size)
    np.testing.assert_array_equal(image_ops.take_pixels(array(image), sources), array(expected))


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.0, 0.03, 0.4])
def test_hue(turns: float) -> None:
    """Against colorsys, pixel by pixel: Pillow's HSV has 8 bits."""
    image = image_of("RGB", (8, 8))
    expected = [
        colorsys.hsv_to_rgb((h + turns) % 1.0, s, v)
        for h, s, v in (colorsys.rgb_to_hsv(*pixel) for pixel in (np.asarray(image) / 255).reshape(-1, 3))
    ]
    result = np.asarray(image_ops.shift_hue(array(image), turns)).reshape(-1, 3)
    np.testing.assert_allclose(result, 255 * np.asarray(expected), atol=0.502)


def test_grey_images_have_no_hue() -> None:
    image = image_of("L", (8, 8))
    np.testing.assert_array_equal(image_ops.shift_hue(array(image), 0.3), array(image))


def test_grey_is_pillows() -> None:
    image = image_of("RGB", (32, 32))
    np.testing.assert_array_equal(image_ops.luma(array(image)), np.asarray(image.convert("L")))


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(UserError, match="images of 4 channels cannot be changed; they have 1 or 3"):
        image_ops.contrast(jnp.zeros((4, 4, 4), jnp.uint8), 0.5)
