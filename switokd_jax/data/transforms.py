"""Crop, flip and normalisation inside the jitted step, each example from its own key.

What happens to an example depends on (seed, epoch, index) alone, so any device count sees the same images.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from switokd_jax.data.normalization import Preprocess


def example_keys(rng: jax.Array, epoch: jax.Array, indices: jax.Array) -> jax.Array:
    """One raw key for each example: [batch, 2] uint32 from the run's key, the epoch and the indices."""
    of_epoch = jax.random.fold_in(rng, epoch)
    return jax.vmap(lambda index: jax.random.fold_in(of_epoch, index))(indices)


def random_crop_and_flip(images: jax.Array | np.ndarray, keys: jax.Array, preprocess: Preprocess) -> jax.Array:
    """Random crop with black padding, then a random mirror image.

    Args:
      images: [batch, height, width, channels] uint8.
      keys: [batch, 2] uint32.
      preprocess: padding and flip.

    Returns:
      [batch, height, width, channels] uint8.
    """
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


def normalize(images: jax.Array | np.ndarray, preprocess: Preprocess, dtype: Any) -> jax.Array:
    """uint8 [batch, height, width, channels] to (x / scale - mean) / std, computed in float32 at least."""
    wide = jnp.promote_types(dtype, jnp.float32)
    x = jnp.asarray(images, wide) / preprocess.scale
    return ((x - jnp.asarray(preprocess.mean, wide)) / jnp.asarray(preprocess.std, wide)).astype(dtype)
