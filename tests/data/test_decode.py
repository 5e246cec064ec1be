"""The decoder: the same pixels in both pipelines and in predict, or one line that names the image."""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_runs
from switokd_jax import config
from switokd_jax.data import dataset, decode
from switokd_jax.data.decode import ImageError
from switokd_jax.data.image_records import RecordSplit, load_example
from switokd_jax.data.loader import Loader, make_loader
from switokd_jax.data.sampling import ProcessShard, steps_per_epoch
from switokd_jax.errors import UserError


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels_of(content: bytes, channels: int | None = None) -> np.ndarray:
    return decode.to_pixels(decode.decode(content, channels, "it"))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_by_1_257(file_format: str) -> None:
    values = np.asarray([[0, 127, 128, 129], [256, 257, 32896, 65535]], np.uint16)
    image = Image.fromarray(values)
    found = pixels_of(encoded(image, file_format))
    np.testing.assert_array_equal(found[..., 0], [[0, 0, 0, 1], [1, 1, 128, 255]])
    assert found.shape == (2, 4, 1)


def test_big_endian_sixteen_bits() -> None:
    tags = [(256, 3, 1, 2), (257, 3, 1, 1), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 1, 4)]
    entries = b"".join(
        struct.pack(">HHI", tag, kind, count)
        + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, count, value in tags
    )
    content = b"MM\x00*" + struct.pack(">I", 12) + struct.pack(">HH", 257, 65535)
    content += struct.pack(">H", len(tags)) + entries + bytes(4)
    np.testing.assert_array_equal(pixels_of(content)[..., 0], [[1, 255]])


@pytest.mark.parametrize(
    ("image", "file_format", "message"),
    [
        (Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF", "it has 32-bit float pixels"),
        (Image.fromarray(np.zeros((2, 2), np.int32)), "TIFF", "it has 32-bit integer pixels"),
    ],
)
def test_other_depths_are_refused_by_name(image: Image.Image, file_format: str, message: str) -> None:
    with pytest.raises(ImageError, match=f"^it cannot be decoded \\({message}\\); convert it to 8 bits or remove it"):
        pixels_of(encoded(image, file_format))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_all_8_bit_modes_become_grey_or_colour(mode: str) -> None:
    source = tiny_runs.photograph(6, 5).convert(mode)
    file_format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    found = pixels_of(encoded(source, file_format))
    assert found.shape == (6, 5, 1 if mode in ("1", "L") else 3)
    assert pixels_of(encoded(source, file_format), 3).shape == (6, 5, 3)
    assert pixels_of(encoded(source, file_format), 1).shape == (6, 5, 1)


def png_with_a_spoilt_chunk() -> bytes:
    content = encoded(tiny_runs.photograph(6, 5))
    return content.replace(b"IDAT", b"ID\xffT")


def png_of_196_megapixels() -> bytes:
    header = struct.pack(">IIBBBBB", 14000, 14000, 8, 0, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


DAMAGED = {
    "empty": (b"", "the file is empty"),
    "text": (b"no image", "not an image of a known format"),
    "spoilt chunk": (png_with_a_spoilt_chunk(), ""),
    "196 megapixels": (png_of_196_megapixels(), "exceeds limit"),
    "cut JPEG": (encoded(tiny_runs.photograph(60, 50), "JPEG")[:400], ""),
    "cut GIF": (encoded(tiny_runs.photograph(60, 50), "GIF")[:60], ""),
}


@pytest.mark.parametrize(("content", "reason"), DAMAGED.values(), ids=DAMAGED.keys())
def test_whatever_a_decoder_raises_becomes_one_line(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        pixels_of(content)
    assert str(caught.value).startswith("it cannot be decoded (")
    assert str(caught.value).endswith("replace or remove it")
    assert reason in str(caught.value)
    assert "BytesIO" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    """A pipe would hang, and a device has no end."""
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name, message in (
        ("folder", "is no file but a folder"),
        ("pipe", "is no file but a pipe or device"),
        ("zero", "is no file but a pipe or device"),
        ("missing", "cannot be read"),
    ):
        with pytest.raises(ImageError, match=rf"{name}\.png {message}"):
            decode.read_file(tmp_path / f"{name}.png")


def oriented(root: Path, orientation: int) -> None:
    """A data set of one photograph whose EXIF data says how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = tiny_runs.photograph(8, 8, seed=3)
    for split in ("train", "test"):
        for name in "ab":
            path = root / split / name / "0.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo.save(path, exif=exif)


TURNED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_in_both_pipelines(tmp_path: Path, orientation: int) -> None:
    oriented(tmp_path, orientation)
    expected = TURNED[orientation](np.asarray(tiny_runs.photograph(8, 8, seed=3)))
    train, _, test = tiny_runs.resident_splits(config.DataConfig(name="folder", dir=str(tmp_path)))
    for images in (train.images, test.images):
        np.testing.assert_array_equal(images, [expected, expected])
    streamed = dataset.load_dataset(config.DataConfig(name="folder", dir=str(tmp_path), pipeline="stream"), 0)
    assert isinstance(streamed.test, RecordSplit)
    np.testing.assert_array_equal(load_example(streamed.test, 1, streamed.image_spec, None)[0], expected)


def stream_that_skips(root: Path, split: str, batch_size: int) -> tuple[Loader, list[str]]:
    """A stream of photographs, of which three cannot be decoded, and the list that their messages come to."""
    tiny_runs.photographs(root, 24)
    (root / "train" / "a" / "000.png").write_bytes(b"")
    (root / "train" / "a" / "002.png").write_bytes(b"no image")
    (root / "test" / "b" / "007.png").write_bytes(png_with_a_spoilt_chunk())
    spec = config.DataConfig(
        name="folder", dir=str(root), pipeline="stream", image_size=16, workers=0, on_bad_image="skip"
    )
    data, skipped = dataset.load_dataset(spec, 0), list[str]()
    loader = make_loader(getattr(data, split), data.image_spec, spec, 0, batch_size, ProcessShard())
    return dataclasses.replace(loader, report_skipped=skipped.extend), skipped


def test_a_stream_replaces_training_images_that_it_skips(tmp_path: Path) -> None:
    loader, skipped = stream_that_skips(tmp_path, "train", batch_size=7)
    batches = [batch for _, batch in loader.train_batches(0, steps_per_epoch(loader.num_examples, 7))]
    indices = np.concatenate([batch.index for batch in batches])
    # Images 0 and 1 of class a are the bad ones; image 2 stands in for both.
    assert sorted(indices.tolist()) == sorted([2, 2, *range(2, loader.num_examples)])
    assert len(skipped) == 3  # the first is tried for itself, the second for both
    assert all(("000.png" in line) or ("002.png" in line) for line in skipped)
    assert all(batch.images.any(axis=(1, 2, 3)).all() for batch in batches)


def test_a_stream_masks_images_to_evaluate_that_it_skips(tmp_path: Path) -> None:
    loader, skipped = stream_that_skips(tmp_path, "test", batch_size=4)
    (batch,) = [batch for _, batch in loader.eval_batches()]
    assert batch.mask.tolist() == [0.0, 1.0, 1.0, 0.0]  # the bad image, two good ones, padding
    assert [Path(line.split()[1]).name for line in skipped] == ["007.png"]


def test_images_in_memory_are_left_out_and_told(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("train", "b"), ("test", "a")):
        for i in range(3):
            path = tmp_path / split / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            tiny_runs.photograph(8, 8, i).save(path)
    (tmp_path / "train" / "b" / "1.png").write_bytes(b"")
    spec = config.DataConfig(name="folder", dir=str(tmp_path), on_bad_image="skip")
    data = dataset.load_dataset(spec, 0)
    assert (len(data.train), len(data.test)) == (5, 3)
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert len(data.skipped) == 1
    assert "train/b/1.png cannot be decoded (the file is empty)" in data.skipped[0]
    with pytest.raises(UserError, match=r"train/b/1\.png cannot be decoded"):
        dataset.load_dataset(dataclasses.replace(spec, on_bad_image="stop"), 0)
