"""Streaming pipeline: Grain's worker processes read, decode and crop complete batches ahead of the devices.

A batch depends on its step alone, and an image's crop on (seed, epoch, index): any number of workers, processes and
restarts gives the same bits. A worker makes complete batches, so only finished arrays cross between processes,
through shared memory.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import gc
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from switokd_jax.data import sampling
from switokd_jax.data.image_records import ImageSpec, RecordSplit, load_example
from switokd_jax.data.sampling import Batch, BatchIterator, ProcessShard

WORKER_BUFFER_SIZE = 2  # finished batches that each worker holds ready
MIN_SHARED_BYTES = 2**16  # smaller arrays cross between processes by pickling


@dataclasses.dataclass(frozen=True, eq=False)
class TrainBatchSource:
    """Training batches by global step: a random-access source for Grain.

    Attributes:
      split: examples to read.
      image_spec: shape of the images.
      augment: if True, images get a random resized crop and flip.
      seed: seed of the order and of the crops.
      batch_size: size of the global batch.
      process_shard: rows of this process.
      total_steps: steps of the run.
    """

    split: RecordSplit
    image_spec: ImageSpec
    augment: bool
    seed: int
    batch_size: int
    process_shard: ProcessShard
    total_steps: int

    def __len__(self) -> int:
        return self.total_steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        indices = sampling.train_indices(step, self.seed, len(self.split), self.batch_size)
        epoch = step // sampling.steps_per_epoch(len(self.split), self.batch_size)
        local_indices = indices[self.process_shard.rows(len(indices))]
        rngs = [np.random.default_rng((self.seed, epoch, i)) if self.augment else None for i in local_indices]
        examples = _load_examples(self.split, local_indices, self.image_spec, rngs)
        return {"size": len(indices), "index": local_indices, **examples}


@dataclasses.dataclass(frozen=True, eq=False)
class EvalBatchSource:
    """Padded and masked evaluation batches by step: a random-access source for Grain.

    Attributes:
      split: examples to read.
      image_spec: shape of the images.
      batch_size: size of the global batch.
      process_shard: rows of this process.
    """

    split: RecordSplit
    image_spec: ImageSpec
    batch_size: int
    process_shard: ProcessShard

    def __len__(self) -> int:
        return sampling.steps_per_epoch(len(self.split), self.batch_size)

    def __getitem__(self, step: int) -> dict[str, Any]:
        indices, mask = sampling.eval_indices(step, len(self.split), self.batch_size)
        rows = self.process_shard.rows(self.batch_size)
        local_indices = indices[rows]
        examples = _load_examples(self.split, local_indices, self.image_spec, [None] * len(local_indices))
        return {"size": self.batch_size, "index": local_indices, "mask": mask[rows], **examples}


def iterate_batches(source: TrainBatchSource | EvalBatchSource, workers: int, first_step: int = 0) -> BatchIterator:
    """Yields the batches of a source from `first_step` on.

    Args:
      source: batches by step.
      workers: number of worker processes; 0 reads in a thread of this process.
      first_step: step of the first batch.

    Raises:
      UserError: naming an image that cannot be used.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags, which a notebook has not parsed
    num_remaining = len(source) - first_step
    dataset = grain.MapDataset.source(source)[first_step:].to_iter_dataset(
        grain.ReadOptions(0, 0) if workers else grain.ReadOptions(1, WORKER_BUFFER_SIZE)
    )
    options = grain.experimental.DatasetOptions(min_shm_size=MIN_SHARED_BYTES)
    dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
    if workers:
        multiprocessing_options = grain.MultiprocessingOptions(min(workers, num_remaining), WORKER_BUFFER_SIZE)
        dataset = dataset.mp_prefetch(multiprocessing_options, functools.partial(_start_worker, os.getpid()))
        atexit.unregister(_release_shared_memory)
        atexit.register(_release_shared_memory)
    iterator = iter(dataset)
    try:
        for batch in iterator:
            yield batch.pop("size"), Batch(**batch)
    finally:
        iterator.close()


def _release_shared_memory() -> None:
    """Releases Grain's shared-memory buffers before Python's resource tracker warns about a leak.

    A reference cycle in Grain's iterators and CPU arrays that alias the buffers keep them alive, and Grain unlinks them
    in a background thread.
    """
    gc.collect()
    time.sleep(0.1)


def _start_worker(parent: int, worker: int, workers: int) -> None:
    """Prepares a worker process: it ignores stop signals and ends within a second of its parent.

    The main process decides when to stop. Without the watch, a worker of Grain's waits forever for a killed parent.
    """
    del worker, workers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _load_examples(
    split: RecordSplit, indices: np.ndarray, image_spec: ImageSpec, rngs: Sequence[np.random.Generator | None]
) -> dict[str, np.ndarray]:
    """Loads images [n, height, width, channels] uint8 and labels [n] int32 of the examples with these indices."""
    images = np.empty((len(indices), *image_spec.shape), np.uint8)
    labels = np.empty(len(indices), np.int32)
    for row, (index, rng) in enumerate(zip(indices, rngs, strict=True)):
        images[row], labels[row] = load_example(split, int(index), image_spec, rng)
    return {"images": images, "labels": labels}
