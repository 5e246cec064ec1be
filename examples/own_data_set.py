"""Trains on your own data set with your own augmentation: the direction of a bar, in images that NumPy draws.

python -m switokd_jax.main --config=examples/own_data_set.py --workdir=runs/own_data_set
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from switokd_jax import config
from switokd_jax.config import DataConfig
from switokd_jax.data.dataset import SOURCES, SourceData, Split, in_memory
from switokd_jax.data.normalization import Preprocess
from switokd_jax.data.transforms import TRANSFORMS

CLASSES = ("horizontal", "vertical", "falling", "rising")
SIDE = 16


def draw_bars(count: int, seed: int) -> Split:
    """Draws bars in noise: images [count, SIDE, SIDE, 1] uint8 and labels [count] int32."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), count).astype(np.int32)
    row, column = np.mgrid[:SIDE, :SIDE]
    # For each class, a coordinate that is constant along a bar.
    coordinates = np.stack([row, column, row - column + SIDE // 2, row + column - SIDE // 2])
    positions = rng.integers(SIDE // 4, 3 * SIDE // 4, count)
    bars = np.abs(coordinates[labels] - positions[:, None, None]) <= 1
    noise = rng.normal(80.0, 40.0, (count, SIDE, SIDE))
    return Split((noise + 60.0 * bars).clip(0, 255).astype(np.uint8)[..., None], labels)


def bars(spec: DataConfig) -> SourceData:
    """Makes the data set; `spec` is the config's block `data`, of which this one needs nothing."""
    del spec
    return in_memory(draw_bars(2000, seed=0), draw_bars(500, seed=1), CLASSES)


def brightness(images: jax.Array, keys: jax.Array, preprocess: Preprocess) -> jax.Array:
    """Adds one random offset of up to 20 levels to all pixels of an image."""
    del preprocess
    offsets = jax.vmap(lambda key: jax.random.randint(key, (), -20, 21))(keys)
    return jnp.clip(images + offsets[:, None, None, None], 0, 255).astype(jnp.uint8)


SOURCES["bars"] = bars
TRANSFORMS["brightness"] = brightness


def get_config() -> ConfigDict:
    """Changes the data of `config.default()`; mirror images would turn a falling bar into a rising one."""
    c = config.default()
    c.data.name = "bars"
    c.data.transforms = ("brightness",)
    c.epochs = 5.0
    return c
