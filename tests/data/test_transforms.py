"""Augmentation on the device and on the host; crops against torchvision's rules; transforms of a user."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import tiny_runs
from switokd_jax import config
from switokd_jax.data import loader, resident, sampling, transforms
from switokd_jax.data.normalization import Preprocess
from switokd_jax.data.transforms import TRANSFORMS
from switokd_jax.errors import UserError
from switokd_jax.train import run_spec

IMAGES = np.arange(5 * 6 * 6 * 1, dtype=np.uint8).reshape(5, 6, 6, 1) + 1
RNG = jax.random.PRNGKey(0)


def keys(count: int, epoch: int = 0) -> jax.Array:
    return transforms.example_keys(RNG, jnp.int32(epoch), jnp.arange(count, dtype=jnp.int32))


def preprocess(padding: int, *, flip: bool) -> Preprocess:
    return Preprocess((0.5,), (0.25,), padding=padding, flip=flip)


def windows_of(image: np.ndarray, padding: int) -> Iterator[tuple[int, int, bool, np.ndarray]]:
    """All crops of the padded image, each as it is and mirrored."""
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    height, width, _ = image.shape
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            window = padded[row : row + height, column : column + width]
            yield row, column, False, window
            yield row, column, True, window[:, ::-1]


def test_random_crops_are_windows_of_the_padded_image() -> None:
    """Every offset occurs, with and without a flip."""
    images = np.repeat(IMAGES, 40, axis=0)
    crops = np.asarray(transforms.random_crop_and_flip(images, keys(len(images)), preprocess(2, flip=True)))
    offsets, flips = set(), set()
    for image, crop in zip(images, crops, strict=True):
        ((row, column, mirrored),) = [
            (row, column, mirrored)
            for row, column, mirrored, window in windows_of(image, 2)
            if np.array_equal(crop, window)
        ]
        offsets.add((row, column))
        flips.add(mirrored)
    assert len(offsets) == 25
    assert flips == {False, True}


def test_a_crop_depends_on_the_key_and_not_on_the_batch() -> None:
    crops = transforms.random_crop_and_flip(IMAGES, keys(5), preprocess(1, flip=True))
    last_crops = transforms.random_crop_and_flip(IMAGES[3:], keys(5)[3:], preprocess(1, flip=True))
    np.testing.assert_array_equal(crops[3:], last_crops)


def test_crops_are_the_same_in_a_float64_run() -> None:
    crops = transforms.random_crop_and_flip(IMAGES, keys(5), preprocess(1, flip=True))
    with jax.enable_x64(True):
        wide_crops = transforms.random_crop_and_flip(IMAGES, keys(5), preprocess(1, flip=True))
    np.testing.assert_array_equal(crops, wide_crops)


def test_keys_differ_between_epochs() -> None:
    assert not np.array_equal(keys(5), keys(5, epoch=1))


def test_padding_is_black_before_normalization() -> None:
    images = np.full((64, 6, 6, 1), 255, np.uint8)
    crops = transforms.random_crop_and_flip(images, keys(64), preprocess(6, flip=False))
    inputs = transforms.normalize(crops, preprocess(6, flip=False), np.float32)
    assert set(np.unique(inputs)) == {-2.0, 2.0}


def test_images_that_need_no_padding_and_flip_stay_as_they_are() -> None:
    crops = transforms.random_crop_and_flip(IMAGES, keys(5), preprocess(0, flip=False))
    np.testing.assert_array_equal(crops, IMAGES)


def train_images(spec: config.DataConfig, step: int = 0) -> jax.Array:
    """Inputs of the train step for all of IMAGES."""
    inputs = loader.train_inputs(preprocess(1, flip=True), spec, steps_per_epoch=2, dtype=jnp.float32)
    data = resident.DeviceDataset(jnp.asarray(IMAGES), jnp.zeros(5, jnp.int32))
    images, _ = jax.jit(inputs)(data, sampling.Batch(jnp.arange(5, dtype=jnp.int32)), RNG, jnp.int32(step))
    return images


@pytest.mark.parametrize(("step", "epoch"), [(1, 0), (2, 1)])
def test_by_default_the_step_crops_and_flips_with_the_keys_of_its_epoch(step: int, epoch: int) -> None:
    crops = transforms.random_crop_and_flip(IMAGES, keys(5, epoch), preprocess(1, flip=True))
    expected = transforms.normalize(crops, preprocess(1, flip=True), jnp.float32)
    np.testing.assert_allclose(train_images(config.DataConfig(), step), expected, rtol=1e-6)


@pytest.mark.usefixtures("own_additions")
def test_without_augment_no_transform_runs() -> None:
    TRANSFORMS["black"] = lambda images, keys, preprocess: jnp.zeros_like(images)
    images = train_images(config.DataConfig(augment=False, transforms=("black",)))
    expected = transforms.normalize(IMAGES, preprocess(1, flip=True), jnp.float32)
    np.testing.assert_allclose(images, expected, rtol=1e-6)


@pytest.mark.usefixtures("own_additions")
def test_transforms_run_in_the_order_of_the_config() -> None:
    TRANSFORMS["halve"] = lambda images, keys, preprocess: images // 2
    TRANSFORMS["add_nine"] = lambda images, keys, preprocess: images + jnp.uint8(9)
    images = train_images(config.DataConfig(transforms=("halve", "add_nine")))
    expected = transforms.normalize(IMAGES // 2 + 9, preprocess(1, flip=True), jnp.float32)
    np.testing.assert_allclose(images, expected, rtol=1e-6)


@pytest.mark.usefixtures("own_additions")
def test_each_transform_has_random_bits_of_its_own() -> None:
    """The first has the example's key itself, a later one that key folded with the crc32 of its name."""
    received: dict[str, Any] = {}

    def record(name: str) -> transforms.Transform:
        def transform(images: jax.Array, keys: jax.Array, preprocess: Preprocess) -> jax.Array:
            received[name] = np.asarray(keys)
            return images

        return transform

    by_name = {name: record(name) for name in ("one", "two", "three")}
    transforms.apply_transforms(by_name, jnp.asarray(IMAGES), keys(5), preprocess(0, flip=False))
    np.testing.assert_array_equal(received["one"], keys(5))
    crc32_of_two = np.uint32(0x11CA8A66)
    np.testing.assert_array_equal(received["two"][3], jax.random.fold_in(keys(5)[3], crc32_of_two))
    assert len({received[name].tobytes() for name in by_name}) == 3


def updated_params(images: np.ndarray, **changes: Any) -> Any:
    """Parameters of a run's student after one train step on eight images."""
    run = tiny_runs.tiny_plan(tiny_runs.alone_config("one_layer", batch_size=8, **changes), 8)
    split = tiny_runs.random_split(8)
    step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
    state, data = tiny_runs.start(run, type(split)(images, split.labels))
    state, _ = tiny_runs.call(step, state, data, tiny_runs.batch(run, np.arange(8)))
    return jax.device_get(state.networks["student"].params)


@pytest.mark.usefixtures("own_additions")
def test_a_transform_registered_in_one_line_runs_in_a_real_step() -> None:
    TRANSFORMS["invert"] = lambda images, keys, preprocess: jnp.uint8(16) - images
    images = tiny_runs.random_split(8).images
    inverted = updated_params(images, **{"data.transforms": ("invert",)})
    tiny_runs.assert_same_bits(inverted, updated_params(16 - images, **{"data.transforms": ()}))


BAD_RESULTS: dict[str, tuple[Any, str]] = {
    "dtype": (lambda images, keys, preprocess: images / 2, r"float32 of shape \(2, 8, 8, 1\)"),
    "shape": (lambda images, keys, preprocess: images[:, 1:], r"uint8 of shape \(2, 7, 8, 1\)"),
    "nothing": (lambda images, keys, preprocess: None, "a NoneType"),
}


@pytest.mark.usefixtures("own_additions")
@pytest.mark.parametrize(("transform", "result"), BAD_RESULTS.values(), ids=BAD_RESULTS.keys())
def test_a_transform_that_changes_the_shape_or_dtype_is_refused_with_one_line(
    transform: transforms.Transform, result: str
) -> None:
    TRANSFORMS["bad"] = transform
    changes: dict[str, Any] = {"data.transforms": ("random_crop_and_flip", "bad")}
    message = rf"^config.data.transforms: 'bad' returns {result}, and .* uint8 .* shape \(2, 8, 8, 1\)$"
    with pytest.raises(UserError, match=message):  # that includes notes, which the command would print
        tiny_runs.tiny_plan(tiny_runs.tiny_config(**changes), 100)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("random_crop",), "no transform 'random_crop'; did you mean 'random_crop_and_flip'"),
        ((3,), "no transform 3; known: random_crop_and_flip"),
        (("random_crop_and_flip",) * 2, "names 'random_crop_and_flip' twice"),
    ],
)
def test_transforms_that_cannot_be_used_are_refused_before_anything_compiles(names: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^config.data.transforms:? {message}"):
        tiny_runs.tiny_plan(tiny_runs.tiny_config(**{"data.transforms": names}), 100)


@pytest.fixture(scope="module")
def boxes() -> np.ndarray:
    """[20000, 4] boxes (left, upper, right, lower) of an image of 1000x900 pixels."""
    rng = np.random.default_rng(0)
    return np.asarray([transforms.random_box(1000, 900, rng) for _ in range(20_000)])


def area_and_ratio(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return width * height / 900_000, width / height


def test_random_boxes_are_inside_the_image(boxes: np.ndarray) -> None:
    left, upper, right, lower = boxes.T
    assert left.min() >= 0
    assert upper.min() >= 0
    assert right.max() <= 1000
    assert lower.max() <= 900


def test_random_boxes_have_the_areas_and_ratios_of_the_rule(boxes: np.ndarray) -> None:
    area, ratio = area_and_ratio(boxes)
    assert 0.079 < area.min() < 0.085
    assert area.max() > 0.97
    assert ratio.min() > 0.745
    assert ratio.max() < 1.34


def test_random_boxes_are_uniform_in_area_log_ratio_and_position(boxes: np.ndarray) -> None:
    """Checked below 60 % of the area: such boxes always fit, so no draw is rejected."""
    area, ratio = area_and_ratio(boxes)
    small = area < 0.6
    area_shares = np.histogram(area[small], 4, (0.08, 0.6))[0] / small.sum()
    np.testing.assert_allclose(area_shares, 0.25, atol=0.02)
    ratio_shares = np.histogram(np.log(ratio[small]), 4, (-math.log(4 / 3), math.log(4 / 3)))[0] / small.sum()
    np.testing.assert_allclose(ratio_shares, 0.25, atol=0.02)
    left, _, right, _ = boxes[small].T
    np.testing.assert_allclose(np.mean(left / (1000 - (right - left))), 0.5, atol=0.02)


@pytest.mark.parametrize(
    ("size", "expected"), [((400, 30), (180, 0, 220, 30)), ((30, 400), (0, 180, 30, 220)), ((1, 1), (0, 0, 1, 1))]
)
def test_if_no_box_fits_the_largest_centered_one_is_taken(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    class LargestArea:
        """A random generator whose boxes never fit."""

        def uniform(self, low: float, high: float) -> float:
            return high if low == 0.08 else 0.0

        def integers(self, low: int, high: int) -> int:
            return low

    assert transforms.random_box(*size, LargestArea()) == expected  # type: ignore[arg-type]


def test_a_random_resized_crop_is_a_crop_a_resize_and_a_flip() -> None:
    image = tiny_runs.photograph(60, 80)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        crop = image.crop(transforms.random_box(80, 60, rng)).resize((24, 24), Image.Resampling.BILINEAR)
        expected = np.asarray(crop)[:, ::-1] if rng.random() < 0.5 else np.asarray(crop)
        result = transforms.random_resized_crop(image, 24, np.random.default_rng(seed))
        np.testing.assert_array_equal(np.asarray(result), expected)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (100, 90)])
def test_the_centre_crop_is_the_middle_224_pixels_of_a_shorter_side_of_256(size: tuple[int, int]) -> None:
    image = tiny_runs.photograph(size[1], size[0])
    width, height = (256, int(256 * size[1] / size[0])) if size[0] <= size[1] else (int(256 * size[0] / size[1]), 256)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    result = np.asarray(transforms.centre_crop(image, 224))
    np.testing.assert_array_equal(result, resized[top : top + 224, left : left + 224])
