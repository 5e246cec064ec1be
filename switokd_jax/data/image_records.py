"""Splits whose images stay encoded on disk until a batch needs them, and the decoding of one image."""

from __future__ import annotations

import dataclasses
import io
from typing import Protocol

import numpy as np
from PIL import Image

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
    """

    records: Records
    record_indices: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.record_indices)

    def take(self, selection: np.ndarray) -> RecordSplit:
        """Returns the split of the examples with these indices, or of this boolean mask."""
        labels = None if self.labels is None else self.labels[selection]
        return RecordSplit(self.records, self.record_indices[selection], labels)


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """Format of a data set's images as networks see them.

    Attributes:
      shape: (height, width, channels).
      resized: if True, images of any size are brought to `shape`: by random resized crops in training, by a centre
        crop otherwise. If False, every image has that shape already.
    """

    shape: tuple[int, int, int]
    resized: bool


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
      UserError: naming the image, if it cannot be decoded or has another size.
    """
    record_index = int(split.record_indices[index])
    encoded, label = split.records[record_index]
    height, width, channels = image_spec.shape
    try:
        image = _open(encoded, channels)
        if image_spec.resized:
            image = centre_crop(image, height) if rng is None else random_resized_crop(image, height, rng)
        pixels = np.asarray(image, np.uint8).reshape(image.height, image.width, channels)
    except OSError as error:
        raise UserError(
            f"{split.records.describe(record_index)} cannot be decoded ({error}); replace or remove it"
        ) from None
    if pixels.shape != image_spec.shape:
        raise UserError(
            f"{split.records.describe(record_index)} has {image.width}x{image.height} pixels, the first image "
            f"{width}x{height}; set config.data.image_size to bring all to one size"
        )
    return pixels, label


def image_size(encoded: bytes | np.ndarray) -> tuple[int, int]:
    """Returns (height, width) of an image; of encoded bytes it reads the header only."""
    if isinstance(encoded, np.ndarray):
        return encoded.shape[0], encoded.shape[1]
    with Image.open(io.BytesIO(encoded)) as image:
        return image.height, image.width


def _open(encoded: bytes | np.ndarray, channels: int) -> Image.Image:
    """Opens an image with one channel or three."""
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded[..., 0] if channels == 1 else encoded)
    image = Image.open(io.BytesIO(encoded))
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)
