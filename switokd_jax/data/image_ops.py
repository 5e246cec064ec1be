"""Operations on one image, as Pillow computes them: what RandAugment and colour jitter are made of.

Each takes an image [height, width, channels] uint8 of 1 (grey) or 3 (RGB) channels with pixels from 0 to 255, can be
traced and mapped over a batch, and returns an image of the same shape and dtype. Blends are truncated and coordinates
are fixed-point numbers, as in Pillow, so that results differ by at most one level, where float32 sums are rounded
otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from switokd_jax.data.normalization import Preprocess
from switokd_jax.errors import UserError

FIXED_POINT = 1 << 16
# Pillow's weights of red, green and blue, of 2^16 (ITU-R 601-2).
LUMA = (19595, 38470, 7471)


def luma(image: jax.Array) -> jax.Array:
    """Converts to grey: [height, width] int32, from 0 to 255.

    Raises:
      UserError: for images of neither 1 nor 3 channels.
    """
    channels = image.shape[-1]
    if channels == 1:
        return image[..., 0].astype(jnp.int32)
    if channels != 3:
        raise UserError(f"colours of images of {channels} channels cannot be changed; they have 1 or 3")
    weighted = sum(image[..., i].astype(jnp.int32) * weight for i, weight in enumerate(LUMA))
    return jnp.asarray((weighted + (1 << 15)) >> 16)


def blend(base: jax.Array, image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Computes base + factor (image - base), truncated and clipped to 0..255; a factor beyond 1 extrapolates."""
    low, high = base.astype(jnp.float32), image.astype(jnp.float32)
    return jnp.clip(low + jnp.asarray(factor, jnp.float32) * (high - low), 0.0, 255.0).astype(jnp.uint8)


def brightness(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Blends with black: 0 is black, 1 the image."""
    return blend(jnp.zeros_like(image), image, factor)


def contrast(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Blends with the mean grey of the image."""
    grey = luma(image)
    mean = jnp.floor(jnp.mean(grey.astype(jnp.float32)) + 0.5).astype(jnp.uint8)
    return blend(jnp.full_like(image, mean), image, factor)


def saturation(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Blends with the grey image: 0 is grey, 1 the image."""
    return blend(jnp.broadcast_to(luma(image)[..., None], image.shape).astype(jnp.uint8), image, factor)


def sharpness(image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Blends with the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13, whose border stays as it is."""
    pixels = image.astype(jnp.int32)
    height, width, _ = image.shape
    if height < 3 or width < 3:
        return image
    windows = [pixels[r : r + height - 2, c : c + width - 2] for r in range(3) for c in range(3)]
    inner = sum(windows) + 4 * pixels[1:-1, 1:-1]
    smooth = (2 * jnp.asarray(inner) + 13) // 26  # of a thirteenth, to the nearest
    return blend(pixels.at[1:-1, 1:-1].set(smooth), image, factor)


def posterize(image: jax.Array, bits: int) -> jax.Array:
    """Keeps the upper bits of each pixel."""
    return image & jnp.uint8(256 - (1 << (8 - bits)))


def solarize(image: jax.Array, threshold: float) -> jax.Array:
    """Inverts the pixels from a threshold on."""
    return jnp.where(image < threshold, image, 255 - image).astype(jnp.uint8)


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretches each channel to 0..255; a channel of one level stays as it is."""
    low, high = (jnp.asarray(f(image, axis=(0, 1)), jnp.float32) for f in (jnp.min, jnp.max))
    scale = 255.0 / jnp.maximum(high - low, 1.0)
    stretched = jnp.clip(image.astype(jnp.float32) * scale - low * scale, 0.0, 255.0)
    # The truncation of a number that is whole but for its rounding must not lose a level.
    return jnp.where(high > low, jnp.floor(stretched + 1e-4), image).astype(jnp.uint8)


def equalize(image: jax.Array) -> jax.Array:
    """Spreads the histogram of each channel evenly."""
    return jnp.stack([_equalize_channel(image[..., i]) for i in range(image.shape[-1])], -1)


def _equalize_channel(channel: jax.Array) -> jax.Array:
    pixels = channel.astype(jnp.int32)
    counts = jnp.zeros(256, jnp.int32).at[pixels.ravel()].add(1)
    step = (channel.size - counts[jnp.max(pixels)]) // 255
    before = jnp.cumsum(counts) - counts
    table = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table[pixels], pixels).astype(jnp.uint8)


def affine_sources(coefficients: Sequence[float], height: int, width: int) -> np.ndarray:
    """Returns where each pixel (x, y) of an affine map comes from: the one nearest to (a x + b y + c, d x + e y + f).

    Args:
      coefficients: (a, b, c, d, e, f); coordinates are those of the pixels' centres.
      height: of the image.
      width: of the image.

    Returns:
      [height, width] int32, positions in the flattened image; height * width for pixels from outside of it.
    """
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    sources = []
    for a, b, c in (coefficients[:3], coefficients[3:]):
        start, across, down = (math.floor(x * FIXED_POINT + 0.5) for x in (c + 0.5 * a + 0.5 * b, a, b))
        sources.append((start + across * columns + down * rows) >> 16)
    column, row = sources
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return np.where(inside, row * width + column, height * width).astype(np.int32)


def take_pixels(image: jax.Array, sources: jax.Array | np.ndarray) -> jax.Array:
    """Takes each pixel from its source, or black; see `affine_sources`."""
    pixels = image.reshape(-1, image.shape[-1])
    return jnp.concatenate([pixels, jnp.zeros_like(pixels[:1])])[sources]


def rotation(degrees: float, height: int, width: int) -> tuple[float, ...]:
    """Returns the coefficients of a turn counterclockwise about the middle of an image."""
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y


def shift_hue(image: jax.Array, turns: jax.Array | float) -> jax.Array:
    """Turns the hue by a part of the circle, from -0.5 to 0.5; grey images stay as they are."""
    if image.shape[-1] == 1:
        return image
    x = image.astype(jnp.float32)
    high, low = jnp.max(x, -1), jnp.min(x, -1)
    chroma = high - low
    red, green, blue = (x[..., i] for i in range(3))
    safe = jnp.maximum(chroma, 1.0)
    sector = jnp.where(
        high == red,
        (green - blue) / safe % 6.0,
        jnp.where(high == green, (blue - red) / safe + 2.0, (red - green) / safe + 4.0),
    )
    turned = (sector + 6.0 * turns) % 6.0
    # Of a hue h in sixths of the circle: channel n is high - chroma max(0, min(k, 4 - k, 1)), k = (n + h) mod 6.
    k = (jnp.array([5.0, 3.0, 1.0]) + turned[..., None]) % 6.0
    mixed = high[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)
    return jnp.clip(jnp.round(mixed), 0.0, 255.0).astype(jnp.uint8)


def with_pixels_to_255(
    function: Callable[[jax.Array, jax.Array], jax.Array], images: jax.Array, keys: jax.Array, preprocess: Preprocess
) -> jax.Array:
    """Applies a function of images whose largest pixel is 255 to images of another scale, such as the digits' 16."""
    if preprocess.scale == 255.0:
        return function(images, keys)
    to_255 = jnp.round(images.astype(jnp.float32) * (255.0 / preprocess.scale)).astype(jnp.uint8)
    return jnp.round(function(to_255, keys).astype(jnp.float32) * (preprocess.scale / 255.0)).astype(jnp.uint8)
