"""Any image-classification set of TFDS by its name, prepared on the first use."""

from __future__ import annotations

import contextlib
import importlib
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

Arrays = tuple[np.ndarray, np.ndarray]
# Named in the message for an unknown set; TFDS has many more.
COMMON = ("digits", "folder", "cifar10", "cifar100", "tiny_imagenet_200", "fashion_mnist", "mnist", "svhn_cropped")


def read_tfds(name: str, data_dir: str) -> tuple[Arrays, Arrays, int]:
    """Reads the splits train and test of a set by its TFDS name, and prepares it first where it is not.

    Args:
      name: a TFDS name.
      data_dir: TFDS's folder; '' for its default.

    Returns:
      (images, labels) of train, the same of test, and the number of classes. Images are [n, height, width, channels]
      uint8; labels are [n] int32.

    Raises:
      ConfigError: if there is no such set, it cannot be fetched, or its images do not fit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds  # imports TensorFlow only when it has to prepare a set

    if data_dir and not Path(data_dir).expanduser().is_dir():
        raise ConfigError(f"config.data.dir {data_dir!r} is not a folder; set it to TFDS's data_dir or to ''")
    if name == "tiny_imagenet_200":
        importlib.import_module("switokd_jax.data.tiny_imagenet")  # makes it known to TFDS
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
            f"{_remedy(builder, name, folder)}"
        ) from error


def _remedy(builder: Any, name: str, folder: str | None) -> str:
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        manual = Path(builder.data_dir).parents[1] / "downloads" / "manual"
        return f"where there is network, fetch {builder.urls[0]} and put it into {manual}"
    return f"where there is network, run: {_command(name, folder)}"


def _check_network(builder: Any) -> None:
    """Asks once for the first file to download: TFDS itself tries for minutes before it gives up."""
    if any((parent / "downloads").is_dir() for parent in [*Path(builder.data_dir).parents][1:3]):
        return  # it may lie there already
    for url in [*(builder.url_infos or ()), *getattr(builder, "urls", ())][:1]:
        if url.startswith("http"):
            try:
                urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20).close()
            except urllib.error.HTTPError:
                return  # somebody answered; some servers refuse HEAD


def _command(name: str, folder: str | None) -> str:
    where = f" --data_dir={folder}" if folder else ""
    return f"tfds build {name} --file_format=array_record{where}"


def _read(source: Any, title: str) -> Arrays:
    images, labels = [], []
    with _without_advice():
        for example in tqdm(source, desc=f"reading {title}", unit=" images", leave=False, delay=2.0, disable=None):
            images.append(example["image"])
            labels.append(example["label"])
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise ConfigError(f"{title}: the images have {len(shapes)} sizes; config.data.pipeline 'resident' needs one")
    return np.stack(images), np.asarray(labels, np.int32)


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
