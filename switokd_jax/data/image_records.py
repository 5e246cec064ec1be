"""Splits whose images stay encoded, on disk, until a batch wants them; and what becomes of one image."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Protocol

import numpy as np
from PIL import Image

from switokd_jax.errors import UserError


class Records(Protocol):
    """Random access to examples. Worker processes get a pickled copy, so it opens files when it is asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int) -> tuple[bytes | np.ndarray, int]:
        """The encoded image, or its uint8 pixels [height, width, channels]; and its label."""
        ...

    def describe(self, place: int) -> str:
        """What to call an example in a message: its file, or its place."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayRecords:
    """Images in memory as records: [n, height, width, channels] uint8 and [n] int32."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        return self.images[place], int(self.labels[place])

    def describe(self, place: int) -> str:
        """Its place."""
        return f"image {place}"


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSplit:
    """The examples of a split.

    Attributes:
      records: where they stand, with others perhaps.
      record_indices: [n], which of the records they are.
      labels: [n] int32, or None where they are known only once a record is read.
    """

    records: Records
    record_indices: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.record_indices)

    def take(self, chosen: np.ndarray) -> RecordSplit:
        """The examples of these indices, or of this mask."""
        return RecordSplit(
            self.records, self.record_indices[chosen], None if self.labels is None else self.labels[chosen]
        )


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """What an encoded image becomes.

    Attributes:
      shape: (height, width, channels).
      resized: whether images of any size are brought to `shape`, by random resized crops in training and a centre
        crop otherwise; if not, they have it.
    """

    shape: tuple[int, int, int]
    resized: bool


def load_example(
    split: RecordSplit, index: int, form: ImageSpec, rng: np.random.Generator | None
) -> tuple[np.ndarray, int]:
    """One example: uint8 pixels of `form.shape`, and its label.

    Args:
      split: where it stands.
      index: which of the split's examples.
      form: what the image becomes.
      rng: of a random resized crop and flip; None for the centre crop.

    Raises:
      ConfigError: naming the image, if it cannot be decoded or has another size.
    """
    place = int(split.record_indices[index])
    encoded, label = split.records[place]
    try:
        image = _open(encoded, form.shape[2])
        if form.resized:
            image = centre_crop(image, form.shape[0]) if rng is None else random_crop(image, form.shape[0], rng)
        pixels = np.asarray(image, np.uint8).reshape(image.height, image.width, form.shape[2])
    except OSError as error:
        raise UserError(f"{split.records.describe(place)} cannot be decoded ({error}); mend or remove it") from None
    if pixels.shape != form.shape:
        raise UserError(
            f"{split.records.describe(place)} has {image.width}x{image.height} pixels, the first image "
            f"{form.shape[1]}x{form.shape[0]}; set config.data.image_size to bring all to one size"
        )
    return pixels, label


def _open(encoded: bytes | np.ndarray, channels: int) -> Image.Image:
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded[..., 0] if channels == 1 else encoded)
    image = Image.open(io.BytesIO(encoded))
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def size_of(encoded: bytes | np.ndarray) -> tuple[int, int]:
    """(height, width) of an encoded image, from its header."""
    if isinstance(encoded, np.ndarray):
        return encoded.shape[0], encoded.shape[1]
    with Image.open(io.BytesIO(encoded)) as image:
        return image.height, image.width


def random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A random resized crop and a random mirror image, as torchvision's: [size, size] pixels, bilinear."""
    # Not resize(box=...): that looks beyond the box at its border.
    cropped = image.crop(random_box(image.width, image.height, rng)).resize((size, size), Image.Resampling.BILINEAR)
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cropped


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, upper, right, lower) of 8 to 100 % of the area with a ratio of 3/4 to 4/3 (Szegedy et al. 2015).

    After ten draws that do not fit, the largest centre box with a ratio in that range, as torchvision's
    RandomResizedCrop has it.
    """
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, upper, left + w, upper + h
    w = min(width, round(height * high))
    h = min(height, round(width / low))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The shorter side to size * 256 / 224 pixels, then the centre [size, size]: the usual evaluation on ImageNet."""
    short = round(size * 256 / 224)
    scale = short / min(image.width, image.height)
    # torchvision truncates the longer side.
    width, height = (short if side * scale <= short else int(side * scale) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, upper = round((width - size) / 2), round((height - size) / 2)
    return resized.crop((left, upper, left + size, upper + size))
