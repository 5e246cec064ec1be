"""Data sets: scikit-learn's digits, TFDS's image-classification sets, a folder of images; in memory or encoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from switokd_jax.config import DataConfig
from switokd_jax.data.folder import find_files, read_files
from switokd_jax.data.image_records import ArrayRecords, ImageSpec, Records, RecordSplit, size_of
from switokd_jax.data.normalization import IMAGENET, NO_FLIP, PUBLISHED, Preprocess, measured
from switokd_jax.data.tfds_source import open_tfds
from switokd_jax.errors import UserError

CHOICE_SEED = 0  # of the digits' test fifth and of `train_examples`, which are the same in every run


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """images: [n, height, width, channels] uint8; labels: [n] int32."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """The examples of these indices."""
        return Split(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set; `validation` may be empty.

    Attributes:
      name: as in the config.
      classes: the names of its labels.
      image_spec: (height, width, channels) of its images as networks see them, and how they get there.
      train: in memory, or encoded where the pipeline is 'stream'; so are
      validation: held out of the training split, and
      test: the split that is reported.
      preprocess: how pixels become inputs.
    """

    name: str
    classes: tuple[str, ...]
    image_spec: ImageSpec
    train: Split | RecordSplit
    validation: Split | RecordSplit
    test: Split | RecordSplit
    preprocess: Preprocess

    @property
    def info(self) -> DatasetInfo:
        """What a plan is made of."""
        return DatasetInfo(
            len(self.classes), self.image_spec.shape, len(self.train), self.preprocess, self.train.labels
        )


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetInfo:
    """What a run has to know of a data set beforehand.

    Attributes:
      num_classes: of its labels.
      image_shape: (height, width, channels).
      train_examples: how many.
      preprocess: how pixels become inputs.
      labels: [train_examples] int32, or None where only reading the images would tell.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    train_examples: int
    preprocess: Preprocess
    labels: np.ndarray | None = None


def load_dataset(spec: DataConfig, seed: int) -> Dataset:
    """Loads a data set, or finds its files where it is streamed, and holds out a share of its training split.

    The share is stratified where the labels are known: everywhere but in streams of TFDS.

    Args:
      spec: the config's block.
      seed: decides which examples are held out.

    Raises:
      ConfigError: if there is no such set, it cannot be read or fetched, or its images do not fit.
    """
    if spec.image_size and spec.pipeline != "stream":
        raise UserError(
            f"config.data.image_size is {spec.image_size}, and config.data.pipeline 'resident' keeps images as they "
            "are; set it to 'stream'"
        )
    found = SOURCES.get(spec.name, _tfds)(spec)
    train = found.train
    preprocess = PUBLISHED.get(spec.name) or (
        measured(train.images, flip=spec.name.split(":")[0] not in NO_FLIP)
        if isinstance(train, Split)
        else dataclasses.replace(IMAGENET, padding=found.image_spec.shape[0] // 8)
    )
    if spec.train_examples > len(train):
        raise UserError(
            f"config.data.train_examples is {spec.train_examples}, and {spec.name!r} has {len(train)} training images"
        )
    if spec.train_examples:
        train = train.take(_part(train, spec.train_examples / len(train), CHOICE_SEED))
    held_out = _part(train, spec.validation_fraction, seed)
    if spec.validation_fraction and not 0 < held_out.sum() < len(train):
        raise UserError(
            f"config.data.validation_fraction is {spec.validation_fraction}, which is {held_out.sum()} of {len(train)} "
            "training images; hold out some and leave some, or set it to 0"
        )
    return Dataset(
        name=spec.name,
        classes=found.classes,
        image_spec=found.image_spec,
        train=train.take(~held_out) if held_out.any() else train,  # copies all images
        validation=train.take(held_out),
        test=found.test,
        preprocess=dataclasses.replace(preprocess, padding=0, flip=False) if found.image_spec.resized else preprocess,
    )


def _part(split: Split | RecordSplit, fraction: float, seed: int) -> np.ndarray:
    """A mask of `stratified`; of one class for all where the labels are not known."""
    labels = np.zeros(len(split), np.int32) if split.labels is None else split.labels
    return stratified(labels, fraction, seed)


def stratified(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """A boolean mask [n] of `round(fraction * n)` examples, each class in proportion, fixed by the seed."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), bool)
    wanted = round(fraction * len(labels))
    # Examples in random order, each with its rank within its class: taking the lowest relative ranks first
    # gives every class its share, and exactly the wanted number in all.
    order = rng.permutation(len(labels))
    sizes = np.bincount(labels)
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = (np.arange(len(members)) + rng.random()) / sizes[label]
    mask[np.argsort(rank, kind="stable")[:wanted]] = True
    return mask


class SourceData(NamedTuple):
    """What a source has of a data set.

    Attributes:
      train: whole.
      test: whole.
      classes: the names of the labels.
      image_spec: what the images are.
    """

    train: Split | RecordSplit
    test: Split | RecordSplit
    classes: tuple[str, ...]
    image_spec: ImageSpec


def in_memory(train: Split, test: Split, classes: Sequence[str]) -> SourceData:
    """A data set whose images are arrays."""
    height, width, channels = train.images.shape[1:]
    return SourceData(train, test, tuple(classes), ImageSpec((height, width, channels), resized=False))


def _streamed(
    train: Records,
    test: Records,
    labels: Sequence[np.ndarray | None],
    classes: Sequence[str],
    channels: int,
    spec: DataConfig,
) -> SourceData:
    splits = [
        RecordSplit(records, np.arange(len(records)), known)
        for records, known in zip((train, test), labels, strict=True)
    ]
    size = spec.image_size
    height, width = (size, size) if size else size_of(train[0][0])
    return SourceData(splits[0], splits[1], tuple(classes), ImageSpec((height, width, channels), resized=size > 0))


def _digits(spec: DataConfig) -> SourceData:
    """scikit-learn's digits, 8x8 pixels; no download."""
    from sklearn.datasets import load_digits  # slow to import, and only this set needs it

    raw = load_digits()
    everything = Split(raw.images[..., None].astype(np.uint8), raw.target.astype(np.int32))
    chosen = stratified(everything.labels, 360 / len(everything), CHOICE_SEED)
    train, test = everything.take(~chosen), everything.take(chosen)
    classes = [*map(str, raw.target_names)]
    if spec.pipeline == "resident":
        return in_memory(train, test, classes)
    first, second = (ArrayRecords(split.images, split.labels) for split in (train, test))
    return _streamed(first, second, [train.labels, test.labels], classes, 1, spec)


def _folder(spec: DataConfig) -> SourceData:
    """Images in DIR/train/CLASS and DIR/test/CLASS; DIR is config.data.dir."""
    if not spec.dir:
        raise UserError("config.data.dir is empty; data.name 'folder' reads DIR/train/CLASS and DIR/test/CLASS")
    train, test, classes = find_files(Path(spec.dir).expanduser())
    if spec.pipeline == "stream":
        return _streamed(train, test, [train.labels, test.labels], classes, 3, spec)
    images = read_files(train, test)
    return in_memory(Split(images[0], train.labels), Split(images[1], test.labels), classes)


def _tfds(spec: DataConfig) -> SourceData:
    prepared = open_tfds(spec.name, spec.dir)
    splits = ("train", prepared.test_split)
    if spec.pipeline == "stream":
        train, test = (prepared.records(split) for split in splits)
        return _streamed(train, test, [None, None], prepared.classes, prepared.shape[2], spec)
    arrays = [Split(*prepared.arrays(split)) for split in splits]
    return in_memory(arrays[0], arrays[1], prepared.classes)


# By name; what is not here is a set of TFDS. A source takes the config's block of the data.
SOURCES: dict[str, Callable[[DataConfig], SourceData]] = {"digits": _digits, "folder": _folder}
