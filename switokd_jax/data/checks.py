"""Checks of the arrays that a data source returns: every mistake is named before a network sees it."""

from __future__ import annotations

from typing import Any

import numpy as np

from switokd_jax.errors import UserError

MAX_CHANNELS = 4


def check_images(images: Any, where: str) -> np.ndarray:
    """Checks the images of a split.

    Args:
      images: what the source returned.
      where: names the data set and split in messages.

    Returns:
      `images`, [n, height, width, channels] uint8.

    Raises:
      UserError: saying what was found instead.
    """
    if not isinstance(images, np.ndarray) or images.dtype == object:
        raise UserError(f"{where}: images are {_kind(images)}; give one NumPy array [n, height, width, channels] uint8")
    if images.dtype != np.uint8:
        raise UserError(f"{where}: images are {images.dtype}; convert them to uint8 from 0 to 255 (or another maximum)")
    if images.ndim != 4:
        hint = "; for one channel add [..., None]" if images.ndim == 3 else ""
        raise UserError(f"{where}: images have the shape {list(images.shape)}, not [n, height, width, channels]{hint}")
    if not 1 <= images.shape[3] <= MAX_CHANNELS or not images.shape[1] or not images.shape[2]:
        hint = "; channels come last: transpose(0, 2, 3, 1)" if images.shape[1] <= MAX_CHANNELS else ""
        raise UserError(
            f"{where}: images have the shape {list(images.shape)}, and [n, height, width, channels] has 1 to "
            f"{MAX_CHANNELS} channels{hint}"
        )
    return images


def check_labels(labels: Any, length: int, num_classes: int, where: str) -> np.ndarray:
    """Checks the labels of a split.

    Args:
      labels: what the source returned: an array or list of whole numbers.
      length: number of images.
      num_classes: number of classes.
      where: names the data set and split in messages.

    Returns:
      [n] int32.

    Raises:
      UserError: naming the first label that is no class, or saying what was found instead.
    """
    try:
        array = np.asarray(labels)
    except ValueError:  # a list of lists of several lengths
        array = np.asarray(labels, object)
    if array.ndim != 1:
        hint = ""
        if array.ndim == 2:
            hint = "; take labels[:, 0]" if array.shape[1] == 1 else "; for one-hot labels take labels.argmax(1)"
        raise UserError(f"{where}: labels have the shape {list(array.shape)}, not [n]{hint}")
    if not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{where}: labels are {array.dtype}, such as {array[:1].tolist()}; give whole numbers")
    if len(array) != length:
        raise UserError(f"{where}: there are {length} images and {len(array)} labels")
    if bad := np.flatnonzero((array < 0) | (array >= num_classes))[:1].tolist():
        label = int(array[bad[0]])
        raise UserError(
            f"{where}: image {bad[0]} has label {label}, and labels of {num_classes} classes are 0 to "
            f"{num_classes - 1}{_label_hint(array, num_classes)}"
        )
    return array.astype(np.int32)


def _label_hint(labels: np.ndarray, num_classes: int) -> str:
    if (labels == -1).all():
        return "; this split has no labels: set config.data.test_split to another one"
    if labels.min() == 1 and labels.max() == num_classes:
        return "; count from 0: labels - 1"
    return "; correct them or leave those images out"


def _kind(images: Any) -> str:
    return "an array of objects" if isinstance(images, np.ndarray) else f"a {type(images).__name__}"
