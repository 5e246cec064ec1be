"""Streams: the same examples as the resident pipeline, whoever reads them; crops against torchvision's rules."""

from __future__ import annotations

import dataclasses
import io
import math
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import tiny_runs
from switokd_jax import config
from switokd_jax.data import dataset, image_records, loader, sampling, tfds_source
from switokd_jax.errors import UserError
from switokd_jax.parallel import mesh
from switokd_jax.train import loop
from switokd_jax.workdir import restore

DIGITS = config.DataConfig(name="digits", pipeline="stream", workers=0)
ALL = sampling.ProcessShard()


def folder(root: Path, count: int = 12) -> config.DataConfig:
    tiny_runs.photographs(root, count)
    return config.DataConfig(name="folder", dir=str(root), pipeline="stream", image_size=16, workers=0)


def taken(
    spec: config.DataConfig, first: int, total: int, share: sampling.ProcessShard = ALL, batch: int = 5
) -> list[Any]:
    data = dataset.load_dataset(spec, 0)
    return [*loader.make_loader(data.train, data.image_spec, spec, 3, batch, share).train_batches(first, total)]


@pytest.mark.parametrize("workers", [0, 2])
def test_same_batches_as_resident(workers: int) -> None:
    """Two epochs and a bit of digits, from step 3 on, and an evaluation: index, image and label."""
    spec = config.DataConfig(name="digits", pipeline="stream", workers=workers)
    train, _, test = tiny_runs.resident_splits(config.DataConfig(name="digits"))
    seen = taken(spec, 3, 17, batch=200)
    assert [size for size, _ in seen] == ([200] * 7 + [37])[3:] + [200] * 7 + [37] + [200]
    for step, (_, examples) in enumerate(seen, 3):
        index = sampling.train_indices(step, 3, len(train), 200)
        np.testing.assert_array_equal(examples.index, index)
        np.testing.assert_array_equal(examples.images, train.images[index])
        np.testing.assert_array_equal(examples.labels, train.labels[index])
    data = dataset.load_dataset(spec, 0)
    scored = [
        examples for _, examples in loader.make_loader(data.test, data.image_spec, spec, 0, 100, ALL).eval_batches()
    ]
    mask = np.concatenate([examples.mask for examples in scored]) > 0
    assert (len(scored), mask.sum()) == (4, 360)
    np.testing.assert_array_equal(np.concatenate([e.images for e in scored])[mask], test.images)
    np.testing.assert_array_equal(np.concatenate([e.labels for e in scored])[mask], test.labels)


def test_a_streamed_run_is_the_resident_run(tmp_path: Path) -> None:
    """Crops in the step depend on what, not on where: the same bits in the end."""
    for pipeline in ("resident", "stream"):
        c = tiny_runs.tiny_config(batch_size=160, epochs=1.0)
        c.data.pipeline, c.data.workers, c.data.train_examples = pipeline, 0, 480
        loop.train_and_evaluate(c, tmp_path / pipeline, jax.devices()[:1])
    tiny_runs.assert_same_bits(*(restore.load_state(tmp_path / pipeline) for pipeline in ("resident", "stream")))


@pytest.mark.parametrize("augment", [True, False])
def test_same_crops_for_any_workers_and_restart(augment: bool, tmp_path: Path) -> None:
    spec = dataclasses.replace(folder(tmp_path), augment=augment)
    whole = taken(spec, 0, 6)
    for workers, first in ((0, 3), (1, 0), (2, 2)):
        again = taken(dataclasses.replace(spec, workers=workers), first, 6)
        for (size, one), (same, other) in zip(whole[first:], again, strict=True):
            assert size == same
            for field in ("index", "images", "labels"):
                np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    # The first batches of two epochs of 11 images in batches of 5 (three steps): other crops of the same images.
    by_index: dict[int, set[bytes]] = {}
    for _, examples in whole:
        for index, image in zip(examples.index, examples.images, strict=True):
            by_index.setdefault(int(index), set()).add(image.tobytes())
    assert {len(seen) for seen in by_index.values()} == ({2} if augment else {1})


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_a_batch(processes: int) -> None:
    """Parts in order make the global batch; one that the devices do not divide is read whole by everybody."""
    devices = 2 * processes
    whole = taken(DIGITS, 0, 15, batch=96)
    parts = [taken(DIGITS, 0, 15, sampling.ProcessShard(p, processes, devices), batch=96) for p in range(processes)]
    for (size, examples), *shares in zip(whole, *parts, strict=True):
        got = [part.images for _, part in shares]
        assert [n for n, _ in shares] == [size] * processes
        if size % devices:
            for images in got:
                np.testing.assert_array_equal(images, examples.images)
        else:
            np.testing.assert_array_equal(np.concatenate(got), examples.images)
    assert len(whole[-1][1].images) == 1437 - 14 * 96


@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
@pytest.mark.parametrize("size", [16, 13])
def test_a_batch_on_eight_devices(parallelism: str, size: int) -> None:
    """Split over the devices where they divide it, else whole on each; two batches are under way before they run."""
    devices = mesh.create(parallelism, "replicated", "global", 16)
    assert devices.process_shard == sampling.ProcessShard(0, 1, 8)
    images = np.arange(size * 4, dtype=np.uint8).reshape(size, 2, 2, 1)
    drawn = []

    def reading() -> Any:
        for number in range(4):
            drawn.append(number)
            yield (
                size,
                sampling.Batch(np.arange(size, dtype=np.int32) + number, images=images, labels=images[:, 0, 0]),
            )

    coming = devices.prefetch_to_device(sampling.stack_batches(reading(), 1))
    for number in range(4):
        placed = next(coming)
        assert len(drawn) == min(number + 1 + mesh.PREFETCH_DEPTH, 4)
        assert (placed.size, placed.count, placed.sharded) == (size, 1, size == 16)
        parts = [np.asarray(shard.data) for shard in placed.examples.images.addressable_shards]
        assert len(parts) == 8
        if parallelism == "pmap":
            parts = [part[0] for part in parts]
        whole = np.concatenate(parts, axis=1) if placed.sharded else parts[number]
        np.testing.assert_array_equal(whole, images[None])
        assert int(np.asarray(placed.examples.index).ravel()[0]) == number


def test_random_boxes() -> None:
    """Area uniform on 8 to 100 %, log ratio uniform on 3/4 to 4/3, as far as they fit; any place in the image."""
    rng = np.random.default_rng(0)
    boxes = np.asarray([image_records.random_box(1000, 900, rng) for _ in range(20_000)])
    left, upper, right, lower = boxes.T
    width, height = right - left, lower - upper
    assert (left >= 0).all()
    assert (upper >= 0).all()
    assert (right <= 1000).all()
    assert (lower <= 900).all()
    share, ratio = width * height / 900_000, width / height
    assert 0.079 < share.min() < 0.085
    assert share.max() > 0.97
    assert ratio.min() > 0.745
    assert ratio.max() < 1.34
    # Among boxes of less than 60 % everything fits, so both draws are uniform there.
    small = share < 0.6
    np.testing.assert_allclose(np.histogram(share[small], 4, (0.08, 0.6))[0] / small.sum(), 0.25, atol=0.02)
    spread = np.histogram(np.log(ratio[small]), 4, (-math.log(4 / 3), math.log(4 / 3)))[0] / small.sum()
    np.testing.assert_allclose(spread, 0.25, atol=0.02)
    np.testing.assert_allclose(np.mean(left[small] / (1000 - width[small])), 0.5, atol=0.02)


@pytest.mark.parametrize(
    ("size", "expected"), [((400, 30), (180, 0, 220, 30)), ((30, 400), (0, 180, 30, 220)), ((1, 1), (0, 0, 1, 1))]
)
def test_where_no_box_fits_the_centre_is_taken(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    """Ten draws that give nothing: torchvision's fall-back."""

    class Largest:
        def uniform(self, low: float, high: float) -> float:
            return high if low == 0.08 else 0.0

        def integers(self, low: int, high: int) -> int:
            return low

    assert image_records.random_box(*size, Largest()) == expected  # type: ignore[arg-type]


def test_a_random_crop_is_a_crop_and_a_resize() -> None:
    image = tiny_runs.photograph(60, 80)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        crop = image.crop(image_records.random_box(80, 60, rng)).resize((24, 24), Image.Resampling.BILINEAR)
        expected = np.asarray(crop)[:, ::-1] if rng.random() < 0.5 else np.asarray(crop)
        got = image_records.random_crop(image, 24, np.random.default_rng(seed))
        np.testing.assert_array_equal(np.asarray(got), expected)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (100, 90)])
def test_centre_crop(size: tuple[int, int]) -> None:
    """Shorter side 256, centre 224."""
    image = tiny_runs.photograph(size[1], size[0])
    width, height = (256, int(256 * size[1] / size[0])) if size[0] <= size[1] else (int(256 * size[0] / size[1]), 256)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    got = np.asarray(image_records.centre_crop(image, 224))
    np.testing.assert_array_equal(got, resized[top : top + 224, left : left + 224])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(workers: int, tmp_path: Path) -> None:
    spec = folder(tmp_path)
    broken = tmp_path / "train" / "a" / "004.png"
    broken.write_bytes(broken.read_bytes()[:100])
    spec = dataclasses.replace(spec, workers=workers)
    with pytest.raises(UserError, match=r"train/a/004.png cannot be decoded \(.*\); mend or remove it"):
        taken(spec, 0, 3)


def test_images_of_many_sizes_want_a_size(tmp_path: Path) -> None:
    spec = dataclasses.replace(folder(tmp_path), image_size=0)
    with pytest.raises(UserError, match=r"has \d+x\d+ pixels, the first image 30x20; set config.data"):
        taken(spec, 0, 3)
    resident = config.DataConfig(name="folder", dir=str(tmp_path), image_size=16)
    with pytest.raises(UserError, match=r"config.data.image_size is 16, and config.data.pipeline 'resident'"):
        dataset.load_dataset(resident, 0)


def test_validation_and_a_part_of_a_stream(tmp_path: Path) -> None:
    spec = dataclasses.replace(folder(tmp_path, 80), train_examples=40, validation_fraction=0.25)
    data = dataset.load_dataset(spec, 0)
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 10)
    assert isinstance(data.train, image_records.RecordSplit)
    assert isinstance(data.validation, image_records.RecordSplit)
    assert not {*data.train.record_indices} & {*data.validation.record_indices}
    # Preprocessing of photographs, already cropped and mirrored.
    assert (data.preprocess.mean, data.preprocess.padding, data.preprocess.flip) == (dataset.IMAGENET.mean, 0, False)


def test_a_worker_ends_with_a_killed_parent() -> None:
    """Its watch ends the process once the parent is another one."""
    code = "import time; from switokd_jax.data import stream; stream._start_worker(1, 0, 1); time.sleep(30)"
    assert subprocess.run([sys.executable, "-c", code], timeout=25, check=False).returncode == 1


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def jpeg(seed: int) -> bytes:
    out = io.BytesIO()
    tiny_runs.photograph(40 + seed, 60 - seed, seed).save(out, format="JPEG")
    return out.getvalue()


def test_imagenet_through_tfds(tmp_path: Path) -> None:
    """TFDS's own builder on small archives of the official form; the labelled validation images are the test split."""
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    wnids = {"n01440764": 0, "n01443537": 1, "n15075141": 999}
    with tarfile.open(manual / "ILSVRC2012_img_train.tar", "w") as archive:
        for wnid in wnids:
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode="w") as inner:
                for number in range(3):
                    add(inner, f"{wnid}_{number}.JPEG", jpeg(number))
            add(archive, f"{wnid}.tar", out.getvalue())
    with tarfile.open(manual / "ILSVRC2012_img_val.tar", "w") as archive:
        for number in range(1, 6):
            add(archive, f"ILSVRC2012_val_{number:08}.JPEG", jpeg(number))

    spec = config.DataConfig(name="imagenet2012", dir=str(tmp_path), pipeline="stream", image_size=32, workers=0)
    data = dataset.load_dataset(spec, 0)
    assert (len(data.train), len(data.test), len(data.classes)) == (9, 5, 1000)
    assert data.image_spec.shape == (32, 32, 3)
    assert data.preprocess.std == (0.229, 0.224, 0.225)
    assert data.info.labels is None
    seen = taken(spec, 0, 2)
    labels = np.concatenate([examples.labels for _, examples in seen])
    assert sorted(labels) == [0, 0, 0, 1, 1, 1, 999, 999, 999]
    assert seen[0][1].images.shape == (5, 32, 32, 3)
    with pytest.raises(UserError, match=r"of 'imagenet2012' have many sizes; set config.data.pip"):
        dataset.load_dataset(config.DataConfig(name="imagenet2012", dir=str(tmp_path)), 0)


def test_imagenet_without_its_archives(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manual_dir is \S+downloads/manual: manual_dir should contain two"):
        tfds_source.open_tfds("imagenet2012", str(tmp_path))
