"""Resident pipeline: device memory holds a full split as uint8, and the host sends indices only."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import struct

from switokd_jax.data import sampling
from switokd_jax.data.sampling import Batch, BatchIterator, OrderFn, ProcessShard


@struct.dataclass
class DeviceDataset:
    """A split in device memory; every device has a full copy.

    Attributes:
      images: [n, height, width, channels] uint8.
      labels: [n] int32.
    """

    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray


def train_batches(
    num_examples: int,
    seed: int,
    batch_size: int,
    process_shard: ProcessShard,
    first_step: int,
    total_steps: int,
    order: OrderFn = sampling.epoch_order,
) -> BatchIterator:
    """Yields this process's rows of the training batches of global steps `first_step` to `total_steps` - 1."""
    for step in range(first_step, total_steps):
        indices = sampling.train_indices(step, seed, num_examples, batch_size, order)
        yield len(indices), Batch(indices[process_shard.rows(len(indices))])


def eval_batches(num_examples: int, batch_size: int, process_shard: ProcessShard, repeats: int = 1) -> BatchIterator:
    """Yields this process's rows of padded and masked batches that cover a split, so many times."""
    rows = process_shard.rows(batch_size)
    steps = sampling.steps_per_epoch(num_examples, batch_size)
    for step in range(repeats * steps):
        indices, mask = sampling.eval_indices(step % steps, num_examples, batch_size)
        yield batch_size, Batch(indices[rows], mask[rows])


def gather_batch(data: DeviceDataset | None, batch: Batch) -> tuple[Any, Any]:
    """Returns the images and labels of a batch; runs inside a jitted step.

    Args:
      data: the split in device memory, or None if the batch brings its images along (a stream).
      batch: traced.

    Returns:
      Images [batch, height, width, channels] uint8 and labels [batch] int32.
    """
    if data is None:
        return batch.images, batch.labels
    return data.images[batch.index], data.labels[batch.index]
