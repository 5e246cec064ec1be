"""How pixels become inputs: published constants, or measured ones."""

from __future__ import annotations

import dataclasses

import numpy as np


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


IMAGENET = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The public SwitOKD code's. Other sets are measured on their training images, or take ImageNet's where these are not
# in memory.
PUBLISHED: dict[str, Preprocess] = {
    "digits": Preprocess((0.0,), (1.0,), scale=16.0, padding=1, flip=False),
    "cifar10": Preprocess((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "cifar100": Preprocess((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
    "tiny_imagenet_200": Preprocess((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet2012": IMAGENET,
}
# A mirrored digit or letter is another one, or none.
NO_FLIP = ("mnist", "emnist", "kmnist", "binarized_mnist", "svhn_cropped", "omniglot", "cmaterdb")


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
