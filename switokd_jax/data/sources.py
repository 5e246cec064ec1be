"""Data sets as uint8 arrays: scikit-learn's digits, and any TFDS image-classification set by name."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from switokd_jax.fields import ConfigError, nearest

CHOICE_SEED = 0  # of the digits' test fifth and of `train_examples`, which are the same in every run


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How uint8 pixels become inputs: (x / scale - mean) / std, after a random crop and flip in training.

    Attributes:
      mean: per channel, of x / scale.
      std: per channel, of x / scale.
      scale: the highest pixel value.
      padding: black pixels around the image that a random crop of its own size may take in.
      flip: whether to mirror half of the images.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    padding: int = 4
    flip: bool = True


# CIFAR's are the public SwitOKD code's; other sets are measured on their training images.
KNOWN: dict[str, Preprocess] = {
    "digits": Preprocess((0.0,), (1.0,), scale=16.0, padding=1, flip=False),
    "cifar10": Preprocess((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "cifar100": Preprocess((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
}
# Named in the message for an unknown set; TFDS has many more.
COMMON = ("digits", "cifar10", "cifar100", "fashion_mnist", "mnist", "svhn_cropped")
# A mirrored digit or letter is another one, or none.
NOT_MIRRORED = ("mnist", "emnist", "kmnist", "binarized_mnist", "svhn_cropped", "omniglot", "cmaterdb")


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
    """A data set in memory; `validation` may be empty."""

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split
    preprocess: Preprocess

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


def load(name: str, data_dir: str, validation_fraction: float, seed: int, train_examples: int = 0) -> Dataset:
    """Loads a data set and holds out a stratified share of its training split.

    Args:
      name: 'digits' or a TFDS name.
      data_dir: TFDS's folder; '' for its default.
      validation_fraction: 0 for no validation split.
      seed: decides which examples are held out.
      train_examples: so many of the training examples, stratified and the same in every run; 0 for all.

    Raises:
      ConfigError: if there is no such set, it cannot be read or fetched, or its images do not fit.
    """
    train, test, num_classes = _digits() if name == "digits" else _tfds(name, data_dir)
    preprocess = KNOWN.get(name) or measured(train.images, flip=name.split(":")[0] not in NOT_MIRRORED)
    if train_examples > len(train):
        raise ConfigError(
            f"config.data.train_examples is {train_examples}, and {name!r} has {len(train)} training images"
        )
    if train_examples:
        train = train.take(stratified(train.labels, train_examples / len(train), CHOICE_SEED))
    held_out = stratified(train.labels, validation_fraction, seed)
    return Dataset(name, num_classes, train.take(~held_out), train.take(held_out), test, preprocess)


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


def measured(images: np.ndarray, *, flip: bool) -> Preprocess:
    """Mean and standard deviation per channel, measured on uint8 images [n, h, w, c]; padding h / 8."""
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])])
    values = np.arange(256) / 255.0
    mean = counts @ values / counts.sum(axis=1)
    std = np.sqrt(counts @ values**2 / counts.sum(axis=1) - mean**2)
    return Preprocess(
        mean=tuple(float(m) for m in mean.round(4)),
        std=tuple(float(s) if s > 0 else 1.0 for s in std.round(4)),
        padding=max(images.shape[1] // 8, 1),
        flip=flip,
    )


def _digits() -> tuple[Split, Split, int]:
    from sklearn.datasets import load_digits  # slow to import, and only this set needs it

    raw = load_digits()
    everything = Split(raw.images[..., None].astype(np.uint8), raw.target.astype(np.int32))
    test = stratified(everything.labels, 360 / len(everything), CHOICE_SEED)
    return everything.take(~test), everything.take(test), 10


def _tfds(name: str, data_dir: str) -> tuple[Split, Split, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds  # imports TensorFlow only when it has to prepare a set

    if data_dir and not Path(data_dir).expanduser().is_dir():
        raise ConfigError(f"config.data.dir {data_dir!r} is not a folder; set it to TFDS's data_dir or to ''")
    folder = str(Path(data_dir).expanduser()) if data_dir else None
    try:
        builder = tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        raise ConfigError(f"config.data.name: no data set {name!r}; {nearest(name, COMMON)}, and all of TFDS") from None
    features, splits = builder.info.features, ("train", "test")
    if not (isinstance(features, tfds.features.FeaturesDict) and {"image", "label"} <= {*features.keys()}):
        raise ConfigError(f"config.data.name: {name!r} is not an image-classification set of TFDS")
    _prepare(builder, name, folder)
    if missing := [split for split in splits if split not in builder.info.splits]:
        raise ConfigError(f"config.data.name: {name!r} has no split {missing[0]!r}; it has {[*builder.info.splits]}")
    try:
        train, test = (_read(builder.as_data_source(split=split), f"{name} {split}") for split in splits)
    except NotImplementedError:
        raise ConfigError(
            f"{builder.data_dir} is not in a format with random access; prepare it again: {_command(name, folder)}"
        ) from None
    return train, test, int(features["label"].num_classes)


def _prepare(builder: Any, name: str, folder: str | None) -> None:
    if Path(builder.data_dir).is_dir():
        return
    try:
        _check_network(builder)
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # of the network, the disk or the archive: TFDS has no common type for them
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(
            f"data set {name!r} is not prepared and could not be fetched ({type(error).__name__}: {reason}); "
            f"where there is network, run: {_command(name, folder)}"
        ) from error


def _check_network(builder: Any) -> None:
    """Asks once for the first file to download: TFDS itself tries for minutes before it gives up."""
    if any((parent / "downloads").is_dir() for parent in [*Path(builder.data_dir).parents][1:3]):
        return  # it may lie there already
    for url in [*(builder.url_infos or ())][:1]:
        if url.startswith("http"):
            try:
                urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20).close()
            except urllib.error.HTTPError:
                return  # somebody answered; some servers refuse HEAD


def _command(name: str, folder: str | None) -> str:
    where = f" --data_dir={folder}" if folder else ""
    return f"tfds build {name} --file_format=array_record{where}"


def _read(source: Any, title: str) -> Split:
    images, labels = [], []
    with _without_advice():
        for example in tqdm(source, desc=f"reading {title}", unit=" images", leave=False, delay=2.0, disable=None):
            images.append(example["image"])
            labels.append(example["label"])
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise ConfigError(f"{title}: the images have {len(shapes)} sizes; config.data.pipeline 'resident' needs one")
    return Split(np.stack(images), np.asarray(labels, np.int32))


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """TFDS recommends OpenCV in a warning; Pillow decodes a whole CIFAR in seconds."""

    def keep(record: logging.LogRecord) -> bool:
        return "OpenCV" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
