"""Streams: the same examples as the resident pipeline, for any number of workers, processes and restarts."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import tiny_runs
from switokd_jax import config
from switokd_jax.data import dataset, image_records, loader, normalization, sampling, transforms
from switokd_jax.errors import UserError
from switokd_jax.parallel import mesh
from switokd_jax.train import loop
from switokd_jax.workdir import restore

DIGITS = config.DataConfig(name="digits", pipeline="stream", workers=0)
ONE_PROCESS = sampling.ProcessShard()


def photographs(root: Path, count: int = 12) -> config.DataConfig:
    """A folder of images of many sizes."""
    tiny_runs.photographs(root, count)
    return config.DataConfig(name="folder", dir=str(root), pipeline="stream", image_size=16, workers=0)


def train_batches(
    spec: config.DataConfig,
    first_step: int,
    total_steps: int,
    process_shard: sampling.ProcessShard = ONE_PROCESS,
    batch_size: int = 5,
) -> list[sampling.SizedBatch]:
    data = dataset.load_dataset(spec, 0)
    train = loader.make_loader(data.train, data.image_spec, spec, 3, batch_size, process_shard)
    return [*train.train_batches(first_step, total_steps)]


WORKERS = [0, pytest.param(2, marks=pytest.mark.slow)]


@pytest.mark.parametrize("workers", WORKERS)
def test_training_batches_are_those_of_the_resident_pipeline(workers: int) -> None:
    """Two epochs and a step of digits, from step 3 on."""
    split, _, _ = tiny_runs.resident_splits(config.DataConfig(name="digits"))
    batches = train_batches(dataclasses.replace(DIGITS, workers=workers), 3, 17, batch_size=200)
    assert [size for size, _ in batches] == ([200] * 7 + [37])[3:] + [200] * 7 + [37] + [200]
    for step, (_, batch) in enumerate(batches, 3):
        indices = sampling.train_indices(step, 3, len(split), 200)
        np.testing.assert_array_equal(batch.index, indices)
        np.testing.assert_array_equal(batch.images, split.images[indices])
        np.testing.assert_array_equal(batch.labels, split.labels[indices])


@pytest.mark.parametrize("workers", WORKERS)
def test_evaluation_batches_hold_every_test_image_once(workers: int) -> None:
    _, _, split = tiny_runs.resident_splits(config.DataConfig(name="digits"))
    spec = dataclasses.replace(DIGITS, workers=workers)
    data = dataset.load_dataset(spec, 0)
    test = loader.make_loader(data.test, data.image_spec, spec, 0, 100, ONE_PROCESS)
    batches = [batch for _, batch in test.eval_batches()]
    assert [len(batch.mask) for batch in batches] == [100] * 4
    mask = np.concatenate([batch.mask for batch in batches]) > 0
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in batches])[mask], split.images)
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in batches])[mask], split.labels)


@pytest.mark.slow
def test_a_streamed_run_is_the_resident_run(tmp_path: Path) -> None:
    """The step's crops depend on the example and not on the pipeline: both runs end with the same bits."""
    for pipeline in ("resident", "stream"):
        c = tiny_runs.alone_config(batch_size=160, epochs=1.0)
        c.data.pipeline, c.data.workers, c.data.train_examples = pipeline, 0, 480
        loop.train_and_evaluate(c, tmp_path / pipeline, jax.devices()[:1])
    tiny_runs.assert_same_bits(*(restore.load_state(tmp_path / pipeline) for pipeline in ("resident", "stream")))


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize(
    ("workers", "first_step"),
    [(0, 3), pytest.param(1, 0, marks=pytest.mark.slow), pytest.param(2, 2, marks=pytest.mark.slow)],
)
def test_crops_are_the_same_for_any_workers_and_restart(
    workers: int, first_step: int, augment: bool, tmp_path: Path
) -> None:
    spec = dataclasses.replace(photographs(tmp_path), augment=augment)
    uninterrupted = train_batches(spec, 0, 6)[first_step:]
    resumed = train_batches(dataclasses.replace(spec, workers=workers), first_step, 6)
    for (size, batch), (resumed_size, resumed_batch) in zip(uninterrupted, resumed, strict=True):
        assert size == resumed_size
        for field in ("index", "images", "labels"):
            np.testing.assert_array_equal(getattr(batch, field), getattr(resumed_batch, field))


def test_each_network_may_have_a_crop_of_its_own(tmp_path: Path) -> None:
    """Whatever the other networks are; without augmentation all see the same."""
    spec = photographs(tmp_path)
    data = dataset.load_dataset(spec, 0)

    def images(*views: str, augment: bool = True) -> np.ndarray:
        own_spec = dataclasses.replace(spec, augment=augment)
        train = loader.make_loader(data.train, data.image_spec, own_spec, 3, 5, ONE_PROCESS)
        _, batch = next(dataclasses.replace(train, views=views).train_batches(1, 2))
        return np.asarray(batch.images)

    both = images("a", "b")
    assert both.shape[:2] == (5, 2)
    assert (both[:, 0] != both[:, 1]).any((1, 2, 3)).all()
    np.testing.assert_array_equal(images("b", "c", "d")[:, 0], both[:, 1])
    assert images("a", "b", augment=False).shape[1:] == images().shape[1:]


@pytest.mark.parametrize(("augment", "crops"), [(True, 2), (False, 1)])
def test_an_image_has_another_crop_in_each_epoch_if_it_is_augmented(augment: bool, crops: int, tmp_path: Path) -> None:
    """Two epochs of 11 images in batches of 5."""
    crops_by_index: dict[int, set[bytes]] = {}
    for _, batch in train_batches(dataclasses.replace(photographs(tmp_path), augment=augment), 0, 6):
        for index, image in zip(batch.index, batch.images, strict=True):
            crops_by_index.setdefault(int(index), set()).add(image.tobytes())
    assert {len(images) for images in crops_by_index.values()} == {crops}


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_rows_of_all_processes_make_the_global_batch(processes: int) -> None:
    """Every process has all rows of a batch that the devices do not divide: here the last one of an epoch."""
    devices = 2 * processes
    global_batches = train_batches(DIGITS, 0, 15, batch_size=96)
    process_shards = [sampling.ProcessShard(index, processes, devices) for index in range(processes)]
    local_batches = [train_batches(DIGITS, 0, 15, shard, batch_size=96) for shard in process_shards]
    for (size, batch), *local in zip(global_batches, *local_batches, strict=True):
        images = [local_batch.images for _, local_batch in local]
        assert [local_size for local_size, _ in local] == [size] * processes
        if size % devices:
            for local_images in images:
                np.testing.assert_array_equal(local_images, batch.images)
        else:
            np.testing.assert_array_equal(np.concatenate(images), batch.images)
    assert len(global_batches[-1][1].images) == 1437 - 14 * 96


@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
@pytest.mark.parametrize("size", [16, 13])
def test_a_batch_on_eight_devices(parallelism: str, size: int) -> None:
    """Split over the devices if they divide it, else complete on each; two batches are copied ahead of the steps."""
    devices = mesh.create(parallelism, "replicated", "global", 16)
    assert devices.process_shard == sampling.ProcessShard(0, 1, 8)
    images = np.arange(size * 4, dtype=np.uint8).reshape(size, 2, 2, 1)
    drawn = []

    def batches() -> Any:
        for number in range(4):
            drawn.append(number)
            index = np.arange(size, dtype=np.int32) + number
            yield size, sampling.Batch(index, images=images, labels=images[:, 0, 0])

    prefetched = devices.prefetch_to_device(sampling.stack_batches(batches(), 1))
    for number in range(4):
        placed = next(prefetched)
        assert len(drawn) == min(number + 1 + mesh.PREFETCH_DEPTH, 4)
        assert (placed.size, placed.count, placed.sharded) == (size, 1, size == 16)
        parts = [np.asarray(shard.data) for shard in placed.examples.images.addressable_shards]
        assert len(parts) == 8
        if parallelism == "pmap":
            parts = [part[0] for part in parts]
        received = np.concatenate(parts, axis=1) if placed.sharded else parts[number]
        np.testing.assert_array_equal(received, images[None])
        assert int(np.asarray(placed.examples.index).ravel()[0]) == number


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_broken_image_is_named(workers: int, tmp_path: Path) -> None:
    spec = dataclasses.replace(photographs(tmp_path), workers=workers)
    broken = tmp_path / "train" / "a" / "004.png"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(UserError, match=r"train/a/004.png cannot be decoded \(.*\); replace or remove it"):
        train_batches(spec, 0, 3)


def test_images_of_many_sizes_need_an_image_size(tmp_path: Path) -> None:
    spec = dataclasses.replace(photographs(tmp_path), image_size=0)
    with pytest.raises(UserError, match=r"has \d+x\d+ pixels, the first image 30x20; set config.data"):
        train_batches(spec, 0, 3)


def test_a_subset_and_a_validation_split_of_a_stream_share_no_record(tmp_path: Path) -> None:
    spec = dataclasses.replace(photographs(tmp_path, 80), train_examples=40, validation_fraction=0.25)
    data = dataset.load_dataset(spec, 0)
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 10)
    assert isinstance(data.train, image_records.RecordSplit)
    assert isinstance(data.validation, image_records.RecordSplit)
    assert not {*data.train.record_indices} & {*data.validation.record_indices}


def test_images_that_the_host_crops_are_not_cropped_again_in_the_step(tmp_path: Path) -> None:
    preprocess = dataset.load_dataset(photographs(tmp_path), 0).preprocess
    assert preprocess == dataclasses.replace(normalization.IMAGENET, padding=0, flip=False)


@pytest.mark.usefixtures("own_additions")
@pytest.mark.parametrize(
    ("name", "flip", "expected"),
    [
        ("grey", "auto", True),
        ("grey", "off", False),
        ("mnist:9.9.9", "auto", False),
        ("emnist/letters", "auto", False),
        ("emnist/letters", "on", True),
    ],
)
def test_a_grey_stream_gets_one_mean_and_letters_are_mirrored_only_if_asked(
    name: str, flip: str, expected: bool
) -> None:
    dataset.SOURCES[name] = dataset.SOURCES["digits"]
    data = dataset.load_dataset(dataclasses.replace(DIGITS, name=name, flip=flip), 0)
    assert data.preprocess == normalization.Preprocess((0.449,), (0.226,), padding=1, flip=expected)
    images = np.zeros((2, *data.image_spec.shape), np.uint8)
    assert transforms.normalize(images, data.preprocess, np.float32).shape == (2, 8, 8, 1)


@pytest.mark.parametrize("flip", ["auto", "off"])
def test_crops_of_a_stream_are_mirrored_unless_the_config_says_no(tmp_path: Path, flip: str) -> None:
    """The images are darker on their left."""
    (tmp_path / "train" / "ramp").mkdir(parents=True)
    for i in range(12):
        ramp = Image.fromarray(np.tile(np.arange(0, 240, 10, dtype=np.uint8), (24, 1)))
        ramp.save(tmp_path / "train" / "ramp" / f"{i}.png")
    spec = config.DataConfig(
        name="folder", dir=str(tmp_path), pipeline="stream", image_size=16, validation_fraction=0.25, flip=flip
    )
    images = np.concatenate([batch.images for _, batch in train_batches(dataclasses.replace(spec, workers=0), 0, 4)])
    mirrored = images[:, :, 0].mean((1, 2)) > images[:, :, -1].mean((1, 2))
    assert mirrored.any() == (flip == "auto")
    assert not mirrored.all()


@pytest.mark.slow
def test_a_worker_ends_with_a_killed_parent() -> None:
    """Its watch ends the process once the parent is another one."""
    code = "import time; from switokd_jax.data import stream; stream._start_worker(1, 0, 1); time.sleep(120)"
    assert subprocess.run([sys.executable, "-c", code], timeout=100, check=False).returncode == 1
