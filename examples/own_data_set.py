"""An own data set: which way a bar lies, in images that NumPy draws.

python -m switokd_jax.main --config=examples/own_data_set.py --workdir=runs/own_data_set
"""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from switokd_jax import config
from switokd_jax.config import DataConfig
from switokd_jax.data.dataset import SOURCES, SourceData, Split, in_memory

CLASSES = ("horizontal", "vertical", "falling", "rising")
SIDE = 16


def draw(count: int, seed: int) -> Split:
    """Bars in noise: [count, SIDE, SIDE, 1] uint8, and the numbers of their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), count).astype(np.int32)
    row, column = np.mgrid[:SIDE, :SIDE]
    ways = np.stack([row, column, row - column + SIDE // 2, row + column - SIDE // 2])  # what is constant along a bar
    places = rng.integers(SIDE // 4, 3 * SIDE // 4, count)
    bars = np.abs(ways[labels] - places[:, None, None]) <= 1
    noise = rng.normal(80.0, 40.0, (count, SIDE, SIDE))
    return Split((noise + 60.0 * bars).clip(0, 255).astype(np.uint8)[..., None], labels)


def bars(spec: DataConfig) -> SourceData:
    """The source of the data set, made of the config's block `data`."""
    del spec  # nothing to look up
    return in_memory(draw(2000, seed=0), draw(500, seed=1), CLASSES)


SOURCES["bars"] = bars


def get_config() -> ConfigDict:
    """The networks of configs/digits.py. Mirror images would turn a falling bar into a rising one: no augmentation."""
    c = config.default()
    c.data.name = "bars"
    c.data.augment = False
    c.epochs = 5.0
    return c
