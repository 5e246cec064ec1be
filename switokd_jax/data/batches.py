"""Which examples make a batch: the order of an epoch, padding for evaluation, the share of a process.

A batch is known by its step alone, so the step in a checkpoint is the position of the pipeline, whatever the number
of devices, processes or workers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Generator
from typing import Any

import numpy as np
from flax import struct


@struct.dataclass
class Examples:
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


Sized = tuple[int, Examples]
"""The size of a global batch and the part of it that this process sends."""
Reading = Generator[Sized, None, None]
"""Batches; to be closed."""


@dataclasses.dataclass(frozen=True)
class Share:
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


@functools.lru_cache(maxsize=2)  # a batch may want the order of its epoch again and again
def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order [examples] int32 of an epoch (from 0): the same for every device count and dtype."""
    order = np.random.default_rng((seed, epoch)).permutation(examples).astype(np.int32)
    order.flags.writeable = False
    return order


def training(step: int, seed: int, examples: int, batch_size: int) -> np.ndarray:
    """The examples [batch] int32 of a global step; each epoch takes every example once."""
    epoch, within = divmod(step, steps_per_epoch(examples, batch_size))
    return epoch_order(seed, epoch, examples)[within * batch_size : (within + 1) * batch_size]


def scoring(step: int, examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The examples [batch] of one step of an evaluation, and a mask that is 0 on the padding of the last one."""
    index = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int32)
    return np.minimum(index, examples - 1), (index < examples).astype(np.float32)
