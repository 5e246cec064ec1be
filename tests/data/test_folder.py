"""A folder of images as a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_runs
from switokd_jax import config
from switokd_jax.data import dataset
from switokd_jax.errors import UserError


def picture(path: Path, value: int, mode: str = "RGB", size: tuple[int, int] = (10, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 7)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("ant", "bee")):
            for i in range(count):
                picture(tmp_path / split / name / f"{i}.png", 100 * label + i)
    (tmp_path / "train" / "bee" / "notes.txt").write_text("no image")
    return tmp_path


def test_reads_both_splits(root: Path) -> None:
    data = dataset.load_dataset(config.DataConfig(name="folder", dir=str(root)), 0)
    assert (len(data.classes), data.image_spec.shape, len(data.train), len(data.test)) == (2, (12, 10, 3), 6, 4)
    train, _, _ = tiny_runs.resident_splits(config.DataConfig(name="folder", dir=str(root)))
    np.testing.assert_array_equal(train.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(train.images[:, 0, 0, 0], [0, 1, 2, 100, 101, 102])
    assert (train.images[..., 2] == 7).all()


def test_grey_where_all_are(tmp_path: Path) -> None:
    for split in ("train", "test"):
        picture(tmp_path / split / "a" / "0.png", 5, "L")
    assert dataset.load_dataset(config.DataConfig(name="folder", dir=str(tmp_path)), 0).image_spec.shape == (12, 10, 1)
    picture(tmp_path / "train" / "b" / "0.png", 6)
    mixed = config.DataConfig(name="folder", dir=str(tmp_path))
    assert dataset.load_dataset(mixed, 0).image_spec.shape == (12, 10, 3)
    np.testing.assert_array_equal(tiny_runs.resident_splits(mixed)[0].images[0, 0, 0], [5, 5, 5])


def broken(root: Path) -> None:
    (root / "train" / "ant" / "9.png").write_bytes(b"\x89PNG nothing")


def cut(root: Path) -> None:
    path = root / "test" / "bee" / "0.png"
    noise = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:200])


def rename(root: Path) -> None:
    (root / "test").rename(root / "val")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no test": (rename, r"there is no folder \S+test; it holds a folder for each class"),
    "other class": (
        lambda root: picture(root / "test" / "cat" / "0.png", 1),
        r"test/cat is a class that \S+train does",
    ),
    "other size": (
        lambda root: picture(root / "train" / "bee" / "9.png", 1, size=(9, 9)),
        r"bee/9.png has 9x9 pixels, the first 10x12; resize them, or set config.data.pipeline",
    ),
    "no image": (broken, r"ant/9.png cannot be read as an image"),
    "cut short": (cut, r"bee/0.png cannot be read as an image"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_is_named(root: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(root)
    with pytest.raises(UserError, match=message):
        dataset.load_dataset(config.DataConfig(name="folder", dir=str(root)), 0)


def test_no_folder_named() -> None:
    with pytest.raises(UserError, match=r"config.data.dir is empty; data.name 'folder' reads DIR/train/CLASS"):
        dataset.load_dataset(config.DataConfig(name="folder"), 0)
