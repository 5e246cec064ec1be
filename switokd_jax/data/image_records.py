"""Splits whose images stay encoded on disk until a batch needs them, and the decoding of one image."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from switokd_jax.data.decode import ImageError, decode, to_pixels
from switokd_jax.data.transforms import centre_crop, random_resized_crop
from switokd_jax.errors import UserError


class Records(Protocol):
    """Random access to encoded examples. Worker processes get a pickled copy, so open files only when indexed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, int]:
        """Returns the encoded image, or its uint8 pixels [height, width, channels], and its label."""
        ...

    def describe(self, index: int) -> str:
        """Names an example for error messages: its file or its index."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayRecords:
    """Images in memory as records.

    Attributes:
      images: [n, height, width, channels] uint8.
      labels: [n] int32.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])

    def describe(self, index: int) -> str:
        """Names an example by its index."""
        return f"image {index}"


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSplit:
    """Examples of a split, as a selection of records.

    Attributes:
      records: examples of this split, perhaps among others.
      record_indices: [n] int64, the index of each example in `records`.
      labels: [n] int32, or None if a label is known only once its record is read.
      num_classes: each label is checked to be below it when its record is read; None for no check.
    """

    records: Records
    record_indices: np.ndarray
    labels: np.ndarray | None
    num_classes: int | None = None

    def __len__(self) -> int:
        return len(self.record_indices)

    def take(self, selection: np.ndarray) -> RecordSplit:
        """Returns the split of the examples with these indices, or of this boolean mask."""
        labels = None if self.labels is None else self.labels[selection]
        return dataclasses.replace(self, record_indices=self.record_indices[selection], labels=labels)


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """Format of a data set's images as networks see them.

    Attributes:
      shape: (height, width, channels).
      resized: if True, images of any size are brought to `shape`: by random resized crops in training, by a centre
        crop otherwise. If False, every image has that shape already.
      flip: whether half of the random resized crops are mirrored.
    """

    shape: tuple[int, int, int]
    resized: bool
    flip: bool = True


def load_example(
    split: RecordSplit, index: int, image_spec: ImageSpec, rng: np.random.Generator | None
) -> tuple[np.ndarray, int]:
    """Reads, decodes and crops one example.

    Args:
      split: where it is stored.
      index: its index in the split.
      image_spec: shape of the result.
      rng: source of the random resized crop and flip; None for the centre crop.

    Returns:
      [height, width, channels] uint8 pixels, and the label.

    Raises:
      ImageError: naming the image, if it cannot be decoded.
      UserError: naming the image, if it has another size, or its label is not one of a class.
    """
    record_index = int(split.record_indices[index])
    name = split.records.describe(record_index)
    encoded, label = split.records[record_index]
    if split.num_classes is not None:
        check_label(label, split.num_classes, name)
    height, width, channels = image_spec.shape
    image = decode(encoded, channels, name)
    if image_spec.resized:
        image = centre_crop(image, height) if rng is None else random_resized_crop(image, height, rng, image_spec.flip)
    pixels = to_pixels(image)
    if pixels.shape != image_spec.shape:
        raise UserError(
            f"{name} has {image.width}x{image.height} pixels, the first image {width}x{height}; "
            "set config.data.image_size to bring all to one size"
        )
    return pixels, label


def check_label(label: int, num_classes: int, name: str) -> None:
    """Checks the label of an example.

    Raises:
      UserError: naming the example, if its label is not one of a class.
    """
    if not 0 <= label < num_classes:
        raise UserError(f"{name} has label {label}, and labels are 0 to {num_classes - 1}; correct or remove it")


def first_image_size(records: Records, *, skip_bad: bool) -> tuple[int, int]:
    """Returns (height, width) of the first image that can be decoded.

    Raises:
      ImageError: if none can, or, without `skip_bad`, the first one cannot.
    """
    for index in range(len(records)):
        try:
            image = decode(records[index][0], None, records.describe(index))
        except ImageError:
            if not skip_bad or index == len(records) - 1:
                raise
            continue
        return image.height, image.width
    raise UserError("the training split is empty")
