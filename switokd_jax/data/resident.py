"""The resident pipeline: a whole split as uint8 on the devices; the host sends indices only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import struct

from switokd_jax.data import sampling, transforms
from switokd_jax.data.normalization import Preprocess
from switokd_jax.data.sampling import Batch, BatchIterator, ProcessShard


@struct.dataclass
class DeviceDataset:
    """images: [n, height, width, channels] uint8; labels: [n] int32; both on every device."""

    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray


def train_batches(
    examples: int, seed: int, batch_size: int, share: ProcessShard, first: int, total: int
) -> BatchIterator:
    """The batches of the global steps from `first` to the last before `total`."""
    for step in range(first, total):
        index = sampling.train_indices(step, seed, examples, batch_size)
        yield len(index), Batch(index[share.rows(len(index))])


def eval_batches(examples: int, batch_size: int, share: ProcessShard) -> BatchIterator:
    """Batches that cover the split once, padded and masked."""
    for step in range(sampling.steps_per_epoch(examples, batch_size)):
        index, mask = sampling.eval_indices(step, examples, batch_size)
        rows = share.rows(batch_size)
        yield batch_size, Batch(index[rows], mask[rows])


def gather_batch(data: DeviceDataset | None, batch: Batch) -> tuple[Any, Any]:
    """Images [batch, height, width, channels] uint8 and labels [batch] of a batch, inside a step.

    Args:
      data: the split on the devices, or None where the batch brings its images along.
      batch: traced.
    """
    if data is None:
        return batch.images, batch.labels
    return data.images[batch.index], data.labels[batch.index]


def train_inputs(
    preprocess: Preprocess, *, augmented: bool, steps_in_epoch: int, dtype: Any
) -> Callable[[DeviceDataset | None, Batch, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Makes (data, batch, run key, global step) -> (images, labels) for inside the step."""
    # Streams of images of any size are cropped and mirrored where they are decoded.
    augmented = augmented and (preprocess.padding > 0 or preprocess.flip)

    def inputs(
        data: DeviceDataset | None, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        images, labels = gather_batch(data, batch)
        if augmented:
            keys = transforms.example_keys(rng, step // steps_in_epoch, batch.index)
            images = transforms.random_crop_and_flip(images, keys, preprocess)
        return transforms.normalize(images, preprocess, dtype), labels

    return inputs
