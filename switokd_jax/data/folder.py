"""A folder of images as a data set: FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png, or other image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from switokd_jax.fields import ConfigError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def read_folder(root: Path) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], list[str]]:
    """Reads both splits; classes are the names of the training folders, sorted.

    Returns:
      (images, labels) of train, the same of test, and the classes. Images are [n, height, width, channels] uint8 with
      one channel where all are grey, else three; labels are [n] int32.

    Raises:
      ConfigError: naming the folder or file that is missing, broken or of another size.
    """
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise ConfigError(f"config.data.dir: there is no folder {root / split}; it holds a folder for each class")
    classes = sorted(path.name for path in (root / "train").iterdir() if path.is_dir())
    if not classes:
        raise ConfigError(f"config.data.dir: {root / 'train'} holds no folders; make one for each class")
    if stray := sorted({path.name for path in (root / "test").iterdir() if path.is_dir()} - {*classes}):
        raise ConfigError(f"config.data.dir: {root / 'test' / stray[0]} is a class that {root / 'train'} does not have")
    files = {split: _files(root / split, classes) for split in ("train", "test")}
    everything = [path for split in files.values() for path, _ in split]
    headers = [_header(path) for path in everything]
    grey, size = all(mode in ("L", "1", "I;16") for mode, _ in headers), headers[0][1]
    train, test = (
        (
            np.stack(
                [_read(path, grey, size) for path, _ in tqdm(found, desc=f"reading {split}", delay=2, disable=None)]
            ),
            np.asarray([label for _, label in found], np.int32),
        )
        for split, found in files.items()
    )
    return train, test, classes


def _files(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).glob("**/*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise ConfigError(f"config.data.dir: {folder} holds no images ({', '.join(SUFFIXES)})")
    return found


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    """Mode and (width, height); no pixel is decoded."""
    try:
        with Image.open(path) as image:
            return image.mode, image.size
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"config.data.dir: {path} cannot be read as an image ({error})") from None


def _read(path: Path, grey: bool, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.size != size:
                raise ConfigError(
                    f"config.data.dir: {path} has {image.size[0]}x{image.size[1]} pixels, the first image "
                    f"{size[0]}x{size[1]}; the resident pipeline needs one size, so resize them first"
                )
            pixels = np.asarray(image.convert("L" if grey else "RGB"), np.uint8)
    except OSError as error:
        raise ConfigError(f"config.data.dir: {path} cannot be read as an image ({error})") from None
    return pixels[..., None] if grey else pixels
