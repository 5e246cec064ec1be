"""A split as steps read it, through whichever pipeline: what lies on the devices, and what is sent for each batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from switokd_jax.config import DataConfig
from switokd_jax.data import resident, stream
from switokd_jax.data.dataset import Split
from switokd_jax.data.image_records import ImageSpec, RecordSplit
from switokd_jax.data.resident import DeviceDataset
from switokd_jax.data.sampling import BatchIterator, ProcessShard


@dataclasses.dataclass(frozen=True, eq=False)
class Loader:
    """Made by `make_loader`.

    Attributes:
      data: what is to be placed on the devices; None for a stream.
      size: number of examples.
      train_batches: (first global step, total steps) to the training batches in between.
      eval_batches: the batches of an evaluation.
    """

    data: DeviceDataset | None
    size: int
    train_batches: Callable[[int, int], BatchIterator]
    eval_batches: Callable[[], BatchIterator]


def make_loader(
    split: Split | RecordSplit, form: ImageSpec, spec: DataConfig, seed: int, batch_size: int, share: ProcessShard
) -> Loader:
    """The feed of a split.

    Args:
      split: of `sources.load`.
      form: what an encoded image becomes.
      spec: the config's block.
      seed: of the order and the crops.
      batch_size: of the global batch.
      share: the part of this process.
    """
    if isinstance(split, Split):
        return Loader(
            DeviceDataset(split.images, split.labels),
            len(split),
            functools.partial(resident.train_batches, len(split), seed, batch_size, share),
            functools.partial(resident.eval_batches, len(split), batch_size, share),
        )

    def training(first: int, total: int) -> BatchIterator:
        source = stream.Training(split, form, spec.augment and form.resized, seed, batch_size, share, total)
        return stream.batches_of(source, spec.workers, first)

    def scoring() -> BatchIterator:
        return stream.batches_of(stream.Scoring(split, form, batch_size, share), spec.workers)

    return Loader(None, len(split), training, scoring)
