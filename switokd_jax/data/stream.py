"""Streaming pipeline: Grain's worker processes read, decode and crop complete batches ahead of the devices.

A batch depends on its step alone, and an image's crop on (seed, epoch, index): any number of workers, processes and
restarts gives the same bits. A worker makes complete batches, so only finished arrays cross between processes,
through shared memory.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import gc
import itertools
import os
import pickle
import re
import signal
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from absl import flags, logging

from switokd_jax.data import sampling
from switokd_jax.data.decode import ImageError
from switokd_jax.data.image_records import ImageSpec, RecordSplit, load_example
from switokd_jax.data.sampling import Batch, BatchIterator, ProcessShard
from switokd_jax.errors import UserError, one_line
from switokd_jax.stop_signals import STOP_SIGNALS, watch_parent

ReportSkipped = Callable[[Sequence[str]], None]
"""Function that is told of examples that were skipped, by a message for each."""
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
      skip_bad: if True, the next example that can be decoded takes the place of one that cannot.
      views: networks that get a crop of their own, if images are augmented; none for one crop.
    """

    split: RecordSplit
    image_spec: ImageSpec
    augment: bool
    seed: int
    batch_size: int
    process_shard: ProcessShard
    total_steps: int
    skip_bad: bool = False
    views: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.total_steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        indices = sampling.train_indices(step, self.seed, len(self.split), self.batch_size)
        epoch = step // sampling.steps_per_epoch(len(self.split), self.batch_size)
        local_indices = indices[self.process_shard.rows(len(indices))]
        seeds: list[tuple[int, ...]] = [(zlib.crc32(name.encode()),) for name in self.views if self.augment]
        seeds = seeds or [()]  # one crop for all networks
        images, labels = _allocate(len(local_indices), self.image_spec, len(seeds))
        used, skipped = local_indices.copy(), list[str]()
        for row, first in enumerate(local_indices.tolist()):
            for index in itertools.chain(range(first, len(self.split)), range(first)):
                try:
                    for crop, seed in zip(images[row], seeds, strict=True):
                        rng = np.random.default_rng((self.seed, epoch, first, *seed)) if self.augment else None
                        crop[...], labels[row] = load_example(self.split, index, self.image_spec, rng)
                except ImageError as error:
                    if not self.skip_bad:
                        raise
                    skipped.append(str(error))
                    continue
                used[row] = index
                break
            else:
                raise UserError(f"{skipped[-1]}; none of the {len(self.split)} training images can be used")
        images = images if self.views and self.augment else images[:, 0]
        return {"size": len(indices), "skipped": skipped, "index": used, "images": images, "labels": labels}


@dataclasses.dataclass(frozen=True, eq=False)
class EvalBatchSource:
    """Padded and masked evaluation batches by step: a random-access source for Grain.

    Attributes:
      split: examples to read.
      image_spec: shape of the images.
      batch_size: size of the global batch.
      process_shard: rows of this process.
      repeats: how many times the batches cover the split.
      skip_bad: if True, an example that cannot be decoded has mask 0.
    """

    split: RecordSplit
    image_spec: ImageSpec
    batch_size: int
    process_shard: ProcessShard
    repeats: int = 1
    skip_bad: bool = False

    def __len__(self) -> int:
        return self.repeats * sampling.steps_per_epoch(len(self.split), self.batch_size)

    def __getitem__(self, step: int) -> dict[str, Any]:
        step %= sampling.steps_per_epoch(len(self.split), self.batch_size)
        indices, mask = sampling.eval_indices(step, len(self.split), self.batch_size)
        rows = self.process_shard.rows(self.batch_size)
        local_indices = indices[rows]
        images, labels = _allocate(len(local_indices), self.image_spec, 1)
        images = images[:, 0]
        local_mask, skipped = mask[rows].copy(), list[str]()
        for row, index in enumerate(local_indices):
            try:
                images[row], labels[row] = load_example(self.split, int(index), self.image_spec, None)
            except ImageError as error:
                if not self.skip_bad:
                    raise
                images[row], labels[row], local_mask[row] = 0, 0, 0.0
                skipped.append(str(error))
        return {
            "size": self.batch_size,
            "skipped": skipped,
            "index": local_indices,
            "mask": local_mask,
            "images": images,
            "labels": labels,
        }


def log_skipped(messages: Sequence[str]) -> None:
    """Logs a warning for each example that was skipped."""
    for message in messages:
        logging.warning("%s", message)


def iterate_batches(
    source: TrainBatchSource | EvalBatchSource,
    workers: int,
    first_step: int = 0,
    report_skipped: ReportSkipped = log_skipped,
) -> BatchIterator:
    """Yields the batches of a source from `first_step` on.

    Args:
      source: batches by step.
      workers: number of worker processes; 0 reads in a thread of this process.
      first_step: step of the first batch.
      report_skipped: called with a message for each example that was skipped, if there are any.

    Raises:
      UserError: naming an image that cannot be used.
    """
    import grain  # 0.2 s, which a run on arrays in memory can spare

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags, which a notebook has not parsed
    with _source_for_workers(source) if workers else contextlib.nullcontext(source) as records:
        dataset = grain.MapDataset.source(records)[first_step:].to_iter_dataset(
            grain.ReadOptions(0, 0) if workers else grain.ReadOptions(1, WORKER_BUFFER_SIZE)
        )
        options = grain.experimental.DatasetOptions(min_shm_size=MIN_SHARED_BYTES)
        dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
        if workers:
            multiprocessing_options = grain.MultiprocessingOptions(
                min(workers, len(source) - first_step), WORKER_BUFFER_SIZE
            )
            dataset = dataset.mp_prefetch(multiprocessing_options, functools.partial(_start_worker, os.getpid()))
            atexit.unregister(_release_shared_memory)
            atexit.register(_release_shared_memory)
        iterator = iter(dataset)
        try:
            with _signals_blocked():
                resource_tracker.ensure_running()  # to start its process, it unblocks signals in this thread
            with _signals_blocked():  # the workers start with the first batch
                batch = next(iterator, None)
            while batch is not None:
                if skipped := batch.pop("skipped"):
                    report_skipped(skipped)
                yield batch.pop("size"), Batch(**batch)
                batch = next(iterator, None)
        except OSError as error:
            raise UserError(f"the stream of images cannot be read ({one_line(error)})") from error
        except RuntimeError as error:
            if ended := re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error)):
                raise UserError(_worker_end(int(ended[1]))) from None
            raise
        finally:
            iterator.close()


def _worker_end(status: int) -> str:
    reasons = {
        -signal.SIGBUS: "/dev/shm is full: lower config.data.workers or config.batch_size, or enlarge it "
        "(docker run --shm-size)",
        -signal.SIGKILL: "it was killed, perhaps for want of memory: lower config.data.workers or config.batch_size",
    }
    reason = reasons.get(status, "its own message stands above")
    return f"a worker process that reads images has ended with status {status}; {reason}"


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A source of batches that is pickled in a file, for worker processes.

    Python hands a new process its arguments through a pipe, and waits forever if the process dies before it has read
    more of them than the pipe holds. The path of a file always fits.

    Attributes:
      path: the file.
      length: number of batches.
    """

    path: str
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: int) -> dict[str, Any]:
        return _load_source(self.path)[step]


@contextlib.contextmanager
def _source_for_workers(source: TrainBatchSource | EvalBatchSource) -> Iterator[SourceFile]:
    with tempfile.TemporaryDirectory(prefix="switokd_jax_") as folder:
        path = Path(folder) / "source.pickle"
        path.write_bytes(cloudpickle.dumps(source))
        yield SourceFile(str(path), len(source))


@functools.lru_cache(maxsize=1)
def _load_source(path: str) -> TrainBatchSource | EvalBatchSource:
    """Loads a source, once in a worker process."""
    source: TrainBatchSource | EvalBatchSource = pickle.loads(Path(path).read_bytes())
    return source


def _release_shared_memory() -> None:
    """Releases Grain's shared-memory buffers before Python's resource tracker warns about a leak.

    A reference cycle in Grain's iterators and CPU arrays that alias the buffers keep them alive, and Grain unlinks them
    in a background thread.
    """
    gc.collect()
    time.sleep(0.1)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks stop signals in this thread, and in the threads and processes that it starts within the context.

    A worker keeps its signals blocked for life: a signal to the whole process group, as a terminal and Slurm send it,
    must not end workers, because the main process decides when to stop. Other threads still receive the signal for us.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(parent: int, worker: int, workers: int) -> None:
    """Prepares a worker process: it ends within a second of its parent, for which it would else wait forever."""
    del worker, workers
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    watch_parent(parent, lambda: os._exit(1))


def _allocate(num_examples: int, image_spec: ImageSpec, crops: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images [n, crops, height, width, channels] uint8 and labels [n] int32 to be filled."""
    return np.empty((num_examples, crops, *image_spec.shape), np.uint8), np.empty(num_examples, np.int32)
