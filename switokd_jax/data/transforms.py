"""Augmentation: transforms of uint8 batches inside the jitted train step, and crops of single images on the host.

On the device, `config.data.transforms` names entries of `TRANSFORMS`, perhaps with options: 'cutout(size=16)'. Each
example has a key of its own, derived from (seed, epoch, index): any number of devices sees the same images. To add a
transform, write a pure function and register it, for example in a config file:

    TRANSFORMS["invert"] = lambda images, keys, preprocess: 255 - images

On the host, the streaming pipeline crops images of any size when it decodes them (`config.data.image_size`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from switokd_jax.data import image_ops
from switokd_jax.data.entries import get_functions
from switokd_jax.data.normalization import Preprocess
from switokd_jax.data.rand_augment import rand_augment
from switokd_jax.errors import UserError
from switokd_jax.precision import float32_or_wider
from switokd_jax.state import fold_in_name

Transform = Callable[[jax.Array, jax.Array, Preprocess], jax.Array]
"""Pure function (images, keys, preprocess) -> images, traced inside the train step.

images: [batch, height, width, channels] uint8; the result has the same shape and dtype.
keys: [batch], one typed PRNG key per example.
preprocess: constants of the data set.
"""


def random_crop_and_flip(images: jax.Array | np.ndarray, keys: jax.Array, preprocess: Preprocess) -> jax.Array:
    """Crops a random window of the image with a black border, then mirrors half of the images.

    The window has the size of the image (He et al. 2016, section 4.2). Without padding and flip, images stay as
    they are.

    Args:
      images: [batch, height, width, channels] uint8.
      keys: [batch], one typed PRNG key each.
      preprocess: its `padding` and `flip` are used.

    Returns:
      [batch, height, width, channels] uint8.
    """
    if not (preprocess.padding or preprocess.flip):
        return jnp.asarray(images)
    height, width = images.shape[1:3]
    pad = preprocess.padding

    def draw(key: jax.Array) -> jax.Array:
        # int32 draws are the same numbers in float64 runs; [row offset, column offset, mirrored]
        corner = jax.random.randint(key, (2,), 0, 2 * pad + 1, jnp.int32)
        mirrored = jax.random.randint(jax.random.fold_in(key, 1), (1,), 0, 2, jnp.int32)
        return jnp.concatenate([corner, mirrored])

    row, column, mirrored = jax.vmap(draw)(keys).T
    rows = row[:, None] + jnp.arange(height, dtype=jnp.int32)
    columns = column[:, None] + jnp.arange(width, dtype=jnp.int32)
    if preprocess.flip:
        columns = jnp.where(mirrored[:, None] == 1, columns[:, ::-1], columns)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return jax.vmap(lambda image, r, c: image[r[:, None], c[None, :]])(padded, rows, columns)


def cutout(images: jax.Array | np.ndarray, keys: jax.Array, preprocess: Preprocess, size: int = 8) -> jax.Array:
    """Blackens a square around a random pixel of each image; the border of the image may cut it (DeVries, Taylor 2017).

    Args:
      images: [batch, height, width, channels] uint8.
      keys: [batch], one typed PRNG key each.
      preprocess: unused.
      size: side of the square in pixels. The paper has 16 for CIFAR-10 and 8 for CIFAR-100.

    Raises:
      UserError: for a size below 1.
    """
    del preprocess
    if size < 1:
        raise UserError(f"config.data.transforms: cutout({size}): the size is at least 1 pixel")
    height, width = images.shape[1:3]

    def draw(key: jax.Array, limit: int) -> jax.Array:
        return jax.random.randint(key, (), 0, limit, jnp.int32)

    def hidden(center: jax.Array, length: int) -> jax.Array:
        first = center[:, None] - size // 2
        positions = jnp.arange(length, dtype=jnp.int32)
        return (positions >= first) & (positions < first + size)

    row = jax.vmap(functools.partial(draw, limit=height))(keys)
    column = jax.vmap(lambda key: draw(jax.random.fold_in(key, 1), width))(keys)
    mask = hidden(row, height)[:, :, None] & hidden(column, width)[:, None, :]
    return jnp.where(mask[..., None], 0, images).astype(jnp.uint8)


def color_jitter(
    images: jax.Array | np.ndarray,
    keys: jax.Array,
    preprocess: Preprocess,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.0,
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue at random, in a random order, as torchvision's ColorJitter does.

    Args:
      images: [batch, height, width, channels] uint8, of 1 or 3 channels.
      keys: [batch], one typed PRNG key each.
      preprocess: its `scale` is the largest pixel.
      brightness: factors are uniform from max(0, 1 - brightness) to 1 + brightness.
      contrast: likewise.
      saturation: likewise.
      hue: the hue turns by a part of the circle that is uniform from -hue to hue; at most 0.5.

    Raises:
      UserError: for a negative strength, or more hue.
    """
    if min(brightness, contrast, saturation, hue) < 0 or hue > 0.5:
        raise UserError("config.data.transforms: color_jitter takes strengths of at least 0, and a hue of at most 0.5")
    ranges = [(max(0.0, 1.0 - x), 1.0 + x) for x in (brightness, contrast, saturation)] + [(-hue, hue)]
    operations = (image_ops.brightness, image_ops.contrast, image_ops.saturation, image_ops.shift_hue)

    def jitter(image: jax.Array, key: jax.Array) -> jax.Array:
        order = jax.random.permutation(key, len(operations))
        uniform = jax.random.uniform(jax.random.fold_in(key, 1), (len(operations),), jnp.float32)
        low, high = jnp.asarray(ranges, jnp.float32).T
        factors = low + (high - low) * uniform
        for i in range(len(operations)):
            image = jax.lax.switch(order[i], operations, image, factors[order[i]])
        return image

    return image_ops.with_pixels_to_255(jax.vmap(jitter), jnp.asarray(images), keys, preprocess)


# By name, as in config.data.transforms; users add theirs.
TRANSFORMS: dict[str, Callable[..., jax.Array]] = {
    "random_crop_and_flip": random_crop_and_flip,
    "cutout": cutout,
    "color_jitter": color_jitter,
    "rand_augment": rand_augment,
}


def get_transforms(entries: Sequence[str]) -> dict[str, Transform]:
    """Looks up transforms by name; the result keeps the order.

    Args:
      entries: names, or names with options after images, keys and preprocess: 'rand_augment(2, magnitude=9)'.

    Raises:
      UserError: naming the first that is unknown, repeated or no name with numbers.
    """
    return get_functions("data.transforms", entries, TRANSFORMS, inputs=3)


def check_transforms(names: Sequence[str], image_shape: tuple[int, int, int], preprocess: Preprocess) -> None:
    """Checks that transforms exist and keep the shape and dtype of images; traces them and computes nothing.

    Args:
      names: as in config.data.transforms.
      image_shape: (height, width, channels).
      preprocess: constants of the data set.

    Raises:
      UserError: naming the transform at fault.
    """
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.uint8)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    apply = functools.partial(apply_transforms, get_transforms(names), preprocess=preprocess)
    try:
        jax.eval_shape(apply, images, keys)
    except UserError as error:
        raise UserError(str(error)) from None  # without JAX's note on tracebacks: the message is one line


def apply_transforms(
    transforms: Mapping[str, Transform], images: jax.Array, keys: jax.Array, preprocess: Preprocess
) -> jax.Array:
    """Applies transforms one after another, each with random bits of its own.

    The first transform gets the keys themselves. Every later one gets them folded with the crc32 of its name.

    Args:
      transforms: by name, in order; see `get_transforms`.
      images: [batch, height, width, channels] uint8.
      keys: [batch], one typed PRNG key each; see `example_keys`.
      preprocess: passed on to each transform.

    Returns:
      [batch, height, width, channels] uint8.

    Raises:
      UserError: naming the transform whose result has another shape or dtype.
    """
    for position, (name, transform) in enumerate(transforms.items()):
        own_keys = keys if position == 0 else jax.vmap(functools.partial(fold_in_name, name=name))(keys)
        result = transform(images, own_keys, preprocess)
        shape, dtype = getattr(result, "shape", None), getattr(result, "dtype", None)
        if shape != images.shape or dtype != jnp.uint8:
            raise UserError(
                f"config.data.transforms: {name!r} returns {_describe(result)}, and a transform has to return uint8 of "
                f"its input's shape {images.shape}"
            )
        images = result
    return images


def example_keys(rng: jax.Array, epoch: jax.Array, indices: jax.Array) -> jax.Array:
    """Derives one PRNG key per example.

    Args:
      rng: the run's key, a scalar.
      epoch: scalar int32, from 0.
      indices: [batch] int32, indices of the examples in their split.

    Returns:
      [batch], one key each.
    """
    epoch_key = jax.random.fold_in(rng, epoch)
    return jax.vmap(lambda index: jax.random.fold_in(epoch_key, index))(indices)


def normalize(images: jax.Array | np.ndarray, preprocess: Preprocess, dtype: Any) -> jax.Array:
    """Computes network inputs (x / scale - mean) / std, in float32 or wider.

    Args:
      images: [batch, height, width, channels] uint8.
      preprocess: scale, mean and std.
      dtype: dtype of the result.

    Returns:
      [batch, height, width, channels] of `dtype`.
    """
    compute_dtype = float32_or_wider(dtype)
    x = jnp.asarray(images, compute_dtype) / preprocess.scale
    mean, std = jnp.asarray(preprocess.mean, compute_dtype), jnp.asarray(preprocess.std, compute_dtype)
    return ((x - mean) / std).astype(dtype)


def random_resized_crop(image: Image.Image, size: int, rng: np.random.Generator, flip: bool = True) -> Image.Image:
    """Crops a random box, resizes it to [size, size] pixels and mirrors half of the images, as torchvision does.

    Without `flip`, no image is mirrored, and the boxes are the same.
    """
    # Not resize(box=...): its filter reads pixels beyond the border of the box.
    cropped = image.crop(random_box(image.width, image.height, rng)).resize((size, size), Image.Resampling.BILINEAR)
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip and rng.random() < 0.5 else cropped


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws a box of 8 to 100 % of an image's area with a ratio of 3/4 to 4/3 (Szegedy et al. 2015).

    After ten draws that do not fit, it is the largest centered box with a ratio in that range, as in torchvision's
    RandomResizedCrop.

    Args:
      width: of the image, in pixels.
      height: of the image, in pixels.
      rng: source of the draws.

    Returns:
      (left, upper, right, lower) in pixels.
    """
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, upper, left + w, upper + h
    w = min(width, round(height * high))
    h = min(height, round(width / low))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Resizes the shorter side to size * 256 / 224 pixels and crops the middle [size, size].

    This is the usual evaluation on ImageNet.

    >>> centre_crop(Image.new("RGB", (500, 375)), 224).size
    (224, 224)
    """
    short = round(size * 256 / 224)
    scale = short / min(image.width, image.height)
    # torchvision truncates the longer side.
    width, height = (short if side * scale <= short else int(side * scale) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, upper = round((width - size) / 2), round((height - size) / 2)
    return resized.crop((left, upper, left + size, upper + size))


def _describe(result: Any) -> str:
    if hasattr(result, "shape") and hasattr(result, "dtype"):
        return f"{result.dtype} of shape {result.shape}"
    return f"a {type(result).__name__}"
