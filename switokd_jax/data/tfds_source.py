"""Image-classification data sets of TFDS by name: preparation on the first use, random access, files of each split."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from switokd_jax.data import decode as decoder
from switokd_jax.data.decode import ImageError, decode, to_pixels
from switokd_jax.data.decode_cache import Arrays, load_or_decode
from switokd_jax.errors import UserError, did_you_mean, one_line

# Suggestions in the message about an unknown data set; TFDS has many more.
COMMON_NAMES = (
    *("digits", "folder", "cifar10", "cifar100", "tiny_imagenet_200", "imagenet2012", "fashion_mnist", "mnist"),
    "svhn_cropped",
)
# Data sets whose test split has no labels.
UNLABELED_TEST = ("imagenet2012", "imagenet2012_subset")


@dataclasses.dataclass(frozen=True)
class Shards:
    """Files of a prepared split, to name the one that cannot be read.

    Attributes:
      paths: files, in order.
      lengths: number of examples in each.
      prepare_command: shell command that prepares them again.
    """

    paths: tuple[str, ...]
    lengths: tuple[int, ...]
    prepare_command: str

    def check(self) -> None:
        """Opens each file.

        Raises:
          UserError: naming the first that is missing or may not be read.
        """
        for path in self.paths:
            try:
                Path(path).open("rb").close()
            except OSError as error:
                self._raise_unreadable(path, error.strerror)

    @contextlib.contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """Wraps the reading of the example with this index.

        Raises:
          UserError: naming the example's file, if the block fails.
        """
        try:
            yield
        except (RuntimeError, OSError, ValueError, IndexError) as error:  # raised by array_record and its decoders
            self._raise_unreadable(self.path_of(index), error)

    def path_of(self, index: int) -> str:
        """Returns the file that holds an example.

        >>> Shards(("a", "b"), (2, 3), prepare_command="").path_of(2)
        'b'
        """
        for path, length in zip(self.paths, self.lengths, strict=True):
            if index < length:
                return path
            index -= length
        return self.paths[-1]

    def _raise_unreadable(self, path: str, reason: object) -> NoReturn:
        raise UserError(
            f"data shard {path} cannot be read ({one_line(reason)}); copy it again, or remove {Path(path).parent} and "
            f"run: {self.prepare_command}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsDataset:
    """A data set of TFDS that is prepared on disk.

    Attributes:
      builder: TFDS's `DatasetBuilder`.
      name: its TFDS name.
      prepare_command: shell command that prepares it again.
    """

    builder: Any
    name: str
    prepare_command: str

    @property
    def shape(self) -> tuple[int | None, int | None, int]:
        """(height, width, channels); None for sizes that vary."""
        height, width, channels = self.builder.info.features["image"].shape
        return height, width, channels

    @property
    def classes(self) -> list[str]:
        """Names of the labels; their numbers if they have no names."""
        label = self.builder.info.features["label"]
        return [label.int2str(number) for number in range(label.num_classes)]

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return [*self.builder.info.splits]

    def find_test_split(self, name: str) -> str | None:
        """Returns the split that is reported.

        Args:
          name: its name if the user chose one; '' for 'test', or 'validation' if there is no test split with labels.

        Returns:
          Its name; None if the data set has neither.

        Raises:
          UserError: if there is no split of this name.
        """
        if name:
            if name not in self.splits:
                raise UserError(f"config.data.test_split: {self.name!r} has no split {name!r}; it has {self.splits}")
            return name
        unlabeled = self.name.partition(":")[0].partition("/")[0] in UNLABELED_TEST
        candidates = ["validation"] if unlabeled else ["test", "validation"]
        return next((candidate for candidate in candidates if candidate in self.splits), None)

    def source(self, split: str, **options: Any) -> Any:
        """Opens a split for random access.

        Args:
          split: its name in TFDS.
          **options: passed on to TFDS's `as_data_source`.

        Raises:
          UserError: if there is no such split, one of its files is missing, or their format has no random access.
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
                f"{self.builder.data_dir} is not in a format with random access; prepare it again: "
                f"{self.prepare_command}"
            ) from None

    def shards(self, split: str) -> Shards:
        """Returns the files of a split."""
        info = self.builder.info.splits[split]
        return Shards(tuple(map(str, info.filepaths)), tuple(info.shard_lengths), self.prepare_command)

    def arrays(self, split: str, *, skip_bad: bool) -> tuple[Arrays, list[str]]:
        """Decodes a full split, or loads it from the cache.

        Args:
          split: its name in TFDS.
          skip_bad: whether images that cannot be decoded are left out.

        Returns:
          Images [n, height, width, channels] uint8 and labels [n] int32; then a message for each image that is left
          out.

        Raises:
          UserError: as `source`, or if the images have several sizes, or one cannot be decoded.
        """
        if None in self.shape:
            raise UserError(
                f"config.data.name: the images of {self.name!r} have many sizes; set config.data.pipeline = 'stream' "
                "and config.data.image_size (224, say)"
            )
        records, skipped = self.records(split), list[str]()
        key = f"{records.name}, decoder {decoder.VERSION}"
        try:
            return load_or_decode(key, records.shards.paths, lambda: _decode(records, self.shape[2], None)), skipped
        except ImageError:
            if not skip_bad:
                raise
        return _decode(records, self.shape[2], skipped), skipped

    def records(self, split: str) -> TfdsRecords:
        """Opens a split as encoded images."""
        import tensorflow_datasets as tfds

        source = self.source(split, decoders={"image": tfds.decode.SkipDecoding()})
        return TfdsRecords(source, f"{self.name} {split}", self.shards(split))


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsRecords:
    """Encoded images of a split of TFDS: `image_records.Records`.

    Attributes:
      source: TFDS's random-access data source, without decoding.
      name: name of the data set and split.
      shards: files of the split.
    """

    source: Any
    name: str
    shards: Shards

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        with self.shards.reading(index):
            example = self.source[index]
        return example["image"], int(example["label"])

    def describe(self, index: int) -> str:
        """Names an example by its index and split."""
        return f"image {index} of {self.name}"


def open_tfds(name: str, data_dir: str) -> TfdsDataset:
    """Opens a data set of TFDS, and prepares it first if it is not on disk.

    Args:
      name: its TFDS name.
      data_dir: TFDS's folder; '' for its default.

    Raises:
      UserError: if there is no such data set or it cannot be fetched.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds  # imports TensorFlow only to prepare a data set

    if data_dir and not Path(data_dir).expanduser().is_dir():
        raise UserError(f"config.data.dir {data_dir!r} is not a folder; set it to TFDS's data_dir or to ''")
    if name == "tiny_imagenet_200":
        importlib.import_module("switokd_jax.data.tiny_imagenet")  # registers it with TFDS
    folder = str(Path(data_dir).expanduser()) if data_dir else None
    try:
        builder = tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        raise UserError(
            f"config.data.name: no data set {name!r}; {did_you_mean(name, COMMON_NAMES)}, and all of TFDS"
        ) from None
    except (ValueError, AssertionError, KeyError, RuntimeError) as error:  # raised by TFDS for names it cannot parse
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"config.data.name {name!r} is no name of TFDS ({one_line(first)}); write NAME, NAME/CONFIG or NAME:1.0.0"
        ) from None
    features = builder.info.features
    _check_features(features, name)
    if not Path(builder.data_dir).is_dir():
        _prepare(own_builder(builder, folder) or builder, name, folder)
        builder = tfds.builder(name, data_dir=folder)
    return TfdsDataset(builder, name, _prepare_command(name, folder))


def _check_features(features: Any, name: str) -> None:
    """Checks that examples are an 8-bit 'image' and the number of its class, 'label'."""
    import tensorflow_datasets as tfds

    found = {*features.keys()} if isinstance(features, tfds.features.FeaturesDict) else {repr(features)}
    if not {"image", "label"} <= found:
        raise UserError(
            f"config.data.name: {name!r} is not an image-classification data set of TFDS: its features are "
            f"{sorted(found)}, and 'image' and 'label' are needed"
        )
    image, label = features["image"], features["label"]
    if not isinstance(label, tfds.features.ClassLabel):
        raise UserError(
            f"config.data.name: the feature 'label' of {name!r} is {one_line(label)}; it must be ClassLabel"
        )
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8 or image.shape[2] not in (1, 3):
        raise UserError(
            f"config.data.name: the feature 'image' of {name!r} is {one_line(image)}; it must be Image of uint8 with "
            "1 or 3 channels"
        )


def own_builder(builder: Any, folder: str | None) -> Any | None:
    """Returns our builder of the same data set and version, which needs no TensorFlow; None if we have none."""
    from switokd_jax.data import cifar  # defines builders, which imports more of TFDS

    own = cifar.BUILDERS.get(builder.name)
    return own(data_dir=folder) if own and str(own.VERSION) == str(builder.version) else None


def _prepare(builder: Any, name: str, folder: str | None) -> None:
    """Downloads and prepares a data set."""
    if getattr(builder, "needs_tensorflow", True) and importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"config.data.name: TFDS prepares {name!r} with TensorFlow; pip install 'switokd_jax[prepare]', or copy "
            f"the prepared folder from another machine to {builder.data_dir}"
        )
    try:
        _check_network(builder)
        builder.download_and_prepare(file_format="array_record")
    except UserError:
        raise
    except Exception as error:  # network, disk and archive fail in many ways: TFDS has no common type for them
        raise UserError(
            f"data set {name!r} is not prepared and could not be fetched ({type(error).__name__}: {one_line(error)}); "
            f"{_remedy(builder, name, folder)}"
        ) from error


def _remedy(builder: Any, name: str, folder: str | None) -> str:
    """Tells the user how to get a data set that could not be fetched."""
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        manual = Path(builder.data_dir).parents[1] / "downloads" / "manual"
        if urls := getattr(builder, "urls", ()):
            return f"on a machine with network access, fetch {urls[0]} and put it into {manual}"
        return f"manual_dir is {manual}: {' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())}"
    return f"on a machine with network access, run: {_prepare_command(name, folder)}"


def _check_network(builder: Any) -> None:
    """Requests the first file to download, once: TFDS itself tries for minutes before it gives up."""
    if any((parent / "downloads").is_dir() for parent in [*Path(builder.data_dir).parents][1:3]):
        return  # the file may have been downloaded already
    for url in [*(builder.url_infos or ()), *getattr(builder, "urls", ())][:1]:
        if url.startswith("http"):
            try:
                urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20).close()
            except urllib.error.HTTPError:
                return  # the server answered; some refuse HEAD


def _prepare_command(name: str, folder: str | None) -> str:
    data_dir_flag = f" --data_dir={folder}" if folder else ""
    return f"tfds build {name} --file_format=array_record{data_dir_flag}"


def _decode(records: TfdsRecords, channels: int, skipped: list[str] | None) -> Arrays:
    """Decodes all examples of a split; adds a message to `skipped`, if given, for each that cannot be."""
    images, labels = [], []
    progress = {"desc": f"reading {records.name}", "unit": " images", "leave": False, "delay": 2.0, "disable": None}
    for index in tqdm(range(len(records)), **progress):
        encoded, label = records[index]
        try:
            images.append(to_pixels(decode(encoded, channels, records.describe(index))))
        except ImageError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
            continue
        labels.append(label)
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise UserError(
            f"{records.name}: the images have {len(shapes)} sizes; config.data.pipeline 'resident' needs one"
        )
    return np.stack(images), np.asarray(labels, np.int32)
