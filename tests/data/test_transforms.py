"""Augmentation on the device and on the host; crops against torchvision's rules; transforms of a user."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

import tiny_runs
from switokd_jax import config
from switokd_jax.data import loader, resident, sampling, transforms
from switokd_jax.data.normalization import Preprocess
from switokd_jax.data.transforms import TRANSFORMS
from switokd_jax.errors import UserError
from switokd_jax.train import run_spec

IMAGES = np.arange(5 * 6 * 6 * 1, dtype=np.uint8).reshape(5, 6, 6, 1) + 1
RNG = jax.random.key(0)


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
    batch = jax.jit(inputs)(data, sampling.Batch(jnp.arange(5, dtype=jnp.int32)), RNG, jnp.int32(step))
    images: jax.Array = batch.images
    return images


def test_each_network_may_see_a_view_of_its_own() -> None:
    """Keyed by (seed, epoch, index, network), whatever the other networks are."""
    spec = config.DataConfig(transforms=("random_crop_and_flip", "cutout(2)"))
    data = resident.DeviceDataset(jnp.asarray(IMAGES), jnp.zeros(5, jnp.int32))
    batch = sampling.Batch(jnp.arange(5, dtype=jnp.int32))

    def views(*networks: str) -> Any:
        inputs = loader.train_inputs(
            preprocess(1, flip=True), spec, steps_per_epoch=2, dtype=jnp.float32, views=networks
        )
        return jax.jit(inputs)(data, batch, RNG, jnp.int32(3)).views

    seen = views("teacher", "student")
    assert {*seen} == {"teacher", "student"}
    assert (np.asarray(seen["teacher"]) != np.asarray(seen["student"])).any((1, 2, 3)).all()
    np.testing.assert_array_equal(views("student", "other")["student"], seen["student"])
    own_keys = jax.vmap(lambda key: jax.random.fold_in(key, np.uint32(0xB723AF33)))(keys(5, epoch=1))  # crc32
    expected = transforms.apply_transforms(
        transforms.get_transforms(spec.transforms), jnp.asarray(IMAGES), own_keys, preprocess(1, flip=True)
    )
    expected = transforms.normalize(expected, preprocess(1, flip=True), jnp.float32)
    np.testing.assert_allclose(seen["student"], expected, rtol=1e-6)


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
            received[name] = np.asarray(jax.random.key_data(keys))
            return images

        return transform

    by_name = {name: record(name) for name in ("one", "two", "three")}
    transforms.apply_transforms(by_name, jnp.asarray(IMAGES), keys(5), preprocess(0, flip=False))
    np.testing.assert_array_equal(received["one"], jax.random.key_data(keys(5)))
    second = jax.random.fold_in(keys(5)[3], np.uint32(0x11CA8A66))  # the crc32 of 'two'
    np.testing.assert_array_equal(received["two"][3], jax.random.key_data(second))
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
        (("random_crop",), "'random_crop' is unknown; did you mean 'random_crop_and_flip'"),
        (
            (3,),
            "3 is neither a name nor a name with numbers, as in 'NAME\\(OPTION=0.5\\)'; known: random_crop_and_flip",
        ),
        (("cutout(size=os.getpid())",), "'cutout\\(size=os.getpid\\(\\)\\)' is neither a name nor"),
        (("cutout('8')",), '"cutout.*" is neither a name nor a name with numbers'),
        (("cutout(width=8)",), "'cutout\\(width=8\\)': got an unexpected keyword argument 'width'"),
        (("cutout(0)",), "cutout\\(0\\): the size is at least 1 pixel"),
        (("color_jitter(hue=0.6)",), "color_jitter takes strengths of at least 0, and a hue of at most 0.5"),
        (("rand_augment(2, 40)",), "rand_augment\\(2, 40\\): layers are at least 1, and the magnitude is 0 to 30"),
        (("random_crop_and_flip",) * 2, "names 'random_crop_and_flip' twice"),
    ],
)
def test_transforms_that_cannot_be_used_are_refused_before_anything_compiles(names: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^config.data.transforms:? {message}"):
        tiny_runs.tiny_plan(tiny_runs.tiny_config(**{"data.transforms": names}), 100)


COLORS = Preprocess((0.5,) * 3, (0.25,) * 3)


def photographs(count: int, side: int = 12, channels: int = 3) -> np.ndarray:
    """[count, side, side, channels] uint8: the same photograph again and again."""
    image = np.asarray(tiny_runs.photograph(side, side, seed=3))[..., :channels]
    return np.repeat(image[None], count, axis=0)


def test_cutout_blackens_one_square_that_the_border_may_cut() -> None:
    images = np.full((400, 10, 10, 1), 9, np.uint8)
    hidden = np.asarray(transforms.cutout(images, keys(400), COLORS, 4))[..., 0] == 0
    rows, columns = hidden.any(2), hidden.any(1)
    np.testing.assert_array_equal(hidden, rows[:, :, None] & columns[:, None, :])
    for lines in (rows, columns):
        spans = {(int(line.argmax()), int(line.sum())) for line in lines}
        assert spans == {(0, 2), (0, 3), *((first, 4) for first in range(7)), (7, 3)}


def pillow_rand_augment(image: Image.Image, m: float) -> dict[str, np.ndarray]:
    """Every result of one operation, by Pillow alone."""
    side = image.width
    shift = int(150 / 331 * side * m)
    made = {
        "identity": image,
        "autocontrast": ImageOps.autocontrast(image),
        "equalize": ImageOps.equalize(image),
        "posterize": ImageOps.posterize(image, 8 - round(4 * m)),
        "solarize": ImageOps.solarize(image, 255 - int(255 * m)),
    }
    for sign in (1, -1):
        for name, coefficients in {
            "shear_x": (1, sign * 0.3 * m, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, sign * 0.3 * m, 1, 0),
            "right": (1, 0, sign * shift, 0, 1, 0),
            "down": (1, 0, 0, 0, 1, sign * shift),
        }.items():
            made[f"{name}{sign}"] = image.transform(image.size, Image.Transform.AFFINE, coefficients)
        made[f"rotate{sign}"] = image.rotate(sign * 30 * m)
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Sharpness):
            made[f"{enhance.__name__}{sign}"] = enhance(image).enhance(1 + sign * 0.9 * m)
    return {name: np.asarray(result).astype(int) for name, result in made.items()}


@pytest.mark.parametrize("magnitude", [9, 30])
def test_rand_augment_draws_each_operation_equally_often(magnitude: int) -> None:
    """14 operations, those with a sign with both: each image is what Pillow makes of it."""
    images = photographs(2800, side=16)
    results = np.asarray(jax.jit(lambda x, k: transforms.rand_augment(x, k, COLORS, 1, magnitude))(images, keys(2800)))
    expected = pillow_rand_augment(Image.fromarray(images[0]), magnitude / 30)
    counts = dict.fromkeys(expected, 0)
    for result in results.astype(int):
        distances = {name: np.abs(result - each).max() for name, each in expected.items()}
        nearest = min(distances, key=lambda name: distances[name])
        assert distances[nearest] <= 1
        counts[nearest] += 1
    for name, count in counts.items():
        share = count / len(results) * (2 if name.endswith("1") else 1)
        assert share == pytest.approx(1 / 14, abs=0.03), name


@pytest.mark.slow
def test_more_layers_apply_more_operations() -> None:
    images = photographs(64)
    once, twice = (np.asarray(transforms.rand_augment(images, keys(64), COLORS, layers)) for layers in (1, 2))
    assert (once != images).any((1, 2, 3)).mean() < (twice != images).any((1, 2, 3)).mean()
    assert 0 < (once == twice).all((1, 2, 3)).mean() < 0.5  # a second operation that changes nothing


@pytest.mark.slow
def test_rand_augment_takes_images_of_another_scale() -> None:
    """The digits' pixels go to 16; an operation that changes nothing loses nothing on the way to 255 and back."""
    images = np.repeat(tiny_runs.random_split(1).images, 400, axis=0)
    results = np.asarray(transforms.rand_augment(images, keys(400), tiny_runs.PREPROCESS, 1))
    assert results.max() <= 16
    assert (results == images).all((1, 2, 3)).mean() > 1 / 14 - 0.03


@pytest.mark.slow
def test_color_jitter_scales_within_its_range() -> None:
    """Brightness alone, of a grey image: its pixels are proportional to the factor."""
    images = np.full((1000, 2, 2, 3), 100, np.uint8)
    results = np.asarray(transforms.color_jitter(images, keys(1000), COLORS, 0.4, 0.0, 0.0))[:, 0, 0, 0]
    assert 59 <= results.min() <= 62
    assert 138 <= results.max() <= 140
    assert np.mean(results) == pytest.approx(99.5, abs=2.5)


@pytest.mark.slow
def test_color_jitter_without_strength_changes_nothing() -> None:
    images = photographs(8)
    np.testing.assert_array_equal(transforms.color_jitter(images, keys(8), COLORS, 0.0, 0.0, 0.0, 0.0), images)


@pytest.mark.slow
def test_color_jitter_turns_hues_by_chance() -> None:
    images = np.tile(np.array([200, 50, 50], np.uint8), (500, 2, 2, 1))
    results = np.asarray(transforms.color_jitter(images, keys(500), COLORS, 0.0, 0.0, 0.0, 0.1))[:, 0, 0]
    assert (results[:, 0] == 200).all()  # within a sixth of the circle red stays the largest
    assert 120 < results[:, 1].max() <= 141
    assert (results[:, 1:].min(1) == 50).all()


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["cutout(2)", "color_jitter(hue=0.1)", "rand_augment"])
def test_augmentations_are_the_same_in_a_float64_run_and_in_any_batch(entry: str) -> None:
    (transform,) = transforms.get_transforms([entry]).values()
    images = photographs(40)
    expected = transform(jnp.asarray(images), keys(40), COLORS)
    np.testing.assert_array_equal(
        transform(jnp.asarray(images[30:]), jnp.asarray(keys(40))[30:], COLORS), expected[30:]
    )
    with jax.enable_x64(True):
        np.testing.assert_array_equal(transform(jnp.asarray(images), keys(40), COLORS), expected)


def test_options_are_passed_on() -> None:
    transform = transforms.get_transforms(["random_crop_and_flip", "cutout(size=3)"])["cutout"]
    images = jnp.asarray(photographs(5))
    np.testing.assert_array_equal(transform(images, keys(5), COLORS), transforms.cutout(images, keys(5), COLORS, 3))


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
        unflipped = transforms.random_resized_crop(image, 24, np.random.default_rng(seed), flip=False)
        np.testing.assert_array_equal(np.asarray(unflipped), np.asarray(crop))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (100, 90)])
def test_the_centre_crop_is_the_middle_224_pixels_of_a_shorter_side_of_256(size: tuple[int, int]) -> None:
    image = tiny_runs.photograph(size[1], size[0])
    width, height = (256, int(256 * size[1] / size[0])) if size[0] <= size[1] else (int(256 * size[0] / size[1]), 256)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    result = np.asarray(transforms.centre_crop(image, 224))
    np.testing.assert_array_equal(result, resized[top : top + 224, left : left + 224])
