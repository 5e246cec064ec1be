"""Any image-classification set of TFDS by its name, prepared on the first use."""

from __future__ import annotations

import contextlib
import dataclasses
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

from switokd_jax.data.decode_cache import Arrays, decoded
from switokd_jax.data.shards import Shards, shards_of
from switokd_jax.errors import UserError, did_you_mean, one_line

# Named in the message for an unknown set; TFDS has many more.
COMMON = (
    *("digits", "folder", "cifar10", "cifar100", "tiny_imagenet_200", "imagenet2012", "fashion_mnist", "mnist"),
    "svhn_cropped",
)
# Their test splits have no labels.
UNLABELLED_TEST = ("imagenet2012", "imagenet2012_subset")


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsDataset:
    """A set that lies on disk.

    Attributes:
      builder: TFDS's.
      name: its TFDS name.
      command: what prepares it again.
    """

    builder: Any
    name: str
    command: str

    @property
    def shape(self) -> tuple[int | None, int | None, int]:
        """(height, width, channels); None for sizes that vary."""
        height, width, channels = self.builder.info.features["image"].shape
        return height, width, channels

    @property
    def classes(self) -> list[str]:
        """The names of its labels; their numbers where it has none."""
        label = self.builder.info.features["label"]
        return [label.int2str(number) for number in range(label.num_classes)]

    @property
    def test_split(self) -> str:
        """'test', or 'validation' where there is no test split with labels."""
        unlabelled = self.name.partition(":")[0].partition("/")[0] in UNLABELLED_TEST
        return "test" if "test" in self.builder.info.splits and not unlabelled else "validation"

    def source(self, split: str, **options: Any) -> Any:
        """Random access to a split; options as of TFDS's `as_data_source`.

        Raises:
          ConfigError: if there is no such split, or one of its files is missing, or they have no random access.
        """
        if split not in self.builder.info.splits:
            raise UserError(
                f"config.data.name: {self.name!r} has no split {split!r}; it has {[*self.builder.info.splits]}"
            )
        self.shards(split).check()
        try:
            return self.builder.as_data_source(split=split, **options)
        except NotImplementedError:
            raise UserError(
                f"{self.builder.data_dir} is not in a format with random access; prepare it again: {self.command}"
            ) from None

    def shards(self, split: str) -> Shards:
        """The files of a split."""
        return shards_of(self.builder.info.splits[split], self.command)

    def arrays(self, split: str) -> Arrays:
        """A whole split: images [n, height, width, channels] uint8 and labels [n] int32.

        Raises:
          ConfigError: also if the images have several sizes.
        """
        if None in self.shape:
            raise UserError(
                f"config.data.name: the images of {self.name!r} have many sizes; set config.data.pipeline = 'stream' "
                "and config.data.image_size (224, say)"
            )
        source, title = self.source(split), f"{self.name} {split}"
        shards = self.shards(split)
        return decoded(title, shards.paths, lambda: _read(source, title, shards))

    def records(self, split: str) -> TfdsRecords:
        """A split as encoded images."""
        import tensorflow_datasets as tfds

        source = self.source(split, decoders={"image": tfds.decode.SkipDecoding()})
        return TfdsRecords(source, f"{self.name} {split}", self.shards(split))


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsRecords:
    """`encoded.Records` of a split of TFDS."""

    source: Any
    name: str
    shards: Shards

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: int) -> tuple[bytes, int]:
        with self.shards.reading(place):
            example = self.source[place]
        return example["image"], int(example["label"])

    def describe(self, place: int) -> str:
        """Its split and place."""
        return f"image {place} of {self.name}"


def open_tfds(name: str, data_dir: str) -> TfdsDataset:
    """A set by its TFDS name, prepared first where it is not.

    Args:
      name: a TFDS name.
      data_dir: TFDS's folder; '' for its default.

    Raises:
      ConfigError: if there is no such set or it cannot be fetched.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds  # imports TensorFlow only when it has to prepare a set

    if data_dir and not Path(data_dir).expanduser().is_dir():
        raise UserError(f"config.data.dir {data_dir!r} is not a folder; set it to TFDS's data_dir or to ''")
    if name == "tiny_imagenet_200":
        importlib.import_module("switokd_jax.data.tiny_imagenet")  # makes it known to TFDS
    folder = str(Path(data_dir).expanduser()) if data_dir else None
    try:
        builder = tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        raise UserError(
            f"config.data.name: no data set {name!r}; {did_you_mean(name, COMMON)}, and all of TFDS"
        ) from None
    features = builder.info.features
    if not (isinstance(features, tfds.features.FeaturesDict) and {"image", "label"} <= {*features.keys()}):
        raise UserError(f"config.data.name: {name!r} is not an image-classification set of TFDS")
    _prepare(builder, name, folder)
    return TfdsDataset(builder, name, _command(name, folder))


def _prepare(builder: Any, name: str, folder: str | None) -> None:
    if Path(builder.data_dir).is_dir():
        return
    try:
        _check_network(builder)
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # of the network, the disk or the archive: TFDS has no common type for them
        reason = one_line(error) or type(error).__name__
        raise UserError(
            f"data set {name!r} is not prepared and could not be fetched ({type(error).__name__}: {reason}); "
            f"{_remedy(builder, name, folder)}"
        ) from error


def _remedy(builder: Any, name: str, folder: str | None) -> str:
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        manual = Path(builder.data_dir).parents[1] / "downloads" / "manual"
        if urls := getattr(builder, "urls", ()):
            return f"where there is network, fetch {urls[0]} and put it into {manual}"
        return f"manual_dir is {manual}: {' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())}"
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


def _read(source: Any, title: str, shards: Shards) -> Arrays:
    images, labels = [], []
    with _without_advice():
        places = range(len(source))
        for place in tqdm(places, desc=f"reading {title}", unit=" images", leave=False, delay=2.0, disable=None):
            with shards.reading(place):
                example = source[place]
            images.append(example["image"])
            labels.append(example["label"])
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise UserError(f"{title}: the images have {len(shapes)} sizes; config.data.pipeline 'resident' needs one")
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
