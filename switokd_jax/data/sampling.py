"""Which examples make a batch: the order of an epoch, padding for evaluation, the share of a process.

A batch is known by its step alone, so the step in a checkpoint is the position of the pipeline, whatever the number
of devices, processes or workers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from flax import struct

from switokd_jax.config import Config
from switokd_jax.errors import UserError


@struct.dataclass
class Batch:
    """A batch as the host sends it: arrays of NumPy there and of JAX on the devices.

    Attributes:
      index: [batch] int32, places in the split.
      mask: [batch] float32, 0 for padding; None in training.
      images: [batch, height, width, channels] uint8, and
      labels: [batch] int32; None where the split lies on the devices already.
    """

    index: Any
    mask: Any = None
    images: Any = None
    labels: Any = None


SizedBatch = tuple[int, Batch]
"""The size of a global batch and the part of it that this process sends."""
BatchIterator = Generator[SizedBatch, None, None]
"""Batches; to be closed."""


@dataclasses.dataclass(frozen=True)
class StackedBatches:
    """Batches of one size that follow one another, for one call of the devices.

    Attributes:
      size: of each global batch.
      count: how many there are.
      examples: arrays [most, ...] of NumPy, this process's part; beyond the count they mean nothing. There is room for
        two at least, unless they are images.
    """

    size: int
    count: int
    examples: Batch


@dataclasses.dataclass(frozen=True)
class ProcessShard:
    """Which part of a global batch a process reads.

    Attributes:
      process: from 0.
      processes: how many there are.
      devices: of all processes.
    """

    process: int = 0
    processes: int = 1
    devices: int = 1

    def rows(self, size: int) -> slice:
        """Equal parts, in the order of the processes; the whole batch where the devices do not divide it."""
        if size % self.devices:
            return slice(0, size)
        part = size // self.processes
        return slice(self.process * part, (self.process + 1) * part)


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """The last partial batch counts."""
    return math.ceil(examples / batch_size)


def check_microbatches(config: Config, examples: int, devices: int) -> None:
    """What a device has of a batch has equal parts; what the devices do not divide, each has whole.

    Raises:
      ConfigError: naming the batch that cannot be divided.
    """
    parts = config.gradient_accumulation
    for size in (config.batch_size, examples % config.batch_size):
        if (size if size % devices else size // devices) % parts:
            which = "a batch" if size == config.batch_size else "the last batch of an epoch"
            raise UserError(
                f"config.gradient_accumulation is {parts}, which does not divide {which}, {size} examples on {devices} "
                "device(s); change it or config.batch_size"
            )


@functools.lru_cache(maxsize=2)  # a batch may want the order of its epoch again and again
def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order [examples] int32 of an epoch (from 0): the same for every device count and dtype."""
    order = np.random.default_rng((seed, epoch)).permutation(examples).astype(np.int32)
    order.flags.writeable = False
    return order


def train_indices(step: int, seed: int, examples: int, batch_size: int) -> np.ndarray:
    """The examples [batch] int32 of a global step; each epoch takes every example once."""
    epoch, within = divmod(step, steps_per_epoch(examples, batch_size))
    return epoch_order(seed, epoch, examples)[within * batch_size : (within + 1) * batch_size]


def eval_indices(step: int, examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The examples [batch] of one step of an evaluation, and a mask that is 0 on the padding of the last one."""
    index = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int32)
    return np.minimum(index, examples - 1), (index < examples).astype(np.float32)


def stack_batches(
    batches: Iterable[SizedBatch], most: int, first: int = 0, stops: Callable[[int], bool] = lambda step: False
) -> Iterator[StackedBatches]:
    """Stacks of up to `most` batches.

    Args:
      batches: in the order of their steps.
      most: the leading size of every stack's arrays.
      first: global steps before the first batch.
      stops: whether a stack has to end with this global step (counted from 1).
    """
    waiting: list[Batch] = []
    size = 0
    for step, (coming, examples) in enumerate(batches, first + 1):
        if waiting and coming != size:
            yield _stack(size, waiting, most)
            waiting = []
        size = coming
        waiting.append(examples)
        if len(waiting) == most or stops(step):
            yield _stack(size, waiting, most)
            waiting = []
    if waiting:
        yield _stack(size, waiting, most)


def _stack(size: int, batches: list[Batch], most: int) -> StackedBatches:
    def together(*rows: np.ndarray) -> np.ndarray:
        if most == 1 and batches[0].images is not None:
            return rows[0][None]  # a stream's images are large: no copy
        # Two rows at least: XLA reads a single one without a look-up, fuses more, and may round a metric otherwise.
        return np.stack([*rows, *[rows[-1]] * (max(most, 2) - len(rows))])

    return StackedBatches(size, len(batches), jax.tree.map(together, *batches))
