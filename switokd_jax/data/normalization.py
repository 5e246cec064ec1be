"""Normalization of pixels: published constants for well-known data sets, measured ones for all others."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from switokd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Constants that turn uint8 pixels x into network inputs (x / scale - mean) / std, and those of augmentation.

    Attributes:
      mean: mean of x / scale, one number per channel.
      std: standard deviation of x / scale, one number per channel.
      scale: highest pixel value.
      padding: width in pixels of the black border that a random crop may take in.
      flip: if True, training mirrors half of the images.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    padding: int = 4
    flip: bool = True

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values.

        >>> Preprocess((0.5,), (0.25,)).to_json()
        {'mean': [0.5], 'std': [0.25], 'scale': 255.0, 'padding': 4, 'flip': True}
        """
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocess:
        """Returns the inverse of `to_json`.

        >>> Preprocess.from_json({"mean": [0.5], "std": [0.25], "padding": 0})
        Preprocess(mean=(0.5,), std=(0.25,), scale=255.0, padding=0, flip=True)
        """
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


IMAGENET = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Constants of the public SwitOKD code. Any other data set is measured on its training images if they are in memory;
# if it is streamed, it takes ImageNet's constants.
PUBLISHED: dict[str, Preprocess] = {
    "digits": Preprocess((0.0,), (1.0,), scale=16.0, padding=1, flip=False),
    "cifar10": Preprocess((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "cifar100": Preprocess((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
    "tiny_imagenet_200": Preprocess((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet2012": IMAGENET,
}
# Data sets of digits and letters: a mirrored one is another class, or none.
NO_FLIP = ("digits", "mnist", "emnist", "kmnist", "binarized_mnist", "svhn_cropped", "omniglot", "cmaterdb")


def is_mirrored(name: str) -> bool:
    """Returns whether training mirrors the images of a data set unless its config says otherwise.

    Args:
      name: of the data set; TFDS's ends with ':VERSION' or '/CONFIG' where it names them.

    >>> is_mirrored("cifar100"), is_mirrored("mnist:3.*.*"), is_mirrored("emnist/letters")
    (True, False, False)
    """
    return re.split("[:/]", name)[0] not in NO_FLIP


def imagenet(channels: int) -> Preprocess:
    """Returns ImageNet's constants; for images that have not three channels, the mean over the three.

    >>> imagenet(1).mean, imagenet(1).std
    ((0.449,), (0.226,))
    """
    if channels == len(IMAGENET.mean):
        return IMAGENET
    mean, std = (round(sum(three) / len(three), 4) for three in (IMAGENET.mean, IMAGENET.std))
    return dataclasses.replace(IMAGENET, mean=(mean,) * channels, std=(std,) * channels)


def parse_constants(
    mean: Sequence[Any], std: Sequence[Any], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Checks the constants of a config: finite numbers, one for each channel.

    Args:
      mean: of pixels divided by the highest value.
      std: standard deviation, above 0.
      channels: of an image.

    Raises:
      UserError: naming the field that cannot be used.

    >>> parse_constants([0.5], [1], 1)
    ((0.5,), (1.0,))
    """
    parsed = []
    for name, values, low in (("mean", mean, -math.inf), ("std", std, 0.0)):
        numbers = [value for value in values if isinstance(value, int | float) and low < value < math.inf]
        if len(numbers) < len(values) or len(values) != channels:
            above = ", above 0" if name == "std" else ""
            raise UserError(f"config.data.{name} is {tuple(values)}; give {channels} numbers, one a channel{above}")
        parsed.append(tuple(map(float, numbers)))
    return parsed[0], parsed[1]


def measure(images: np.ndarray) -> Preprocess:
    """Measures mean and standard deviation per channel; sets the padding to an eighth of the height.

    Args:
      images: [n, height, width, channels] uint8.

    Returns:
      Constants rounded to four decimals; the std of a constant channel is 1.
    """
    # Exact integer counts per pixel value: no float copy of the images, and the same result in any order.
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])])
    values = np.arange(256) / 255.0
    mean = counts @ values / counts.sum(axis=1)
    std = np.sqrt(counts @ values**2 / counts.sum(axis=1) - mean**2)
    return Preprocess(
        mean=tuple(float(m) for m in mean.round(4)),
        std=tuple(float(s) if s > 0 else 1.0 for s in std.round(4)),
        padding=max(images.shape[1] // 8, 1),
    )
