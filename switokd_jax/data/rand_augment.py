"""RandAugment (Cubuk et al. 2020), with torchvision's operations and ranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from switokd_jax.data import image_ops
from switokd_jax.data.normalization import Preprocess
from switokd_jax.errors import UserError


def rand_augment(
    images: jax.Array | np.ndarray, keys: jax.Array, preprocess: Preprocess, layers: int = 2, magnitude: int = 9
) -> jax.Array:
    """Applies operations that are drawn at random, one after another (Cubuk et al. 2020), as torchvision does.

    Each operation is one of 14 with equal probability. m = magnitude / 30; +- has a random sign.

    | operation | strength |
    |---|---|
    | identity, autocontrast, equalize | none |
    | shear in x, in y | +- 0.3 m, as a slope |
    | shift in x, in y | +- 150 / 331 m of the side, in whole pixels |
    | rotation | +- 30 m degrees |
    | brightness, color, contrast, sharpness | blended with a factor of 1 +- 0.9 m |
    | posterize | 8 - round(4 m) bits are kept |
    | solarize | pixels from 255 (1 - m) on are inverted |

    Pixels that come from outside of the image are black; maps take the nearest pixel.

    Args:
      images: [batch, height, width, channels] uint8, of 1 or 3 channels.
      keys: [batch, 2] uint32.
      preprocess: its `scale` is the largest pixel.
      layers: number of operations.
      magnitude: from 0 to 30.

    Raises:
      UserError: for another magnitude, or fewer layers than one.
    """
    if not (0 <= magnitude <= 30 and layers >= 1):
        raise UserError(
            f"config.data.transforms: rand_augment({layers}, {magnitude}): layers are at least 1, and the magnitude is "
            "0 to 30"
        )
    m = magnitude / 30
    height, width = images.shape[1:3]
    maps = jnp.asarray(_rand_augment_maps(m, height, width))
    pixel_operations = _rand_augment_pixel_operations(m)
    num_maps = len(maps) // 2

    def augment(image: jax.Array, key: jax.Array) -> jax.Array:
        drawn = jax.random.randint(key, (), 0, num_maps + len(pixel_operations), jnp.int32)
        sign = jax.random.randint(jax.random.fold_in(key, 1), (), 0, 2, jnp.int32)
        # Each operation moves pixels or changes them; the other half is the identity then.
        mapped = image_ops.take_pixels(image, maps[jnp.where(drawn < num_maps, 2 * drawn + sign, 0)])
        mapped = jnp.where(drawn < num_maps, mapped, image)
        return jax.lax.switch(jnp.maximum(drawn - num_maps, 0), pixel_operations, mapped, sign)

    def augment_all(images: jax.Array, keys: jax.Array) -> jax.Array:
        for layer in range(layers):
            images = jax.vmap(augment)(images, jax.vmap(lambda key, i=layer: jax.random.fold_in(key, i))(keys))
        return images

    return image_ops.with_pixels_to_255(augment_all, jnp.asarray(images), keys, preprocess)


def _rand_augment_maps(m: float, height: int, width: int) -> np.ndarray:
    """Returns where pixels come from, for shear, shift and rotation, each with both signs: [10, height, width]."""
    right, down = int(150 / 331 * width * m), int(150 / 331 * height * m)
    coefficients: list[Sequence[float]] = []
    for sign in (1, -1):
        coefficients += [
            (1.0, sign * 0.3 * m, 0.0, 0.0, 1.0, 0.0),
            (1.0, 0.0, 0.0, sign * 0.3 * m, 1.0, 0.0),
            (1.0, 0.0, -sign * right, 0.0, 1.0, 0.0),
            (1.0, 0.0, 0.0, 0.0, 1.0, -sign * down),
            image_ops.rotation(sign * 30.0 * m, height, width),
        ]
    maps = [image_ops.affine_sources(each, height, width) for each in coefficients]
    return np.stack([maps[5 * sign + kind] for kind in range(5) for sign in range(2)])


def _rand_augment_pixel_operations(m: float) -> list[Callable[[jax.Array, jax.Array], jax.Array]]:
    """Returns functions (image, sign 0 or 1) -> image; the first is the identity."""

    def blended(operation: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
        return lambda image, sign: operation(image, 1.0 + jnp.where(sign == 0, 0.9, -0.9) * m)

    blends = (image_ops.brightness, image_ops.saturation, image_ops.contrast, image_ops.sharpness)
    return [
        lambda image, sign: image,
        *(blended(operation) for operation in blends),
        lambda image, sign: image_ops.posterize(image, 8 - round(4 * m)),
        lambda image, sign: image_ops.solarize(image, 255.0 * (1.0 - m)),
        lambda image, sign: image_ops.autocontrast(image),
        lambda image, sign: image_ops.equalize(image),
    ]
