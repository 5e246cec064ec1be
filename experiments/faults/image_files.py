"""Reads odd and damaged image files through both pipelines and `predict`: the same pixels, or one line of each.

python experiments/faults/image_files.py --files=3000

Modes, bit depths, orientations, formats and sizes from 1x1 to 30 megapixels are drawn at random; two thirds of the
files are then damaged: cut, bytes changed, chunks repeated or removed. Exit status 1 if a reader raises anything but
one line that names the file, if two of them see other pixels, or if one accepts what another refuses.
"""

from __future__ import annotations

import collections
import io
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[2])]

from experiments.faults import storm
from switokd_jax import predict
from switokd_jax.analysis.trained_network import TrainedNetwork
from switokd_jax.data.decode import decode, read_file, to_pixels
from switokd_jax.data.folder import ImageFiles
from switokd_jax.data.image_records import ImageSpec, RecordSplit, load_example
from switokd_jax.data.normalization import Preprocess
from switokd_jax.errors import UserError
from switokd_jax.interop.stablehlo import ModelInfo

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "LAB", "HSV")
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
SUFFIX = {"PNG": "png", "JPEG": "jpg", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp", "PPM": "ppm"}
LARGE = 0.005  # share of files with up to 30 megapixels


def draw_image(rng: random.Random) -> tuple[bytes, str]:
    """Draws the content of an image file, and its suffix."""
    while True:
        mode, file_format = rng.choice(MODES), rng.choice(FORMATS)
        side = 5477 if rng.random() < LARGE else 64
        width, height = rng.randint(1, side), rng.randint(1, side)
        numbers = np.random.default_rng(rng.randrange(2**32))
        if mode == "I;16":
            image = Image.fromarray(numbers.integers(0, 2**16, (height, width)).astype(np.uint16))
        elif mode == "I":
            image = Image.fromarray(numbers.integers(-(2**31), 2**31, (height, width)).astype(np.int32))
        elif mode == "F":
            image = Image.fromarray(numbers.normal(size=(height, width)).astype(np.float32))
        else:
            grey = Image.fromarray(numbers.integers(0, 256, (height, width, 3)).astype(np.uint8))
            image = grey.convert("L").convert(mode) if mode in ("LA", "PA") else grey
            if mode not in ("LA", "PA", "LAB"):
                image = image.convert(mode)
        exif = Image.Exif()
        if rng.random() < 0.5:
            exif[0x0112] = rng.randint(0, 9)
        buffer = io.BytesIO()
        try:
            image.save(
                buffer, file_format, **({"exif": exif} if file_format in ("PNG", "JPEG", "WEBP", "TIFF") else {})
            )
        except (OSError, ValueError, KeyError):  # a mode that the format does not have
            continue
        return buffer.getvalue(), SUFFIX[file_format]


def damage(content: bytes, rng: random.Random) -> bytes:
    """Damages a file in one of several ways, or not at all."""
    way = rng.randrange(6)
    data = bytearray(content)
    if way == 0:
        return content[: rng.randrange(len(content))]
    if way in (1, 2):
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(min(len(data), 4000 if way == 1 else len(data)))] = rng.randrange(256)
    elif way == 3:
        start, size = rng.randrange(len(data)), rng.randrange(64)
        data[start:start] = data[start : start + size]
    return bytes(data)


def readers(path: Path) -> dict[str, Any]:
    """Reads a file as the resident pipeline, the stream and `predict` do: pixels, or the error."""
    files = ImageFiles((path,), np.zeros(1, np.int32))

    def resident() -> np.ndarray:
        encoded, _ = files[0]
        pixels = to_pixels(decode(encoded, None, files.describe(0)))
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))

    def stream() -> np.ndarray:
        split = RecordSplit(files, np.arange(1), files.labels, 1)
        height, width = to_pixels(decode(read_file(path), 3, "")).shape[:2]
        return load_example(split, 0, ImageSpec((height, width, 3), resized=False), None)[0]

    def predicted() -> np.ndarray:
        height, width = to_pixels(decode(read_file(path), 3, "")).shape[:2]
        info = ModelInfo("student", "resnet8", ("a", "b"), (height, width, 3))
        preprocess = Preprocess((0.0,) * 3, (1.0,) * 3)
        return predict.read_image(path, TrainedNetwork(info, None, None, preprocess))

    found: dict[str, Any] = {}
    for name, read in (("resident", resident), ("stream", stream), ("predict", predicted)):
        try:
            found[name] = read()
        except UserError as error:
            found[name] = error
    return found


def check(found: dict[str, Any], path: Path) -> list[str]:
    """Compares what the three readers saw; returns the faults."""
    errors = {name: result for name, result in found.items() if isinstance(result, UserError)}
    if errors and len(errors) < len(found):
        return [f"{path}: {', '.join(errors)} refuse it, and not the others"]
    if errors:
        first = str(errors["resident"])
        return [f"{path}: the line does not name the file, or is not one: {first}"] * (
            path.name not in first or "\n" in first or len(first) > 600
        )
    pixels = [*found.values()]
    same = all(each.dtype == np.uint8 and np.array_equal(each, pixels[0]) for each in pixels)
    return [] if same else [f"{path}: other pixels, {[each.shape for each in pixels]}"]


def run_experiment(folder: Path, count: int, rng: random.Random) -> list[str]:
    """Reads so many files; returns the faults, one line each."""
    warnings.simplefilter("ignore")  # of Pillow, about damaged EXIF data
    outcomes: collections.Counter[str] = collections.Counter()
    faults = []
    for i in range(count):
        content, suffix = draw_image(rng)
        path = folder / f"{i}.{suffix}"
        path.write_bytes(damage(content, rng) if i % 3 else content)
        found = readers(path)
        faults += (new := check(found, path))
        outcomes["refused" if isinstance(found["resident"], UserError) else "read"] += 1
        if not new:
            path.unlink()
    print(", ".join(f"{number} {what}" for what, number in outcomes.items()))
    return faults


if __name__ == "__main__":
    storm.prove(__doc__ or "", "files", run_experiment)
