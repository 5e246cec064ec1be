"""Folder of images as a data set: FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png, or other image files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from switokd_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
GRAYSCALE_MODES = ("L", "1", "I;16")  # of Pillow


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
        return self.paths[index].read_bytes(), int(self.labels[index])

    def describe(self, index: int) -> str:
        """Names an example by its path."""
        return f"config.data.dir: {self.paths[index]}"


def find_files(root: Path) -> tuple[ImageFiles, ImageFiles, list[str]]:
    """Lists the image files of a data set; opens none.

    Returns:
      The files of train and of test, and the classes: the names of the training folders, sorted.

    Raises:
      UserError: naming the folder that is missing or empty.
    """
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise UserError(f"config.data.dir: there is no folder {root / split}; it holds a folder for each class")
    classes = sorted(path.name for path in (root / "train").iterdir() if path.is_dir())
    if not classes:
        raise UserError(f"config.data.dir: {root / 'train'} holds no folders; make one for each class")
    if unknown := sorted({path.name for path in (root / "test").iterdir() if path.is_dir()} - {*classes}):
        raise UserError(f"config.data.dir: {root / 'test' / unknown[0]} is a class that {root / 'train'} does not have")
    train, test = (_list_files(root / split, classes) for split in ("train", "test"))
    return train, test, classes


def read_files(train: ImageFiles, test: ImageFiles) -> tuple[np.ndarray, np.ndarray]:
    """Decodes both splits.

    Returns:
      Images of train and of test, [n, height, width, channels] uint8: one channel if all are grayscale, else three.

    Raises:
      UserError: naming the file that is broken or of another size.
    """
    headers = [_read_header(path) for files in (train, test) for path in files.paths]
    grayscale, size = all(mode in GRAYSCALE_MODES for mode, _ in headers), headers[0][1]

    def read(files: ImageFiles) -> np.ndarray:
        paths = tqdm(files.paths, desc="reading images", delay=2, disable=None)
        return np.stack([_read_image(path, grayscale, size) for path in paths])

    return read(train), read(test)


def _list_files(folder: Path, classes: list[str]) -> ImageFiles:
    examples = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).glob("**/*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not examples:
        raise UserError(f"config.data.dir: {folder} holds no images ({', '.join(SUFFIXES)})")
    return ImageFiles(tuple(path for path, _ in examples), np.asarray([label for _, label in examples], np.int32))


def _read_header(path: Path) -> tuple[str, tuple[int, int]]:
    """Reads Pillow's mode and (width, height); decodes no pixel."""
    try:
        with Image.open(path) as image:
            return image.mode, image.size
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"config.data.dir: {path} cannot be read as an image ({error})") from None


def _read_image(path: Path, grayscale: bool, size: tuple[int, int]) -> np.ndarray:
    """Decodes one image to [height, width, 1 or 3] uint8; `size` is (width, height)."""
    try:
        with Image.open(path) as image:
            if image.size != size:
                raise UserError(
                    f"{path} has {image.size[0]}x{image.size[1]} pixels, the first "
                    f"{size[0]}x{size[1]}; resize them, or set config.data.pipeline to 'stream' "
                    "and config.data.image_size"
                )
            pixels = np.asarray(image.convert("L" if grayscale else "RGB"), np.uint8)
    except OSError as error:
        raise UserError(f"config.data.dir: {path} cannot be read as an image ({error})") from None
    return pixels[..., None] if grayscale else pixels
