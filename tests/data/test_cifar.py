"""CIFAR-10 and CIFAR-100 from archives of the official form, prepared without TensorFlow."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import tiny_runs
from switokd_jax import config
from switokd_jax.data import cifar, dataset
from switokd_jax.errors import UserError


def planes(count: int, labels: int, seed: int) -> np.ndarray:
    """Rows of an archive's files: labels, then red, green and blue."""
    rows = np.random.default_rng(seed).integers(0, 256, (count, labels + 3072)).astype(np.uint8)
    rows[:, :labels] %= 10
    return rows


def write_archive(path: Path, archive: cifar.Archive) -> dict[str, np.ndarray]:
    """Writes a small archive of the official form, and returns its rows by split."""
    names = {
        file: "\n".join(f"{kind}_{i}" for i in range(archive.classes[kind])) for kind, file in archive.labels.items()
    }
    rows = {}
    with tarfile.open(path, "w:gz") as tar:
        for split, files in archive.files.items():
            parts = [planes(7, len(archive.labels), 10 * len(split) + i) for i, _ in enumerate(files)]
            rows[split] = np.concatenate(parts)
            for file, part in zip(files, parts, strict=True):
                tiny_runs.add_to_tar(tar, f"{archive.folder}/{file}", part.tobytes())
        for file, text in names.items():
            tiny_runs.add_to_tar(tar, f"{archive.folder}/{file}", f"{text}\n\n".encode())
    return rows


# Prepares a data set; the archive's checksum is that of the small one.
SCRIPT = """
import dataclasses, sys
from switokd_jax import config
from switokd_jax.data import cifar, dataset
builder = cifar.BUILDERS[sys.argv[2]]
builder.archive = dataclasses.replace(builder.archive, sha256=sys.argv[3])
print(len(dataset.load_dataset(config.DataConfig(name=sys.argv[2], dir=sys.argv[1]), 0).train))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_it_is_prepared_from_its_archive_without_tensorflow(tmp_path: Path, name: str) -> None:
    """And read by TFDS's own class, to the last pixel."""
    archive = cifar.BUILDERS[name].archive
    path = tmp_path / "downloads" / "manual" / archive.name
    path.parent.mkdir(parents=True)
    rows = write_archive(path, archive)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    assert tiny_runs.run_without_tensorflow(SCRIPT, str(tmp_path), name, checksum) == str(len(rows["train"]))
    spec = config.DataConfig(name=name, dir=str(tmp_path))
    for split, found in zip(("train", "test"), tiny_runs.resident_splits(spec)[::2], strict=True):
        order = {image.tobytes(): i for i, image in enumerate(found.images)}
        for row in rows[split]:
            image = row[len(archive.labels) :].reshape(3, 32, 32).transpose(1, 2, 0)
            assert found.labels[order[image.tobytes()]] == row[len(archive.labels) - 1]
    assert dataset.load_dataset(spec, 0).classes[3] == "label_3"


def test_images_keep_their_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(cifar.to_png(image))), image)


def test_another_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / cifar.CIFAR10.name
    write_archive(path, cifar.CIFAR10)
    with pytest.raises(UserError, match=r"cifar-10-binary.tar.gz is not the published archive .*; remove it"):
        cifar.check_sha256(path, cifar.CIFAR10.sha256)


def test_another_version_is_prepared_by_tfds(tmp_path: Path) -> None:
    from switokd_jax.data.tfds_source import own_builder

    ours = own_builder(SimpleNamespace(name="cifar10", version="3.0.2"), str(tmp_path))
    assert type(ours) is cifar.Cifar10
    assert own_builder(SimpleNamespace(name="cifar10", version="3.1.0"), str(tmp_path)) is None
    assert own_builder(SimpleNamespace(name="mnist", version="3.0.1"), str(tmp_path)) is None


def test_checksums_are_those_of_tfds() -> None:
    import tensorflow_datasets as tfds

    for name, builder in cifar.BUILDERS.items():
        (published,) = tfds.builder_cls(name).url_infos.values()
        assert (published.checksum, builder.archive.url) == (builder.archive.sha256, builder.urls[0])
        assert builder.archive.url in tfds.builder_cls(name).url_infos
