"""The Tiny-ImageNet builder on a fake archive of the same form."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import tiny_runs
from switokd_jax import config
from switokd_jax.data import dataset, tiny_imagenet
from switokd_jax.errors import UserError

WNIDS = [f"n{i:08}" for i in range(200)]


def jpeg(color: tuple[int, int, int] | int, corner: tuple[int, int, int] | int | None = None) -> bytes:
    out = io.BytesIO()
    image = Image.new("L" if isinstance(color, int) else "RGB", (64, 64), color)
    if corner is not None:
        image.paste(corner, (0, 0, 16, 16))
    image.save(out, format="JPEG", quality=95)
    return out.getvalue()


def write_archive(path: Path) -> None:
    """Writes one training image per class, every tenth of them grayscale, and 20 test images with another corner."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny-imagenet-200/wnids.txt", "\n".join(reversed(WNIDS)))
        annotations = []
        for i, wnid in enumerate(WNIDS):
            image = jpeg(i) if i % 10 == 0 else jpeg((i, 0, 255 - i))
            file.writestr(f"tiny-imagenet-200/train/{wnid}/images/{wnid}_0.JPEG", image)
            file.writestr(f"tiny-imagenet-200/train/{wnid}/{wnid}_boxes.txt", "not an image")
            if i < 20:
                val_image = jpeg(i, corner=99) if i % 10 == 0 else jpeg((i, 0, 255 - i), corner=(99, 99, 99))
                file.writestr(f"tiny-imagenet-200/val/images/val_{i}.JPEG", val_image)
                annotations.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t63\t63")
                file.writestr(f"tiny-imagenet-200/test/images/test_{i}.JPEG", image)
        file.writestr("tiny-imagenet-200/val/val_annotations.txt", "\n".join(annotations))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> config.DataConfig:
    """The data set, prepared from an archive in the manual folder by a process that cannot import TensorFlow."""
    data_dir = tmp_path_factory.mktemp("tfds")
    manual = data_dir / "downloads" / "manual"
    manual.mkdir(parents=True)
    write_archive(manual / "tiny-imagenet-200.zip")
    script = (
        "import sys\n"
        "from switokd_jax import config\n"
        "from switokd_jax.data import dataset\n"
        "print(len(dataset.load_dataset(config.DataConfig(name='tiny_imagenet_200', dir=sys.argv[1]), 0).train))\n"
    )
    assert tiny_runs.run_without_tensorflow(script, str(data_dir)) == "200"
    return config.DataConfig(name="tiny_imagenet_200", dir=str(data_dir))


@pytest.mark.slow
class TestBuilder(tfds.testing.DatasetBuilderTestCase):
    """TFDS's own test case, on the archive as it comes from the network; the manual folder is tested below."""

    DATASET_CLASS = tiny_imagenet.TinyImagenet200
    SPLITS: ClassVar = {"train": 200, "test": 20}
    DL_DOWNLOAD_RESULT = "downloaded.zip"
    # None are registered: the archive is its authors' to change, and TFDS then takes what the server sends.
    SKIP_CHECKSUMS = True

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.EXAMPLE_DIR = cls.enterClassContext(tempfile.TemporaryDirectory())
        write_archive(Path(cls.EXAMPLE_DIR) / cls.DL_DOWNLOAD_RESULT)


@pytest.mark.slow
def test_it_is_prepared_without_tensorflow(prepared: config.DataConfig) -> None:
    data = dataset.load_dataset(prepared, 0)
    assert (len(data.classes), data.image_spec.shape, len(data.train), len(data.test)) == (200, (64, 64, 3), 200, 20)


@pytest.mark.slow
def test_it_has_the_published_constants(prepared: config.DataConfig) -> None:
    assert dataset.load_dataset(prepared, 0).preprocess.std == (0.2023, 0.1994, 0.2010)


@pytest.mark.slow
def test_labels_are_the_indices_of_the_sorted_ids_and_grayscale_images_have_three_channels(
    prepared: config.DataConfig,
) -> None:
    """The archive lists the ids in another order; an image's color tells its label."""
    train, _, test = tiny_runs.resident_splits(prepared)
    for split in (train, test):
        for image, label in zip(split.images, split.labels, strict=True):
            expected = (label, label, label) if label % 10 == 0 else (label, 0, 255 - label)
            np.testing.assert_allclose(image[32, 32].astype(int), expected, atol=3)


def test_without_archive_and_network_the_message_says_what_to_fetch_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    message = r"fetch http://\S+tiny-imagenet-200.zip and put it into \S+downloads/manual"
    with pytest.raises(UserError, match=message):
        dataset.load_dataset(config.DataConfig(name="tiny_imagenet_200", dir=str(tmp_path)), 0)
