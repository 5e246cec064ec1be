"""Tiny-ImageNet-200 for TFDS: 100,000 training images of 64 pixels in 200 classes, and 10,000 to test on.

The public test set has no labels, so the public validation set is the test split, as in the SwitOKD tables. The
archive is taken from DATA_DIR/downloads/manual if it is there, else downloaded. Preparing needs no TensorFlow: images
keep their encoded bytes.

Importing this module registers 'tiny_imagenet_200' with TFDS.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from switokd_jax.data.archive import find_archive

NAME = "tiny_imagenet_200"
ARCHIVE = "tiny-imagenet-200.zip"
ROOT = "tiny-imagenet-200"


class TinyImagenet200(tfds.core.GeneratorBasedBuilder):
    """Color images of 64 pixels; a label is the index of the WordNet id in the archive's wnids.txt, sorted."""

    name = NAME
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {ARCHIVE} here, or let it be downloaded."
    urls = (f"http://cs231n.stanford.edu/{ARCHIVE}",)
    needs_tensorflow = False

    def _info(self) -> Any:
        image = tfds.features.Image(shape=(64, 64, 3), dtype=np.uint8, encoding_format="jpeg")
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(num_classes=200)}),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        archive = find_archive(dl_manager, self.urls[0])
        return {"train": self._generate_examples(archive, "train"), "test": self._generate_examples(archive, "val")}

    def _generate_examples(self, archive: Path, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
        with zipfile.ZipFile(archive) as file:
            wnids = sorted(file.read(f"{ROOT}/wnids.txt").decode().split())
            labels = {wnid: label for label, wnid in enumerate(wnids)}
            wnid_of_val_image = {}
            if folder == "val":
                lines = file.read(f"{ROOT}/val/val_annotations.txt").decode().splitlines()
                wnid_of_val_image = {line.split("\t")[0]: line.split("\t")[1] for line in lines if line}
            for path in file.namelist():
                parts = path.split("/")
                if parts[1:2] == [folder] and path.endswith(".JPEG"):
                    wnid = wnid_of_val_image[parts[-1]] if folder == "val" else parts[2]
                    yield parts[-1], {"image": io.BytesIO(to_rgb(file.read(path))), "label": labels[wnid]}


def to_rgb(encoded: bytes) -> bytes:
    """Returns an encoded image with three channels: the same bytes, or a PNG of one of the few grayscale images."""
    with Image.open(io.BytesIO(encoded)) as image:
        if image.mode == "RGB":
            return encoded
        out = io.BytesIO()
        image.convert("RGB").save(out, format="PNG")
        return out.getvalue()
