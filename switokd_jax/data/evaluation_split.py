"""One split of a data set for the networks of a run: with the run's labels, channels and image size.

Only that split is read. Its classes are matched with the run's by name: a subset is fine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from switokd_jax.config import DataConfig
from switokd_jax.data import dataset, folder
from switokd_jax.data.dataset import Split
from switokd_jax.data.image_records import ArrayRecords, ImageSpec, Records, RecordSplit, check_label
from switokd_jax.data.normalization import PUBLISHED
from switokd_jax.data.tfds_source import open_tfds
from switokd_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class RelabeledRecords:
    """Records with other labels: `image_records.Records`.

    Attributes:
      records: as they are stored.
      labels_of_run: [classes] int32, the run's label by stored label.
    """

    records: Records
    labels_of_run: np.ndarray

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, int]:
        encoded, label = self.records[index]
        check_label(label, len(self.labels_of_run), self.describe(index))
        return encoded, int(self.labels_of_run[label])

    def describe(self, index: int) -> str:
        """Names an example as its records do."""
        return self.records.describe(index)


def load_evaluation_split(
    spec: DataConfig, split: str, seed: int, classes: Sequence[str], image_spec: ImageSpec
) -> Split | RecordSplit:
    """Loads or finds the images of one split.

    Args:
      spec: the config's `data` block, perhaps with another name and dir than the run's.
      split: 'test', 'validation' or 'train'; of a folder also the name of a folder.
      seed: of the run; decides which examples are held out.
      classes: of the run.
      image_spec: of the run.

    Raises:
      UserError: naming what cannot be read, or the class that the run does not know.
    """
    examples, own_classes = _open(spec, split, seed, classes)
    if own_classes != tuple(classes):
        examples = _relabel(examples, own_classes, classes, f"--data {spec.name!r}")
    if isinstance(examples, Split) and examples.images.shape[1:] != image_spec.shape:
        # Encoded images are brought to the run's channels as they are decoded; arrays as well.
        examples = dataset.all_records(ArrayRecords(examples.images, examples.labels), examples.labels)
    return examples


def pixel_scale(name: str) -> float:
    """Returns the highest pixel value of a data set."""
    return PUBLISHED[name].scale if name in PUBLISHED else 255.0


def _open(
    spec: DataConfig, split: str, seed: int, classes: Sequence[str]
) -> tuple[Split | RecordSplit, tuple[str, ...]]:
    """Returns a split and the names of its labels."""
    if spec.name == "folder":
        if not spec.dir:
            raise UserError("--data_dir is missing; --data=folder reads DIR/test/CLASS")
        root = Path(spec.dir).expanduser()
        name = (spec.test_split or "test") if split == "test" else split
        if (split == "test" and (root / name).is_dir()) or not (root / "train").is_dir():
            files = folder.find_split(root, name, [*classes], "the run")
            return dataset.all_records(files, files.labels), tuple(classes)
    elif split == "test" and spec.name not in dataset.SOURCES:
        tfds_dataset = open_tfds(spec.name, spec.dir)
        if test_name := tfds_dataset.find_test_split(spec.test_split):
            return dataset.all_records(tfds_dataset.records(test_name), None), tuple(tfds_dataset.classes)
    loaded = dataset.load_dataset(spec, seed)
    return {"test": loaded.test, "validation": loaded.validation, "train": loaded.train}[split], loaded.classes


def _relabel(
    examples: Split | RecordSplit, own_classes: Sequence[str], classes: Sequence[str], where: str
) -> Split | RecordSplit:
    """Replaces labels by those of the run's classes of the same names."""
    if unknown := [name for name in own_classes if name not in classes]:
        raise UserError(
            f"{where} has a class {unknown[0]!r}, and the run's {len(classes)} classes have none of this name"
        )
    labels_of_run = np.asarray([classes.index(name) for name in own_classes], np.int32)
    if isinstance(examples, Split):
        return Split(examples.images, labels_of_run[examples.labels])
    labels = None if examples.labels is None else labels_of_run[examples.labels]
    return RecordSplit(
        RelabeledRecords(examples.records, labels_of_run), examples.record_indices, labels, num_classes=len(classes)
    )
