"""Writes tests/data/tfds: 50 + 21 random images in 4 classes, prepared by TFDS as array_record.

python tests/data/make_tiny_images.py tests/data/tfds
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """Data set of random 8x8 color images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        image = tfds.features.Image(shape=(8, 8, 3), dtype=np.uint8)
        label = tfds.features.ClassLabel(num_classes=4)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"image": image, "label": label})
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        return {"train": self._generate_examples(50, 0), "test": self._generate_examples(21, 1)}

    def _generate_examples(self, count: int, seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
        rng = np.random.default_rng(seed)
        for i in range(count):
            yield i, {"image": rng.integers(0, 256, (8, 8, 3)).astype(np.uint8), "label": i % 4}


if __name__ == "__main__":
    TinyImages(data_dir=sys.argv[1]).download_and_prepare(file_format="array_record")
