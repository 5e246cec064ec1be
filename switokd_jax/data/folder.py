"""A folder of images as a data set: FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png, or other image files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from switokd_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Image files of a split with their labels; `encoded.Records` of them."""

    paths: tuple[Path, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[bytes, int]:
        return self.paths[place].read_bytes(), int(self.labels[place])

    def describe(self, place: int) -> str:
        """Its path."""
        return f"config.data.dir: {self.paths[place]}"


def find_files(root: Path) -> tuple[Files, Files, list[str]]:
    """The files of train and of test, and the classes: the names of the training folders, sorted.

    Raises:
      ConfigError: naming the folder that is missing or empty.
    """
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise UserError(f"config.data.dir: there is no folder {root / split}; it holds a folder for each class")
    classes = sorted(path.name for path in (root / "train").iterdir() if path.is_dir())
    if not classes:
        raise UserError(f"config.data.dir: {root / 'train'} holds no folders; make one for each class")
    if stray := sorted({path.name for path in (root / "test").iterdir() if path.is_dir()} - {*classes}):
        raise UserError(f"config.data.dir: {root / 'test' / stray[0]} is a class that {root / 'train'} does not have")
    train, test = (_files(root / split, classes) for split in ("train", "test"))
    return train, test, classes


def read_files(train: Files, test: Files) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, height, width, channels] uint8 of both splits; one channel where all are grey, else three.

    Raises:
      ConfigError: naming the file that is broken or of another size.
    """
    headers = [_header(path) for files in (train, test) for path in files.paths]
    grey, size = all(mode in ("L", "1", "I;16") for mode, _ in headers), headers[0][1]
    images = [
        np.stack([_read(path, grey, size) for path in tqdm(files.paths, desc="reading images", delay=2, disable=None)])
        for files in (train, test)
    ]
    return images[0], images[1]


def _files(folder: Path, classes: list[str]) -> Files:
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).glob("**/*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise UserError(f"config.data.dir: {folder} holds no images ({', '.join(SUFFIXES)})")
    return Files(tuple(path for path, _ in found), np.asarray([label for _, label in found], np.int32))


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    """Mode and (width, height); no pixel is decoded."""
    try:
        with Image.open(path) as image:
            return image.mode, image.size
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"config.data.dir: {path} cannot be read as an image ({error})") from None


def _read(path: Path, grey: bool, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.size != size:
                raise UserError(
                    f"{path} has {image.size[0]}x{image.size[1]} pixels, the first "
                    f"{size[0]}x{size[1]}; resize them, or set config.data.pipeline to 'stream' "
                    "and config.data.image_size"
                )
            pixels = np.asarray(image.convert("L" if grey else "RGB"), np.uint8)
    except OSError as error:
        raise UserError(f"config.data.dir: {path} cannot be read as an image ({error})") from None
    return pixels[..., None] if grey else pixels
