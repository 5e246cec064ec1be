"""A folder of images as a data set."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_runs
from switokd_jax import config
from switokd_jax.data import dataset, folder
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


def test_a_second_start_decodes_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = tiny_runs.resident_splits(folder_config(root))
    assert len(decoded()) == 10
    second = tiny_runs.resident_splits(folder_config(root))
    assert len(decoded()) == 10
    for one, other in zip(first, second, strict=True):
        tiny_runs.assert_same_bits((one.images, one.labels), (other.images, other.labels))
    write_image(root / "test" / "bee" / "1.png", 33)
    _, _, test = tiny_runs.resident_splits(folder_config(root))
    assert len(decoded()) == 20
    assert test.images[-1, 0, 0, 0] == 33


def test_a_folder_with_a_damaged_image_is_decoded_at_each_start(root: Path, decoded: Callable[[], list[str]]) -> None:
    """Its messages are needed each time."""
    (root / "train" / "ant" / "2.png").write_bytes(b"no image")
    spec = dataclasses.replace(folder_config(root), on_bad_image="skip")
    for _ in range(2):
        data = dataset.load_dataset(spec, 0)
        assert len(data.train) == 5
        assert [message for message in data.skipped if "2.png" in message]
    assert decoded().count("2.png") >= 2
    with pytest.raises(UserError, match=r"ant/2\.png cannot be decoded"):
        dataset.load_dataset(folder_config(root), 0)


def test_threads_decode_the_same_and_name_the_same_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, _ = folder.find_train(root)
    monkeypatch.setattr(folder, "MIN_PHOTO_BYTES", 2**20)
    serial = [*folder._decode_files(files)]
    monkeypatch.setattr(folder, "MIN_PHOTO_BYTES", 0)
    tiny_runs.assert_same_bits(serial, [*folder._decode_files(files)])
    (root / "train" / "ant" / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"ant/1\.png cannot be decoded"):
        dataset.load_dataset(folder_config(root), 0)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Returns the function that lists the names of the files that have been decoded."""
    names, decode = list[str](), folder.decode

    def listed(encoded: bytes, channels: int | None, name: str) -> Image.Image:
        names.append(Path(name).name)
        return decode(encoded, channels, name)

    monkeypatch.setattr(folder, "decode", listed)
    return lambda: names


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


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "val": (rename_test, r"there is no folder \S+test; \S+val exists: set config.data.test_split to 'val'"),
    "no test": (
        lambda root: shutil.rmtree(root / "test"),
        r"there is no folder \S+test; it holds a folder for each class; without one, set config.data.validation_fr",
    ),
    "no train": (lambda root: shutil.rmtree(root / "train"), r"there is no folder \S+train \(No such file"),
    "empty class": (
        lambda root: (root / "train" / "cow").mkdir(),
        r"train/cow is a class without images .*; add some or remove the folder",
    ),
    "pipe": (
        lambda root: make_pipe(root / "train" / "ant" / "x.png"),
        r"ant/x\.png is no file but a pipe or device",
    ),
    "other class": (
        lambda root: write_image(root / "test" / "cat" / "0.png", 1),
        r"test/cat is a class that \S+train does",
    ),
    "other size": (
        lambda root: write_image(root / "train" / "bee" / "9.png", 1, size=(9, 9)),
        r"bee/9.png has 9x9 pixels, the first 10x12; resize them, or set config.data.pipeline",
    ),
    "no image": (write_garbage, r"ant/9.png cannot be decoded"),
    "truncated": (truncate_image, r"bee/0.png cannot be decoded"),
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


def test_hidden_names_are_no_classes_and_no_images(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(root / "train" / ".ipynb_checkpoints" / "0.png", 9)
    write_image(root / "train" / "ant" / ".cache" / "0.png", 9)
    write_image(root / "train" / "ant" / "._0.png", 9)
    (root / "train" / "list.csv").write_text("")
    with caplog.at_level("WARNING", logger="absl"):
        data = dataset.load_dataset(folder_config(root), 0)
    assert data.classes == ("ant", "bee")
    assert len(data.train) == 6
    (line,) = caplog.messages
    assert line.endswith(
        "train: left out 1 files outside the classes, 1 files that are no images (.txt), 3 hidden names"
    )


def test_links_are_followed_but_not_in_a_circle(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(root / "elsewhere" / "deep" / "7.png", 7)
    (root / "train" / "ant" / "more").symlink_to(root / "elsewhere", target_is_directory=True)
    (root / "elsewhere" / "deep" / "up").symlink_to(root / "elsewhere", target_is_directory=True)
    (root / "train" / "cow").symlink_to(root / "train" / "bee", target_is_directory=True)
    (root / "train" / "ant" / "lost.png").symlink_to(root / "nothing.png")
    with caplog.at_level("WARNING", logger="absl"):
        data = dataset.load_dataset(folder_config(root), 0)
    assert data.classes == ("ant", "bee", "cow")
    assert data.train.labels is not None
    assert np.bincount(data.train.labels).tolist() == [4, 3, 3]
    assert "1 links in a circle, 1 links to nothing" in caplog.messages[0]


def test_another_folder_can_be_the_test_split(root: Path) -> None:
    rename_test(root)
    spec = config.DataConfig(name="folder", dir=str(root), test_split="val")
    assert len(dataset.load_dataset(spec, 0).test) == 4


def test_a_folder_with_train_only_holds_images_out(root: Path) -> None:
    shutil.rmtree(root / "test")
    spec = config.DataConfig(name="folder", dir=str(root), validation_fraction=0.34)
    for pipeline in ("resident", "stream"):
        data = dataset.load_dataset(dataclasses.replace(spec, pipeline=pipeline), 0)
        assert (len(data.train), len(data.validation), len(data.test)) == (4, 2, 0)
