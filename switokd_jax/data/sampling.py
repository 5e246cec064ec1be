"""Composition of batches: order of an epoch, padding for evaluation, rows of each process, stacks for one call.

A batch depends on its global step alone. The step in a checkpoint is therefore the full position of the pipeline,
for any number of devices, processes or workers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class Batch:
    """One batch, as NumPy arrays on the host and as JAX arrays on the devices.

    Attributes:
      index: [batch] int32, indices of the examples in their split.
      mask: [batch] float32, 0 for padding; None in training.
      images: [batch, height, width, channels] uint8; None if the split is in device memory.
      labels: [batch] int32; None if the split is in device memory. Of mixed images [batch, classes] probabilities.
      views: by network or branch, the images that it sees in place of `images`; None where all see the same.
    """

    index: Any
    mask: Any = None
    images: Any = None
    labels: Any = None
    views: Any = None

    def images_of(self, network: str, nodes: Sequence[str]) -> Any:
        """Returns the images that a network sees.

        Args:
          network: its name.
          nodes: names of its branches, or its own.

        Returns:
          [batch, height, width, channels]; [batch, nodes, height, width, channels] if each branch has its own view.
        """
        if self.views is None:
            return self.images
        return self.views[network] if network in self.views else jnp.stack([self.views[node] for node in nodes], axis=1)


SizedBatch = tuple[int, Batch]
"""Size of a global batch, and this process's rows of it."""
BatchIterator = Generator[SizedBatch, None, None]
"""Iterator over batches. Call `close()` on it when done: it may hold worker processes."""


@dataclasses.dataclass(frozen=True)
class StackedBatches:
    """Successive batches of one size, stacked for one call of the compiled step.

    Attributes:
      size: examples in each global batch.
      count: number of batches.
      examples: NumPy arrays [max_steps, rows, ...] with this process's rows. Entries beyond `count` are padding. For
        batches without images max_steps is at least 2.
    """

    size: int
    count: int
    examples: Batch


@dataclasses.dataclass(frozen=True)
class ProcessShard:
    """One process's share of each global batch.

    Attributes:
      shard_index: index of the process, from 0.
      shard_count: number of processes.
      device_count: number of devices of all processes.
    """

    shard_index: int = 0
    shard_count: int = 1
    device_count: int = 1

    def rows(self, batch_size: int) -> slice:
        """Returns this process's rows of a global batch.

        Processes have equal, contiguous parts in their order. If the devices do not divide the batch, every process has
        all rows.

        >>> ProcessShard(shard_index=1, shard_count=2, device_count=4).rows(8)
        slice(4, 8, None)
        """
        if batch_size % self.device_count:
            return slice(0, batch_size)
        part = batch_size // self.shard_count
        return slice(self.shard_index * part, (self.shard_index + 1) * part)


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Counts the batches of an epoch, a partial last one included.

    >>> steps_per_epoch(10, 4)
    3
    """
    return math.ceil(num_examples / batch_size)


@functools.lru_cache(maxsize=2)  # every batch of an epoch asks for its order
def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Draws the order of the examples in an epoch (from 0): [num_examples] int32, read-only.

    It is drawn on the host, so it is the same for any device count and dtype.
    """
    order = np.arange(num_examples, dtype=np.int32)
    np.random.default_rng((seed, epoch)).shuffle(order)  # as `permutation`, without its 64-bit copy
    order.flags.writeable = False
    return order


OrderFn = Callable[[int, int, int], np.ndarray]
"""(seed, epoch, number of examples) -> order of the examples, as `epoch_order`."""


def class_pair_order(labels: np.ndarray) -> OrderFn:
    """Makes an order in which two examples of one class follow each other, for losses that contrast classes.

    The pairs are drawn anew in each epoch, and so is their order. Examples that are left over, one of each class of odd
    size, come last. Batches of even size hold whole pairs up to there.

    Args:
      labels: [examples] integer.

    >>> order = class_pair_order(np.asarray([0, 1, 0, 1, 1]))(0, 0, 5)
    >>> np.asarray([0, 1, 0, 1, 1])[order[:4]].reshape(2, 2).tolist() in ([[0, 0], [1, 1]], [[1, 1], [0, 0]])
    True
    """

    @functools.lru_cache(maxsize=2)
    def order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
        rng = np.random.default_rng((seed, epoch))
        shuffled = rng.permutation(num_examples)
        grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
        sizes = np.unique(labels[grouped], return_counts=True)[1]
        rank = np.arange(num_examples) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        single = rank == np.repeat(np.where(sizes % 2, sizes - 1, -1), sizes)
        pairs = rng.permutation(grouped[~single].reshape(-1, 2))
        result = np.concatenate([pairs.reshape(-1), rng.permutation(grouped[single])]).astype(np.int32)
        result.flags.writeable = False
        return result

    return order


def train_indices(step: int, seed: int, num_examples: int, batch_size: int, order: OrderFn = epoch_order) -> np.ndarray:
    """Returns the examples [batch] int32 of a global step (from 0); each epoch takes every example once."""
    epoch, step_in_epoch = divmod(step, steps_per_epoch(num_examples, batch_size))
    return order(seed, epoch, num_examples)[step_in_epoch * batch_size : (step_in_epoch + 1) * batch_size]


def eval_indices(step: int, num_examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples [batch] int32 of one evaluation step, and their mask [batch] float32.

    The last batch is padded with the last example; the mask is 0 there.

    >>> eval_indices(1, num_examples=5, batch_size=3)
    (array([3, 4, 4], dtype=int32), array([1., 1., 0.], dtype=float32))
    """
    indices = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int32)
    return np.minimum(indices, num_examples - 1), (indices < num_examples).astype(np.float32)


def stack_batches(
    batches: Iterable[SizedBatch],
    max_steps: int,
    first_step: int = 0,
    is_boundary: Callable[[int], bool] = lambda step: False,
) -> Iterator[StackedBatches]:
    """Yields stacks of up to `max_steps` batches.

    A stack ends early where the batch size changes or a boundary is reached.

    Args:
      batches: in the order of their steps.
      max_steps: leading size of every stack's arrays.
      first_step: number of global steps before the first batch.
      is_boundary: tells if a stack has to end with this global step (counted from 1).
    """
    pending: list[Batch] = []
    pending_size = 0
    for step, (size, batch) in enumerate(batches, first_step + 1):
        if pending and size != pending_size:
            yield _stack(pending_size, pending, max_steps)
            pending = []
        pending_size = size
        pending.append(batch)
        if len(pending) == max_steps or is_boundary(step):
            yield _stack(pending_size, pending, max_steps)
            pending = []
    if pending:
        yield _stack(pending_size, pending, max_steps)


def _stack(size: int, batches: list[Batch], max_steps: int) -> StackedBatches:
    def stack_rows(*rows: np.ndarray) -> np.ndarray:
        if max_steps == 1 and batches[0].images is not None:
            return rows[0][None]  # a stream's images are large: no copy
        # Two entries at least: XLA reads a single one without a gather, fuses more, and may round a metric differently.
        return np.stack([*rows, *[rows[-1]] * (max(max_steps, 2) - len(rows))])

    return StackedBatches(size, len(batches), jax.tree.map(stack_rows, *batches))
