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


def write_image(path: Path, value: int, mode: str = "RGB", size: tuple[int, int] = (10, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 7)).save(path)


def folder_config(root: Path) -> config.DataConfig:
    return config.DataConfig(name="folder", dir=str(root))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("ant", "bee")):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i}.png", 100 * label + i)
    (tmp_path / "train" / "bee" / "notes.txt").write_text("no image")
    return tmp_path


def test_a_class_is_a_folder_and_other_files_are_left_out(root: Path) -> None:
    data = dataset.load_dataset(folder_config(root), 0)
    assert (data.classes, data.image_spec.shape) == (("ant", "bee"), (12, 10, 3))
    assert (len(data.train), len(data.test)) == (6, 4)


def test_images_are_in_the_order_of_their_paths(root: Path) -> None:
    train, _, _ = tiny_runs.resident_splits(folder_config(root))
    np.testing.assert_array_equal(train.labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(train.images[:, 0, 0, 0], [0, 1, 2, 100, 101, 102])
    assert (train.images[..., 2] == 7).all()


@pytest.fixture
def grayscale_root(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        write_image(tmp_path / split / "a" / "0.png", 5, "L")
    return tmp_path


def test_images_have_one_channel_if_all_are_grayscale(grayscale_root: Path) -> None:
    assert dataset.load_dataset(folder_config(grayscale_root), 0).image_spec.shape == (12, 10, 1)


def test_grayscale_images_among_others_get_three_channels(grayscale_root: Path) -> None:
    write_image(grayscale_root / "train" / "b" / "0.png", 6)
    train, _, _ = tiny_runs.resident_splits(folder_config(grayscale_root))
    assert train.images.shape == (2, 12, 10, 3)
    np.testing.assert_array_equal(train.images[0, 0, 0], [5, 5, 5])


def write_garbage(root: Path) -> None:
    (root / "train" / "ant" / "9.png").write_bytes(b"\x89PNG nothing")


def truncate_image(root: Path) -> None:
    path = root / "test" / "bee" / "0.png"
    noise = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:200])


def rename_test(root: Path) -> None:
    (root / "test").rename(root / "val")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no test": (rename_test, r"there is no folder \S+test; it holds a folder for each class"),
    "other class": (
        lambda root: write_image(root / "test" / "cat" / "0.png", 1),
        r"test/cat is a class that \S+train does",
    ),
    "other size": (
        lambda root: write_image(root / "train" / "bee" / "9.png", 1, size=(9, 9)),
        r"bee/9.png has 9x9 pixels, the first 10x12; resize them, or set config.data.pipeline",
    ),
    "no image": (write_garbage, r"ant/9.png cannot be read as an image"),
    "truncated": (truncate_image, r"bee/0.png cannot be read as an image"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_a_folder_that_cannot_be_used_is_refused_by_name(
    root: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(root)
    with pytest.raises(UserError, match=message):
        dataset.load_dataset(folder_config(root), 0)


def test_a_config_that_names_no_folder_is_refused() -> None:
    with pytest.raises(UserError, match=r"config.data.dir is empty; data.name 'folder' reads DIR/train/CLASS"):
        dataset.load_dataset(config.DataConfig(name="folder"), 0)
