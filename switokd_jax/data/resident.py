"""The resident pipeline: a whole split as uint8 on the devices; the host sends indices only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import struct

from switokd_jax.data import augment, sources


@struct.dataclass
class Resident:
    """images: [n, height, width, channels] uint8; labels: [n] int32; both on every device."""

    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray


def resident(split: sources.Split) -> Resident:
    """A split as the tree that `Distribution.place` copies to the devices."""
    return Resident(split.images, split.labels)


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """The last partial batch counts."""
    return math.ceil(examples / batch_size)


def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order [examples] int32 of an epoch (from 0): the same for every device count and dtype."""
    return np.random.default_rng((seed, epoch)).permutation(examples).astype(np.int32)


def batches(seed: int, examples: int, batch_size: int, first_step: int) -> Iterator[np.ndarray]:
    """Index arrays from a global step on, for ever; each epoch takes every example once."""
    per_epoch = steps_per_epoch(examples, batch_size)
    epoch, within = divmod(first_step, per_epoch)
    while True:
        order = epoch_order(seed, epoch, examples)
        for start in range(within * batch_size, examples, batch_size):
            yield order[start : start + batch_size]
        epoch, within = epoch + 1, 0


def train_inputs(
    preprocess: sources.Preprocess, *, augmented: bool, steps_in_epoch: int, dtype: Any
) -> Callable[[Resident, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Makes (data, indices [batch], run key, global step) -> (images, labels) for inside the step."""

    def inputs(data: Resident, indices: jax.Array, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        images = data.images[indices]
        if augmented:
            keys = augment.example_keys(rng, step // steps_in_epoch, indices)
            images = augment.crop_and_flip(images, keys, preprocess)
        return augment.normalise(images, preprocess, dtype), data.labels[indices]

    return inputs
