"""Folder of images as a data set: FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png, or other image files.

Names that start with a dot are left out. Links are followed. Folders inside a class are searched as well.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import logging
from tqdm import tqdm

from switokd_jax.data.decode import VERSION, ImageError, decode, read_file, to_pixels
from switokd_jax.data.decode_cache import Arrays, load_or_decode
from switokd_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Mean size of files that threads decode faster. Pillow decodes outside of Python's lock, which small files hold longer
# than that: 10,000 PNG files of 32x32 pixels take 1.3 s by one thread and 1.5 s by two.
MIN_PHOTO_BYTES = 2**14
VALIDATION_NAMES = ("val", "valid", "validation")  # of a folder that stands in place of test/ in many data sets


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files of a split: `image_records.Records`.

    Attributes:
      paths: one file per example.
      labels: [n] int32.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return read_file(self.paths[index]), int(self.labels[index])

    def describe(self, index: int) -> str:
        """Names an example by its path."""
        return f"config.data.dir: {self.paths[index]}"


def list_classes(folder: Path) -> list[str]:
    """Returns the classes of a split: the names of its folders, sorted.

    Raises:
      UserError: if the folder is missing.
    """
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(
            f"config.data.dir: there is no folder {folder} ({error.strerror}); it holds a folder for each class"
        ) from None


def find_split(root: Path, split: str, classes: list[str], origin: str) -> ImageFiles:
    """Lists the image files of a split; opens none.

    Args:
      root: folder of the data set.
      split: name of its folder.
      classes: known classes; the label is the index. The split may lack some.
      origin: says where the classes are from, for messages.

    Raises:
      UserError: naming the folder that is missing, empty or an unknown class.
    """
    folder = root / split
    present = list_classes(folder)
    if unknown := sorted({*present} - {*classes}):
        raise UserError(f"config.data.dir: {folder / unknown[0]} is a class that {origin} does not have")
    try:
        left_out: collections.Counter[str] = collections.Counter(
            "hidden names" if path.name.startswith(".") else "files outside the classes"
            for path in folder.iterdir()
            if path.name not in present
        )
        examples = [
            (path, label)
            for label, name in enumerate(classes)
            if name in present
            for path in sorted(_walk(folder / name, left_out, ()))
        ]
    except OSError as error:
        raise UserError(f"config.data.dir: {error.filename} cannot be read ({error.strerror})") from None
    if left_out:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(left_out.items()))
        logging.warning("config.data.dir: %s: left out %s", folder, counts)
    if not examples:
        raise UserError(f"config.data.dir: {folder} holds no images ({', '.join(SUFFIXES)})")
    return ImageFiles(tuple(path for path, _ in examples), np.asarray([label for _, label in examples], np.int32))


def find_train(root: Path) -> tuple[ImageFiles, list[str]]:
    """Lists the training images and the classes.

    Raises:
      UserError: naming the folder that is missing, or the class that has no image.
    """
    classes = list_classes(root / "train")
    if not classes:
        raise UserError(f"config.data.dir: {root / 'train'} holds no folders; make one for each class")
    files = find_split(root, "train", classes, "itself")
    if empty := np.flatnonzero(np.bincount(files.labels, minlength=len(classes)) == 0).tolist():
        raise UserError(
            f"config.data.dir: {root / 'train' / classes[empty[0]]} is a class without images "
            f"({', '.join(SUFFIXES)}); add some or remove the folder"
        )
    return files, classes


def find_test(root: Path, split: str, classes: list[str], *, required: bool) -> ImageFiles:
    """Lists the images of the split that is reported.

    Args:
      root: folder of the data set.
      split: name of its folder; '' for 'test'.
      classes: the classes of train.
      required: whether the folder must exist.

    Returns:
      The files; none if there is no such folder and nothing that stands in its place.

    Raises:
      UserError: naming the folder that is missing, empty or an unknown class.
    """
    name = split or "test"
    if (root / name).is_dir():
        return find_split(root, name, classes, str(root / "train"))
    others = [other for other in VALIDATION_NAMES if (root / other).is_dir()]
    if not (required or split or others):
        return ImageFiles((), np.zeros(0, np.int32))
    advice = (
        f"{root / others[0]} exists: set config.data.test_split to {others[0]!r}, or rename that folder"
        if others
        else "it holds a folder for each class; without one, set config.data.validation_fraction"
    )
    raise UserError(f"config.data.dir: there is no folder {root / name}; {advice}")


def read_splits(
    splits: Sequence[ImageFiles], *, skip_bad: bool
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[str]]:
    """Decodes splits, or reads them from the cache of decoded ones.

    Args:
      splits: the files of each split.
      skip_bad: whether images that cannot be decoded are left out. A set that has some is decoded at each start.

    Returns:
      For each split images [n, height, width, channels] uint8, with one channel if all files are grayscale, else
      three, and labels [n] int32. Then a message for each image that is left out.

    Raises:
      UserError: naming the file that is damaged or of another size.
    """

    def decode_all() -> Arrays:
        decoded = _decode_splits(splits, None)
        return np.concatenate([images for images, _ in decoded]), np.concatenate([labels for _, labels in decoded])

    paths = [path for files in splits for path in files.paths]
    try:
        images, labels = load_or_decode(f"config.data.dir, decoder {VERSION}", paths, decode_all)
    except ImageError:
        if not skip_bad:
            raise
        skipped = list[str]()
        return _decode_splits(splits, skipped), skipped
    ends = np.cumsum([len(files) for files in splits])[:-1]
    return [*zip(np.split(images, ends), np.split(labels, ends), strict=True)], []


def _decode_splits(splits: Sequence[ImageFiles], skipped: list[str] | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Decodes splits; adds a message to `skipped` for each image that cannot be decoded, and raises if it is None."""
    decoded, size = [], None
    for files in splits:
        examples = []
        images = tqdm(_decode_files(files), total=len(files), desc="reading images", delay=2, disable=None)
        for path, label, pixels in zip(files.paths, files.labels.tolist(), images, strict=True):
            if isinstance(pixels, ImageError):
                if skipped is None:
                    raise pixels
                skipped.append(str(pixels))
                continue
            height, width = size = size or pixels.shape[:2]
            if pixels.shape[:2] != size:
                raise UserError(
                    f"{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels, the first "
                    f"{width}x{height}; resize them, or set config.data.pipeline to 'stream' and config.data.image_size"
                )
            examples.append((pixels, label))
        if skipped and files.paths and not examples:
            raise UserError(f"{skipped[-1]}; none of the {len(files)} images of this split can be used")
        decoded.append(examples)
    channels = max(pixels.shape[2] for examples in decoded for pixels, _ in examples)
    return [
        (
            np.stack([np.broadcast_to(pixels, (height, width, channels)) for pixels, _ in examples])
            if examples
            else np.zeros((0, height, width, channels), np.uint8),
            np.asarray([label for _, label in examples], np.int32),
        )
        for examples in decoded
    ]


def _decode_files(files: ImageFiles) -> Iterator[np.ndarray | ImageError]:
    """Yields the pixels of each file, or why there are none; photographs in threads."""

    def decode_file(index: int) -> np.ndarray | ImageError:
        try:
            return to_pixels(decode(files[index][0], None, files.describe(index)))
        except ImageError as error:
            return error

    if sum(path.stat().st_size for path in files.paths) < MIN_PHOTO_BYTES * len(files):
        yield from map(decode_file, range(len(files)))
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(decode_file, range(len(files)))


def _walk(folder: Path, left_out: collections.Counter[str], above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Yields the image files below a folder, and counts what it leaves out.

    Args:
      folder: where to look.
      left_out: counts by kind, added to.
      above: device and inode of the folders above; a link back to one of them would have no end.
    """
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        left_out["links in a circle"] += 1
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                left_out["hidden names"] += 1
            elif entry.is_dir():
                yield from _walk(path, left_out, (*above, here))
            elif path.suffix.lower() not in SUFFIXES:
                left_out[f"files that are no images ({path.suffix or 'no suffix'})"] += 1
            elif entry.is_symlink() and not path.exists():
                left_out["links to nothing"] += 1
            else:
                yield path
