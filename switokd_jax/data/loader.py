"""Loader of one split, through either pipeline, and the inputs that the train step makes of a batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from switokd_jax.config import DataConfig
from switokd_jax.data import resident, stream
from switokd_jax.data.dataset import Split
from switokd_jax.data.image_records import ImageSpec, RecordSplit
from switokd_jax.data.normalization import Preprocess
from switokd_jax.data.resident import DeviceDataset, gather_batch
from switokd_jax.data.sampling import (
    Batch,
    BatchIterator,
    ProcessShard,
    class_pair_order,
    epoch_order,
    steps_per_epoch,
)
from switokd_jax.data.transforms import apply_transforms, example_keys, get_transforms, normalize
from switokd_jax.state import fold_in_name


@dataclasses.dataclass(frozen=True, eq=False)
class Loader:
    """Batches of one split. Made by `make_loader`.

    Attributes:
      split: examples, in memory (resident pipeline) or encoded on disk (streaming pipeline).
      image_spec: shape of the images.
      spec: the config's `data` block.
      seed: seed of the order and of the host's crops.
      batch_size: size of the global batch.
      process_shard: rows of this process.
      device_data: the split for the device memory; None for a stream, whose batches bring their images along.
      report_skipped: called with messages about examples of a stream that were skipped.
      views: networks that see crops of their own in training; none if all see the same.
    """

    split: Split | RecordSplit
    image_spec: ImageSpec
    spec: DataConfig
    seed: int
    batch_size: int
    process_shard: ProcessShard
    device_data: DeviceDataset | None
    report_skipped: stream.ReportSkipped = stream.log_skipped
    views: tuple[str, ...] = ()

    @property
    def num_examples(self) -> int:
        """Number of examples in the split."""
        return len(self.split)

    def train_batches(self, first_step: int, total_steps: int) -> BatchIterator:
        """Returns the training batches of global steps `first_step` to `total_steps` - 1 (from 0)."""
        if isinstance(self.split, Split):
            in_pairs = self.spec.sampler == "class_pairs"
            order = class_pair_order(self.split.labels) if in_pairs else epoch_order
            return resident.train_batches(
                len(self.split), self.seed, self.batch_size, self.process_shard, first_step, total_steps, order
            )
        source = stream.TrainBatchSource(
            split=self.split,
            image_spec=self.image_spec,
            augment=self.spec.augment and self.image_spec.resized,
            seed=self.seed,
            batch_size=self.batch_size,
            process_shard=self.process_shard,
            total_steps=total_steps,
            skip_bad=self._skip_bad,
            views=self.views,
        )
        return stream.iterate_batches(source, self.spec.workers, first_step, self.report_skipped)

    @property
    def eval_steps(self) -> int:
        """Number of batches that cover the split once."""
        return steps_per_epoch(len(self.split), self.batch_size)

    def eval_batches(self, repeats: int = 1) -> BatchIterator:
        """Returns padded and masked batches that cover the split so many times, without augmentation."""
        if isinstance(self.split, Split):
            return resident.eval_batches(len(self.split), self.batch_size, self.process_shard, repeats)
        source = stream.EvalBatchSource(
            self.split, self.image_spec, self.batch_size, self.process_shard, repeats, self._skip_bad
        )
        return stream.iterate_batches(source, self.spec.workers, report_skipped=self.report_skipped)

    @property
    def _skip_bad(self) -> bool:
        return self.spec.on_bad_image == "skip"


def make_loader(
    split: Split | RecordSplit,
    image_spec: ImageSpec,
    spec: DataConfig,
    seed: int,
    batch_size: int,
    process_shard: ProcessShard,
) -> Loader:
    """Makes the loader of a split; see the attributes of `Loader`.

    Its `device_data` are NumPy arrays: the caller places them on the devices.
    """
    device_data = DeviceDataset(split.images, split.labels) if isinstance(split, Split) else None
    return Loader(split, image_spec, spec, seed, batch_size, process_shard, device_data)


def train_inputs(
    preprocess: Preprocess, spec: DataConfig, *, steps_per_epoch: int, dtype: Any, views: Sequence[str] = ()
) -> Callable[[DeviceDataset | None, Batch, jax.Array, jax.Array], Batch]:
    """Makes the function that turns a batch into augmented, normalized inputs inside the train step.

    Args:
      preprocess: constants of the data set.
      spec: the config's `data` block; its `transforms` are applied if `augment` is True.
      steps_per_epoch: global steps of an epoch, to know the epoch of a step.
      dtype: dtype of the images.
      views: networks that see crops and transforms of their own; none if all see the same.

    Returns:
      A function (device_data, batch, rng, step) -> batch, where rng is the run's key and step the global step from 0.
      The images of the result are [batch, height, width, channels] of `dtype`, by network if `views` names some;
      labels are [batch] int32.

    Raises:
      UserError: if a transform is unknown, or, when the function is traced, changes the shape or dtype.
    """
    transforms = get_transforms(spec.transforms) if spec.augment else {}

    def augment(images: jax.Array, keys: jax.Array) -> jax.Array:
        return normalize(apply_transforms(transforms, images, keys, preprocess), preprocess, dtype)

    def inputs(device_data: DeviceDataset | None, batch: Batch, rng: jax.Array, step: jax.Array) -> Batch:
        images, labels = gather_batch(device_data, batch)
        keys = example_keys(rng, step // steps_per_epoch, batch.index)
        if not views:
            return dataclasses.replace(batch, images=augment(images, keys), labels=labels)
        by_network = {}
        for position, network in enumerate(views):
            own_images = images if images.ndim == 4 else images[:, position]  # a stream's crops, one for each network
            by_network[network] = augment(own_images, jax.vmap(functools.partial(fold_in_name, name=network))(keys))
        return dataclasses.replace(batch, images=None, labels=labels, views=by_network)

    return inputs
