"""CIFAR-10 and CIFAR-100 for TFDS, prepared from their official archives without TensorFlow.

Names, versions, features, keys and so the order of the examples are those of TFDS's own builders; the images are
encoded by Pillow. The archive is taken from DATA_DIR/downloads/manual if it is there, else downloaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from switokd_jax.data.archive import find_archive
from switokd_jax.errors import UserError

IMAGE_SHAPE = (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class Archive:
    """An official archive of binary files: for each image its labels, a byte each, then its planes of colors.

    Attributes:
      name: file name below https://www.cs.toronto.edu/~kriz/.
      sha256: of the archive, as TFDS pins it.
      folder: inside it.
      files: by split, inside the folder.
      labels: files with the names of the labels, by feature, in the order of the bytes.
      classes: number of names by feature.
    """

    name: str
    sha256: str
    folder: str
    files: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, str]
    classes: Mapping[str, int]

    @property
    def url(self) -> str:
        """Where it is published."""
        return f"https://www.cs.toronto.edu/~kriz/{self.name}"

    def read(self, path: Path, file: str) -> bytes:
        """Reads one file of the archive at `path`.

        Raises:
          KeyError: if it is not there.
          tarfile.TarError: if the archive is damaged.
        """
        with tarfile.open(path) as tar:
            content = tar.extractfile(f"{self.folder}/{file}")
            assert content is not None  # None stands for a folder
            return content.read()

    def label_names(self, path: Path) -> dict[str, list[str]]:
        """Reads the names of the labels, by feature."""
        return {feature: self.read(path, file).decode().split() for feature, file in self.labels.items()}

    def examples(self, path: Path, split: str) -> Iterator[tuple[np.ndarray, dict[str, int]]]:
        """Reads the images [32, 32, 3] uint8 of a split, each with its labels by feature."""
        size = len(self.labels) + int(np.prod(IMAGE_SHAPE))
        for file in self.files[split]:
            for row in np.frombuffer(self.read(path, file), np.uint8).reshape(-1, size):
                labels, planes = row[: len(self.labels)], row[len(self.labels) :]
                image = planes.reshape(IMAGE_SHAPE[2], *IMAGE_SHAPE[:2]).transpose(1, 2, 0)
                yield image, dict(zip(self.labels, map(int, labels), strict=True))


CIFAR10 = Archive(
    name="cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
    files={"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    labels={"label": "batches.meta.txt"},
    classes={"label": 10},
)
CIFAR100 = Archive(
    name="cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    folder="cifar-100-binary",
    files={"train": ("train.bin",), "test": ("test.bin",)},
    labels={"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
    classes={"coarse_label": 20, "label": 100},
)

with tfds.core.registered.skip_registration():  # TFDS has builders of these names

    class Cifar10(tfds.core.GeneratorBasedBuilder):
        """60,000 color images of 32 pixels in ten classes, 10,000 of them to test on."""

        name = "cifar10"
        VERSION = tfds.core.Version("3.0.2")
        archive = CIFAR10
        urls = (CIFAR10.url,)
        needs_tensorflow = False
        MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the archive of binary files here, or let it be downloaded."

        def _info(self) -> Any:
            labels = {name: tfds.features.ClassLabel(num_classes=n) for name, n in self.archive.classes.items()}
            image = tfds.features.Image(shape=IMAGE_SHAPE, dtype=np.uint8, encoding_format="png")
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"id": tfds.features.Text(), "image": image, **labels}),
                supervised_keys=("image", "label"),
                homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
            path = find_archive(dl_manager, self.archive.url)
            check_sha256(path, self.archive.sha256)
            for feature, names in self.archive.label_names(path).items():
                self.info.features[feature].names = names
            return {split: self._generate_examples(path, split) for split in self.archive.files}

        def _generate_examples(self, path: Path, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, (image, labels) in enumerate(self.archive.examples(path, split)):
                yield index, {"id": f"{split}_{index:05d}", "image": to_png(image), **labels}

    class Cifar100(Cifar10):
        """60,000 color images of 32 pixels in 100 classes and 20 groups of classes, 10,000 of them to test on."""

        name = "cifar100"
        archive = CIFAR100
        urls = (CIFAR100.url,)


BUILDERS = {builder.name: builder for builder in (Cifar10, Cifar100)}


def check_sha256(path: Path, expected: str) -> None:
    """Checks that a file is the published one.

    Raises:
      UserError: if it is not.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise UserError(
            f"{path} is not the published archive (SHA-256 {found[:12]}..., not {expected[:12]}...); remove it"
        )


def to_png(image: np.ndarray) -> io.BytesIO:
    """Encodes an image [height, width, channels] uint8."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(out, format="PNG")
    out.seek(0)
    return out
