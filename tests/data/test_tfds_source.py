"""Data sets of TFDS: what is said of one that cannot be fetched, and ImageNet from its archives."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

import tiny_runs
from switokd_jax import config
from switokd_jax.data import dataset, loader, sampling, tfds_source
from switokd_jax.errors import UserError

WNIDS = {"n01440764": 0, "n01443537": 1, "n15075141": 999}


def test_a_data_dir_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.data.dir '.*nowhere' is not a folder"):
        dataset.load_dataset(config.DataConfig(name="cifar100", dir=f"{tmp_path}/nowhere"), 0)


def test_without_network_the_message_has_the_command_that_prepares_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"run: tfds build mnist --file_format=array_record --data_dir="):
        dataset.load_dataset(config.DataConfig(name="mnist", dir=str(tmp_path)), 0)
    with pytest.raises(UserError, match=r"fetch \S+/cifar-10-binary.tar.gz and put it into \S+/downloads/manual$"):
        dataset.load_dataset(config.DataConfig(name="cifar10", dir=str(tmp_path)), 0)


def test_without_tensorflow_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"prepares 'mnist' with TensorFlow; pip install 'switokd_jax\[prepare\]', or"):
        dataset.load_dataset(config.DataConfig(name="mnist", dir=str(tmp_path)), 0)


def test_without_its_archives_the_message_says_where_to_put_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manual_dir is \S+downloads/manual: manual_dir should contain two"):
        tfds_source.open_tfds("imagenet2012", str(tmp_path))


def test_an_unreadable_shard_is_named_with_the_command_that_makes_it_again(tmp_path: Path) -> None:
    shards = tfds_source.Shards((f"{tmp_path}/x-00000", f"{tmp_path}/x-00001"), (2, 3), "tfds build x")
    with (
        pytest.raises(UserError, match=r"data shard \S+x-00001 cannot be read \(torn\); .* run: tfds build x$"),
        shards.reading(2),
    ):
        raise ValueError("torn")


def test_a_missing_shard_is_named_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "x-00000").write_bytes(b"")
    shards = tfds_source.Shards((f"{tmp_path}/x-00000", f"{tmp_path}/x-00001"), (2, 3), "tfds build x")
    with pytest.raises(UserError, match=r"data shard \S+x-00001 cannot be read \(No such file"):
        shards.check()


def jpeg(seed: int) -> bytes:
    out = io.BytesIO()
    tiny_runs.photograph(40 + seed, 60 - seed, seed).save(out, format="JPEG")
    return out.getvalue()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with small archives of the official form: three classes of three images, five to test on."""
    data_dir = tmp_path_factory.mktemp("tfds")
    manual = data_dir / "downloads" / "manual"
    manual.mkdir(parents=True)
    with tarfile.open(manual / "ILSVRC2012_img_train.tar", "w") as archive:
        for wnid in WNIDS:
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode="w") as inner:
                for number in range(3):
                    tiny_runs.add_to_tar(inner, f"{wnid}_{number}.JPEG", jpeg(number))
            tiny_runs.add_to_tar(archive, f"{wnid}.tar", out.getvalue())
    with tarfile.open(manual / "ILSVRC2012_img_val.tar", "w") as archive:
        for number in range(1, 6):
            tiny_runs.add_to_tar(archive, f"ILSVRC2012_val_{number:08}.JPEG", jpeg(number))
    return data_dir


def streamed(data_dir: Path) -> config.DataConfig:
    return config.DataConfig(name="imagenet2012", dir=str(data_dir), pipeline="stream", image_size=32, workers=0)


@pytest.mark.slow
def test_imagenet_takes_the_labeled_validation_images_as_its_test_split(imagenet: Path) -> None:
    data = dataset.load_dataset(streamed(imagenet), 0)
    assert (len(data.train), len(data.test), len(data.classes)) == (9, 5, 1000)
    assert data.image_spec.shape == (32, 32, 3)
    assert data.preprocess.std == (0.229, 0.224, 0.225)
    assert data.info.labels is None


@pytest.mark.slow
def test_imagenet_streams_crops_with_the_labels_of_their_archives(imagenet: Path) -> None:
    spec = streamed(imagenet)
    data = dataset.load_dataset(spec, 0)
    train = loader.make_loader(data.train, data.image_spec, spec, 3, 5, sampling.ProcessShard())
    batches = [batch for _, batch in train.train_batches(0, 2)]
    assert [batch.images.shape for batch in batches] == [(5, 32, 32, 3), (4, 32, 32, 3)]
    assert sorted(np.concatenate([batch.labels for batch in batches])) == sorted([*WNIDS.values()] * 3)


@pytest.mark.slow
def test_imagenet_in_memory_is_refused_for_its_many_sizes(imagenet: Path) -> None:
    dataset.load_dataset(streamed(imagenet), 0)  # prepares it
    with pytest.raises(UserError, match=r"of 'imagenet2012' have many sizes; set config.data.pip"):
        dataset.load_dataset(config.DataConfig(name="imagenet2012", dir=str(imagenet)), 0)
