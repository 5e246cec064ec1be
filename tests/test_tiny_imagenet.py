"""The Tiny-ImageNet builder on a fake archive of the same form."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from switokd_jax import fields
from switokd_jax.data import sources

WNIDS = [f"n{i:08}" for i in range(200)]


def jpeg(colour: tuple[int, int, int] | int) -> bytes:
    out = io.BytesIO()
    Image.new("L" if isinstance(colour, int) else "RGB", (64, 64), colour).save(out, format="JPEG", quality=95)
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with the archive where somebody would put it: one image a class, every tenth of them grey."""
    data_dir = tmp_path_factory.mktemp("tfds")
    manual = data_dir / "downloads" / "manual"
    manual.mkdir(parents=True)
    with zipfile.ZipFile(manual / "tiny-imagenet-200.zip", "w") as file:
        file.writestr("tiny-imagenet-200/wnids.txt", "\n".join(reversed(WNIDS)))
        annotations = []
        for i, wnid in enumerate(WNIDS):
            picture = jpeg(i) if i % 10 == 0 else jpeg((i, 0, 255 - i))
            file.writestr(f"tiny-imagenet-200/train/{wnid}/images/{wnid}_0.JPEG", picture)
            file.writestr(f"tiny-imagenet-200/train/{wnid}/{wnid}_boxes.txt", "not an image")
            if i < 20:
                file.writestr(f"tiny-imagenet-200/val/images/val_{i}.JPEG", picture)
                annotations.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t63\t63")
                file.writestr(f"tiny-imagenet-200/test/images/test_{i}.JPEG", picture)
        file.writestr("tiny-imagenet-200/val/val_annotations.txt", "\n".join(annotations))
    return data_dir


def test_prepares_and_reads_without_tensorflow(folder: Path) -> None:
    """In a process where importing TensorFlow fails; a second look finds it prepared."""
    script = (
        "import importlib.machinery, sys\n"
        "class Refuse:\n"
        "    def create_module(self, spec): return None\n"
        "    def exec_module(self, module): raise ImportError('TensorFlow was imported')\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'tensorflow': return importlib.machinery.ModuleSpec(name, Refuse())\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from switokd_jax.data import sources\n"
        "print(len(sources.load('tiny_imagenet_200', sys.argv[1], 0.0, 0).train))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "200"

    data = sources.load("tiny_imagenet_200", str(folder), 0.0, 0)
    assert (data.num_classes, data.image_shape, len(data.train), len(data.test)) == (200, (64, 64, 3), 200, 20)
    assert data.preprocess.std == (0.2023, 0.1994, 0.2010)
    # Labels are the sorted ids' places, whatever the order in wnids.txt; grey images have three channels.
    for split in (data.train, data.test):
        for picture, label in zip(split.images, split.labels, strict=True):
            expected = (label, label, label) if label % 10 == 0 else (label, 0, 255 - label)
            np.testing.assert_allclose(picture[32, 32].astype(int), expected, atol=3)


def test_no_archive_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    message = r"fetch http://\S+tiny-imagenet-200.zip and put it into \S+downloads/manual"
    with pytest.raises(fields.ConfigError, match=message):
        sources.load("tiny_imagenet_200", str(tmp_path), 0.0, 0)
