"""Data sets: scikit-learn's digits, TFDS's image-classification sets, a folder of images; in memory or encoded.

To add a data set, register a source: a function of the config's `data` block that returns `SourceData`.

    SOURCES["bars"] = lambda spec: in_memory(train, test, classes)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from switokd_jax.config import DataConfig
from switokd_jax.data import folder
from switokd_jax.data.checks import check_images, check_labels
from switokd_jax.data.image_records import ArrayRecords, ImageSpec, Records, RecordSplit, first_image_size
from switokd_jax.data.normalization import PUBLISHED, Preprocess, imagenet, is_mirrored, measure, parse_constants
from switokd_jax.data.tfds_source import open_tfds
from switokd_jax.errors import UserError

SUBSET_SEED = 0  # seed of the digits' test split and of `train_examples`, which are the same in every run
DIGITS_TEST_SIZE = 360
NONE = np.arange(0)  # indices of no examples


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples in memory.

    Attributes:
      images: [n, height, width, channels] uint8.
      labels: [n] int32.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, selection: np.ndarray) -> Split:
        """Returns a copy of the examples with these indices, or of this boolean mask."""
        return Split(self.images[selection], self.labels[selection])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set on the host, split for a run. The splits are in memory, or encoded if the pipeline is 'stream'.

    Attributes:
      name: as in the config.
      classes: names of the labels.
      image_spec: shape of the images as networks see them.
      train: training split, without `validation`.
      validation: held out of the training split; may be empty.
      test: split that is reported; empty if the data set has none, and then `validation` is reported.
      preprocess: constants that turn pixels into inputs.
      skipped: a message for each image that could not be decoded and is left out.
    """

    name: str
    classes: tuple[str, ...]
    image_spec: ImageSpec
    train: Split | RecordSplit
    validation: Split | RecordSplit
    test: Split | RecordSplit
    preprocess: Preprocess
    skipped: tuple[str, ...] = ()

    @property
    def info(self) -> DatasetInfo:
        """The facts that a run is planned with."""
        return DatasetInfo(
            num_classes=len(self.classes),
            image_shape=self.image_spec.shape,
            train_examples=len(self.train),
            preprocess=self.preprocess,
            labels=self.train.labels,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetInfo:
    """Facts about a data set that a run is planned with, without its images.

    Attributes:
      num_classes: number of labels.
      image_shape: (height, width, channels).
      train_examples: number of training examples.
      preprocess: constants that turn pixels into inputs.
      labels: [train_examples] int32, or None if a label is known only once its image is read.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    train_examples: int
    preprocess: Preprocess
    labels: np.ndarray | None = None


class SourceData(NamedTuple):
    """Output of a data source.

    Attributes:
      train: full training split.
      test: split that is reported; empty if there is none.
      classes: names of the labels.
      image_spec: shape of the images as networks see them.
      skipped: a message for each image that could not be decoded and is left out.
    """

    train: Split | RecordSplit
    test: Split | RecordSplit
    classes: tuple[str, ...]
    image_spec: ImageSpec
    skipped: tuple[str, ...] = ()


Source = Callable[[DataConfig], SourceData]
"""Function of the config's `data` block that finds or makes a data set."""


def load_dataset(spec: DataConfig, seed: int) -> Dataset:
    """Loads a data set, or finds its files if it is streamed, and holds out a part of its training split.

    The part is stratified if the labels are known: everywhere but in streams of TFDS.

    Args:
      spec: the config's `data` block.
      seed: decides which examples are held out.

    Raises:
      UserError: if there is no such data set, it cannot be read or fetched, or its images do not fit.
    """
    if spec.sampler != "shuffled" and spec.pipeline == "stream":
        raise UserError(
            f"config.data.sampler is {spec.sampler!r}, and config.data.pipeline 'stream' reads labels batch by batch; "
            "set one of them to its default"
        )
    if spec.image_size and spec.pipeline != "stream":
        raise UserError(
            f"config.data.image_size is {spec.image_size}, and config.data.pipeline 'resident' keeps images as they "
            "are; set it to 'stream'"
        )
    source_data = check(SOURCES.get(spec.name, _tfds)(spec), spec.name)
    if not len(source_data.test) and not spec.validation_fraction:
        raise UserError(
            f"data set {spec.name!r} has no test split; set config.data.validation_fraction to hold out a part of train"
        )
    train, validation = _hold_out(_limit(source_data.train, spec), spec, seed)
    return Dataset(
        name=spec.name,
        classes=source_data.classes,
        image_spec=source_data.image_spec,
        train=train,
        validation=validation,
        test=source_data.test,
        preprocess=_choose_preprocess(spec, source_data),
        skipped=source_data.skipped,
    )


def check(source_data: SourceData, name: str) -> SourceData:
    """Checks what a source returned, and converts labels to int32. Labels of a stream are checked as they are read.

    Raises:
      UserError: naming the split, the first bad place and what was found.
    """
    num_classes = len(source_data.classes)

    def checked(split: Split | RecordSplit, split_name: str) -> Split | RecordSplit:
        where = f"data set {name!r}, {split_name} split"
        labels = split.labels
        if isinstance(split, RecordSplit):
            labels = None if labels is None else check_labels(labels, len(split), num_classes, where)
            return dataclasses.replace(split, labels=labels, num_classes=num_classes)
        images = check_images(split.images, where)
        if images.shape[1:] != source_data.image_spec.shape:
            raise UserError(
                f"{where}: images are {list(images.shape[1:])}, and those of the train split "
                f"{list(source_data.image_spec.shape)}; [height, width, channels] must be the same"
            )
        return Split(images, check_labels(labels, len(images), num_classes, where))

    if not len(source_data.train):
        raise UserError(f"data set {name!r}: the train split is empty")
    return source_data._replace(train=checked(source_data.train, "train"), test=checked(source_data.test, "test"))


def stratified_mask(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draws a subset of `round(fraction * n)` examples with every class in proportion.

    Args:
      labels: [n] int.
      fraction: from 0 to 1.
      seed: fixes the choice.

    Returns:
      [n] bool, True for the chosen examples.

    >>> labels = np.repeat([0, 1], [8, 4])
    >>> np.bincount(labels[stratified_mask(labels, 0.5, seed=0)])
    array([4, 2])
    """
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), bool)
    subset_size = round(fraction * len(labels))
    # Examples in random order, each with its rank within its class: taking the lowest relative ranks first
    # gives every class its share, and exactly the wanted number in all.
    order = rng.permutation(len(labels))
    class_sizes = np.bincount(labels)
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = (np.arange(len(members)) + rng.random()) / class_sizes[label]
    mask[np.argsort(rank, kind="stable")[:subset_size]] = True
    return mask


def in_memory(train: Split, test: Split, classes: Sequence[str]) -> SourceData:
    """Makes the output of a source whose images are arrays, all of one shape."""
    return SourceData(train, test, tuple(classes), ImageSpec(tuple(train.images.shape[1:]), resized=False))


def _limit(train: Split | RecordSplit, spec: DataConfig) -> Split | RecordSplit:
    """Takes the `train_examples` of the config; all if that is 0."""
    if spec.train_examples > len(train):
        raise UserError(
            f"config.data.train_examples is {spec.train_examples}, and {spec.name!r} has {len(train)} training images"
        )
    if not spec.train_examples:
        return train
    return train.take(_subset_mask(train, spec.train_examples / len(train), SUBSET_SEED))


def _hold_out(
    train: Split | RecordSplit, spec: DataConfig, seed: int
) -> tuple[Split | RecordSplit, Split | RecordSplit]:
    """Splits off the validation examples: (training split, validation split)."""
    held_out = _subset_mask(train, spec.validation_fraction, seed)
    if spec.validation_fraction and not 0 < held_out.sum() < len(train):
        raise UserError(
            f"config.data.validation_fraction is {spec.validation_fraction}, which is {held_out.sum()} of {len(train)} "
            "training images; hold out some and leave some, or set it to 0"
        )
    # An in-memory `take` copies all images.
    return train.take(~held_out) if held_out.any() else train, train.take(held_out)


def _subset_mask(split: Split | RecordSplit, fraction: float, seed: int) -> np.ndarray:
    """Draws a `stratified_mask`; unknown labels count as one class."""
    labels = np.zeros(len(split), np.int32) if split.labels is None else split.labels
    return stratified_mask(labels, fraction, seed)


def _choose_preprocess(spec: DataConfig, source_data: SourceData) -> Preprocess:
    """Returns published constants, or measured ones, or ImageNet's for a stream of unknown statistics.

    The config's own mean, standard deviation and flip replace those.

    Raises:
      UserError: if the config's are not a number for each channel.
    """
    if spec.name in PUBLISHED:
        preprocess = PUBLISHED[spec.name]
    elif isinstance(source_data.train, Split):
        preprocess = measure(source_data.train.images)
    else:
        height, _, channels = source_data.image_spec.shape
        preprocess = dataclasses.replace(imagenet(channels), padding=height // 8)
    preprocess = dataclasses.replace(preprocess, flip=_flip(spec))
    if spec.mean or spec.std:
        mean, std = parse_constants(spec.mean, spec.std, source_data.image_spec.shape[-1])
        preprocess = dataclasses.replace(preprocess, mean=mean, std=std)
    # Resized images are cropped and mirrored when they are decoded, not again in the step.
    return dataclasses.replace(preprocess, padding=0, flip=False) if source_data.image_spec.resized else preprocess


def _flip(spec: DataConfig) -> bool:
    return is_mirrored(spec.name) if spec.flip == "auto" else spec.flip == "on"


def _streamed(
    train: RecordSplit, test: RecordSplit, classes: Sequence[str], channels: int, spec: DataConfig
) -> SourceData:
    """Makes the output of a source whose images are encoded."""
    side = spec.image_size
    skip_bad = spec.on_bad_image == "skip"
    height, width = (side, side) if side else first_image_size(train.records, skip_bad=skip_bad)
    return SourceData(train, test, tuple(classes), ImageSpec((height, width, channels), side > 0, _flip(spec)))


def all_records(records: Records, labels: np.ndarray | None) -> RecordSplit:
    """Returns a split of all records; `labels` as in `RecordSplit`."""
    return RecordSplit(records, np.arange(len(records)), labels)


def _digits(spec: DataConfig) -> SourceData:
    """Returns scikit-learn's digits, 8x8 pixels in grey levels 0 to 16; needs no download."""
    from sklearn.datasets import load_digits  # slow to import, and only this data set needs it

    raw = load_digits()
    digits = Split(raw.images[..., None].astype(np.uint8), raw.target.astype(np.int32))
    test_mask = stratified_mask(digits.labels, DIGITS_TEST_SIZE / len(digits), SUBSET_SEED)
    train, test = digits.take(~test_mask), digits.take(test_mask)
    classes = [*map(str, raw.target_names)]
    if spec.pipeline == "resident":
        return in_memory(train, test, classes)
    train_records, test_records = (
        all_records(ArrayRecords(split.images, split.labels), split.labels) for split in (train, test)
    )
    return _streamed(train_records, test_records, classes, 1, spec)


def _folder(spec: DataConfig) -> SourceData:
    """Reads images in DIR/train/CLASS and DIR/test/CLASS; DIR is config.data.dir."""
    if not spec.dir:
        raise UserError("config.data.dir is empty; data.name 'folder' reads DIR/train/CLASS and DIR/test/CLASS")
    root = Path(spec.dir).expanduser()
    train, classes = folder.find_train(root)
    test = folder.find_test(root, spec.test_split, classes, required=not spec.validation_fraction)
    if spec.pipeline == "stream":
        train_records, test_records = (all_records(files, files.labels) for files in (train, test))
        return _streamed(train_records, test_records, classes, 3, spec)
    (train_split, test_split), skipped = folder.read_splits((train, test), skip_bad=spec.on_bad_image == "skip")
    return in_memory(Split(*train_split), Split(*test_split), classes)._replace(skipped=tuple(skipped))


def _tfds(spec: DataConfig) -> SourceData:
    """Opens an image-classification set of TFDS; it is prepared first if it has to be."""
    tfds_dataset = open_tfds(spec.name, spec.dir)
    test_name = tfds_dataset.find_test_split(spec.test_split)
    if test_name is None and not spec.validation_fraction:
        raise UserError(
            f"config.data.name: {spec.name!r} has no test split with labels, only {tfds_dataset.splits}; set "
            "config.data.test_split to one of them, or config.data.validation_fraction to hold out a part of train"
        )
    if spec.pipeline == "stream":
        train_records = all_records(tfds_dataset.records("train"), None)
        test_records = all_records(tfds_dataset.records(test_name), None) if test_name else train_records.take(NONE)
        return _streamed(train_records, test_records, tfds_dataset.classes, tfds_dataset.shape[2], spec)
    skip_bad = spec.on_bad_image == "skip"
    arrays, skipped = tfds_dataset.arrays("train", skip_bad=skip_bad)
    train = Split(*arrays)
    test = train.take(NONE)
    if test_name:
        arrays, skipped_of_test = tfds_dataset.arrays(test_name, skip_bad=skip_bad)
        test, skipped = Split(*arrays), skipped + skipped_of_test
    return in_memory(train, test, tfds_dataset.classes)._replace(skipped=tuple(skipped))


# By the name in config.data.name; any other name is a data set of TFDS. Users add theirs.
SOURCES: dict[str, Source] = {"digits": _digits, "folder": _folder}
