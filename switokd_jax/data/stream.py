"""The streaming pipeline: Grain's worker processes read, decode and crop whole batches ahead of the devices.

What a batch holds depends on its step alone, and what becomes of an image on (seed, epoch, index): any number of
workers, processes and restarts sees the same bits. A worker makes whole batches, so that nothing but finished arrays
crosses between processes, through shared memory.
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
from typing import Any

import grain
import numpy as np
from absl import flags

from switokd_jax.data import sampling
from switokd_jax.data.image_records import ImageSpec, RecordSplit, load_example
from switokd_jax.data.sampling import Batch, BatchIterator, ProcessShard

AHEAD = 2  # finished batches that wait in each worker


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """The training batches as a random-access source of Grain's, by global step."""

    split: RecordSplit
    form: ImageSpec
    augmented: bool
    seed: int
    batch_size: int
    share: ProcessShard
    total: int

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, step: int) -> dict[str, Any]:
        index = sampling.train_indices(step, self.seed, len(self.split), self.batch_size)
        epoch = step // sampling.steps_per_epoch(len(self.split), self.batch_size)
        mine = index[self.share.rows(len(index))]
        draws = [np.random.default_rng((self.seed, epoch, i)) if self.augmented else None for i in mine]
        return {"size": len(index), "index": mine, **_read(self.split, mine, self.form, draws)}


@dataclasses.dataclass(frozen=True, eq=False)
class Scoring:
    """The batches of an evaluation, padded and masked, likewise."""

    split: RecordSplit
    form: ImageSpec
    batch_size: int
    share: ProcessShard

    def __len__(self) -> int:
        return sampling.steps_per_epoch(len(self.split), self.batch_size)

    def __getitem__(self, step: int) -> dict[str, Any]:
        index, mask = sampling.eval_indices(step, len(self.split), self.batch_size)
        rows = self.share.rows(self.batch_size)
        mine = index[rows]
        seen = _read(self.split, mine, self.form, [None] * len(mine))
        return {"size": self.batch_size, "index": mine, "mask": mask[rows], **seen}


def batches_of(source: Training | Scoring, workers: int, first: int = 0) -> BatchIterator:
    """The batches from step `first` on.

    Args:
      source: what to read.
      workers: processes; 0 reads in a thread of this one.
      first: step.

    Raises:
      ConfigError: naming an image that cannot be used.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags, which a notebook has not parsed
    rest = len(source) - first
    dataset = grain.MapDataset.source(source)[first:].to_iter_dataset(
        grain.ReadOptions(0, 0) if workers else grain.ReadOptions(1, AHEAD)
    )
    dataset = grain.experimental.WithOptionsIterDataset(dataset, grain.experimental.DatasetOptions(min_shm_size=2**16))
    if workers:
        options = grain.MultiprocessingOptions(min(workers, rest), AHEAD)
        dataset = dataset.mp_prefetch(options, functools.partial(_start_worker, os.getpid()))
        atexit.unregister(_give_back)
        atexit.register(_give_back)
    iterator = iter(dataset)
    try:
        for batch in iterator:
            yield batch.pop("size"), Batch(**batch)
    finally:
        iterator.close()


def _give_back() -> None:
    """Frees the last batches' shared memory before Python's tracker reports it as forgotten.

    Grain's iterators hold them in a cycle, device arrays on CPU lean on them, and Grain frees in a thread.
    """
    gc.collect()
    time.sleep(0.1)


def _start_worker(parent: int, worker: int, workers: int) -> None:
    """Leaves being stopped to the main process, and ends within a second of it where Grain's would wait for ever."""
    del worker, workers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _read(split: RecordSplit, index: np.ndarray, form: ImageSpec, draws: list[Any]) -> dict[str, np.ndarray]:
    images, labels = np.empty((len(index), *form.shape), np.uint8), np.empty(len(index), np.int32)
    for row, (i, rng) in enumerate(zip(index, draws, strict=True)):
        images[row], labels[row] = load_example(split, int(i), form, rng)
    return {"images": images, "labels": labels}
