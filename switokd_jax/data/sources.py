"""Data sets as uint8 arrays: scikit-learn's digits, TFDS's image-classification sets, a folder of images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from switokd_jax.data.folder import read_folder
from switokd_jax.data.prepared import read_tfds
from switokd_jax.fields import ConfigError

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


# CIFAR's and Tiny-ImageNet's are the public SwitOKD code's; other sets are measured on their training images.
KNOWN: dict[str, Preprocess] = {
    "digits": Preprocess((0.0,), (1.0,), scale=16.0, padding=1, flip=False),
    "cifar10": Preprocess((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "cifar100": Preprocess((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
    "tiny_imagenet_200": Preprocess((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}
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
      name: 'digits', 'folder' or a TFDS name.
      data_dir: TFDS's folder, '' for its default; for 'folder' the one with train/CLASS and test/CLASS.
      validation_fraction: 0 for no validation split.
      seed: decides which examples are held out.
      train_examples: so many of the training examples, stratified and the same in every run; 0 for all.

    Raises:
      ConfigError: if there is no such set, it cannot be read or fetched, or its images do not fit.
    """
    readers = {"digits": _digits, "folder": lambda: _folder(data_dir)}
    train, test, num_classes = readers.get(name, lambda: _tfds(name, data_dir))()
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


def _folder(data_dir: str) -> tuple[Split, Split, int]:
    if not data_dir:
        raise ConfigError("config.data.dir is empty; data.name 'folder' reads DIR/train/CLASS and DIR/test/CLASS")
    train, test, classes = read_folder(Path(data_dir).expanduser())
    return Split(*train), Split(*test), len(classes)


def _tfds(name: str, data_dir: str) -> tuple[Split, Split, int]:
    train, test, num_classes = read_tfds(name, data_dir)
    return Split(*train), Split(*test), num_classes
