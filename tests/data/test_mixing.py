"""mixup and CutMix: weights, partners and labels, against sums written out in NumPy; the same on any devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_runs
from switokd_jax import losses, switching
from switokd_jax.data import mixing, sampling, transforms
from switokd_jax.data.resident import DeviceDataset
from switokd_jax.errors import UserError
from switokd_jax.parallel.collectives import Collectives
from switokd_jax.train import run_spec

BATCH, SIDE, CLASSES = 12, 8, 5


def keys(count: int, epoch: int = 0) -> jax.Array:
    return transforms.example_keys(jax.random.key(0), jnp.int32(epoch), jnp.arange(count, dtype=jnp.int32))


def identity(tree: Any) -> Any:
    return tree


def mixed(mixings: dict[str, Any], images: np.ndarray, labels: Any, epoch: int = 0) -> sampling.Batch:
    batch = sampling.Batch(np.arange(len(images)), images=jnp.asarray(images), labels=jnp.asarray(labels))
    return mixing.mix_batch(mixings, batch, keys(len(images), epoch), CLASSES, identity, identity)


def test_each_image_is_mixed_with_one_other_and_each_is_one_others_partner() -> None:
    """Image i is the number i, so that a mixed image tells its partner; a quarter of it is its own."""
    images = np.broadcast_to(np.arange(BATCH, dtype=np.float32)[:, None, None, None], (BATCH, SIDE, SIDE, 1))
    labels = np.arange(BATCH) % CLASSES
    quarter = {"quarter": lambda keys, height, width: jnp.full((len(keys), height, width), 0.25)}
    seen = set()
    for epoch in (0, 1):
        batch = mixed(quarter, images, labels, epoch)
        partners = np.rint((np.asarray(batch.images)[:, 0, 0, 0] - 0.25 * np.arange(BATCH)) / 0.75).astype(int)
        assert sorted(partners) == [*range(BATCH)]
        assert (partners != np.arange(BATCH)).all()
        np.testing.assert_allclose(batch.images, 0.25 * images + 0.75 * images[partners], rtol=1e-6)
        one_hot = np.eye(CLASSES)[labels]
        np.testing.assert_allclose(batch.labels, 0.25 * one_hot + 0.75 * one_hot[partners], rtol=1e-6)
        seen.add(tuple(partners))
    assert len(seen) == 2


def test_all_views_of_an_example_are_mixed_alike() -> None:
    images = np.random.default_rng(0).normal(size=(BATCH, SIDE, SIDE, 3)).astype(np.float32)
    labels = jnp.zeros(BATCH, jnp.int32)
    both = mixing.get_mixings(("mixup", "cutmix"))
    views = {"a": jnp.asarray(images), "b": jnp.asarray(-2 * images)}
    batch = sampling.Batch(np.arange(BATCH), labels=labels, views=views)
    batch = mixing.mix_batch(both, batch, keys(BATCH), CLASSES, identity, identity)
    assert batch.images is None
    np.testing.assert_allclose(batch.views["b"], -2 * batch.views["a"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(batch.views["a"], mixed(both, images, labels).images, rtol=1e-6)


def test_a_batch_of_one_image_stays_as_it_is() -> None:
    image = np.ones((1, SIDE, SIDE, 1), np.float32)
    batch = mixed(mixing.get_mixings(("mixup",)), image, np.array([3]))
    np.testing.assert_allclose(batch.images, image, rtol=1e-6)
    np.testing.assert_allclose(batch.labels, np.eye(CLASSES)[[3]], rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_draws_weights_of_the_beta_distribution(alpha: float) -> None:
    weights = np.asarray(mixing.mixup(keys(20_000), 2, 3, alpha))
    assert weights.shape == (20_000, 2, 3)
    np.testing.assert_array_equal(weights, weights[:, :1, :1] + np.zeros((1, 2, 3)))
    drawn = weights[:, 0, 0]
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)  # of Beta(alpha, alpha)
    assert drawn.min() >= 0
    assert drawn.max() <= 1


def test_cutmix_cuts_one_box_with_the_images_ratio() -> None:
    """Off the border, the box has the sides that algorithm A1 gives it; its area is uniform for an alpha of 1."""
    height, width = 40, 20
    weights = np.asarray(mixing.cutmix(keys(4_000), height, width))
    assert {*np.unique(weights)} == {0.0, 1.0}
    areas = []
    for hidden in weights == 0:
        rows, columns = hidden.any(1), hidden.any(0)
        np.testing.assert_array_equal(hidden, rows[:, None] & columns[None, :])
        for side in (rows, columns):
            assert np.abs(np.diff(side.astype(int))).sum() <= 2
        touches = rows[0] or rows[-1] or columns[0] or columns[-1]
        if hidden.any() and not touches:
            assert abs(rows.sum() - 2 * columns.sum()) <= 4  # each side is rounded down to an even number
            assert rows.sum() % 2 == columns.sum() % 2 == 0
        areas.append(hidden.mean())
    # Of a box with the sides a and b, as parts of the image's, a (1 - a / 4) b (1 - b / 4) is inside on average.
    share = np.sqrt(1 - np.linspace(0, 1, 100_001))
    a, b = (2 * (length * share // 2) / length for length in (height, width))
    assert np.mean(areas) == pytest.approx(np.mean(a * (1 - a / 4) * b * (1 - b / 4)), abs=0.015)


def test_the_labels_follow_the_area_that_is_left() -> None:
    images = np.zeros((BATCH, SIDE, SIDE, 1), np.float32)
    images[0] = 1.0  # seen in the image itself and in the one that it is pasted into
    labels = np.zeros(BATCH, np.int32)
    labels[0] = 1
    for epoch in range(5):
        batch = mixed(mixing.get_mixings(("cutmix",)), images, labels, epoch)
        np.testing.assert_allclose(batch.labels[:, 1], np.mean(batch.images, axis=(1, 2, 3)), atol=1e-6)


def test_each_image_draws_one_of_the_mixings() -> None:
    constants = {str(value): lambda k, h, w, value=value: jnp.full((len(k), h, w), value) for value in (0.0, 0.5, 1.0)}
    images = np.ones((300, 2, 2, 1), np.float32)
    weights = mixing._draw_weights(constants, keys(300), 2, 2)
    values, counts = np.unique(np.asarray(weights)[:, 0, 0], return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert np.min(counts) > 70
    np.testing.assert_allclose(mixed(constants, images, np.zeros(300, np.int32)).labels[:, 0], 1.0)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (("mixup(alpha=0)",), r"config.data.mix: mixup\(alpha=0\): alpha is above 0"),
        (("cutmix(-1)",), r"config.data.mix: cutmix\(alpha=-1\): alpha is above 0"),
        (("mixup(beta=1)",), "config.data.mix: 'mixup\\(beta=1\\)': got an unexpected keyword argument 'beta'"),
        (("mixpu",), "config.data.mix: 'mixpu' is unknown; did you mean 'mixup'"),
        (("cutmix", "cutmix"), "config.data.mix names 'cutmix' twice"),
    ],
)
def test_bad_entries_are_named(entries: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mixing.check_mixings(entries, (SIDE, SIDE, 1))


@pytest.mark.usefixtures("own_additions")
def test_a_mixing_of_a_users_own_returns_weights_of_pixels() -> None:
    mixing.MIXINGS["halves"] = lambda keys, height, width: jnp.full((len(keys), height, width), 0.5)
    mixing.check_mixings(("halves",), (SIDE, SIDE, 1))
    mixing.MIXINGS["flat"] = lambda keys, height, width: jnp.full(len(keys), 0.5)
    with pytest.raises(UserError, match=r"'flat' has to return weights .* and returns \(2,\) for a batch of 2"):
        mixing.check_mixings(("halves", "flat"), (SIDE, SIDE, 1))


def test_losses_and_the_switch_take_probabilities() -> None:
    """As NumPy computes them, and those of one class as its number."""
    rng = np.random.default_rng(0)
    logits, other = 2 * rng.normal(size=(2, BATCH, CLASSES))
    classes = rng.integers(0, CLASSES, BATCH)
    soft = rng.dirichlet(np.ones(CLASSES), BATCH)
    with jax.enable_x64(True):
        one_hot = jnp.asarray(np.eye(CLASSES)[classes])
        for smoothing in (0.0, 0.1):
            target = (1 - smoothing) * soft + smoothing / CLASSES
            expected = (np.log(np.exp(logits).sum(1, keepdims=True)) - logits) * target
            np.testing.assert_allclose(losses.cross_entropy(logits, soft, smoothing), expected.sum(1), rtol=1e-12)
            np.testing.assert_allclose(
                losses.cross_entropy(logits, one_hot, smoothing),
                losses.cross_entropy(logits, jnp.asarray(classes), smoothing),
                rtol=1e-12,
            )
        decision = switching.switch(logits, other, soft)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert float(decision.student_distance) == pytest.approx(np.abs(p - soft).sum(1).mean(), rel=1e-12)
        hard, same = switching.switch(logits, other, classes), switching.switch(logits, other, one_hot)
        np.testing.assert_allclose(np.asarray(hard[:5]), np.asarray(same[:5]), rtol=1e-12)
        assert losses.hard_labels(soft).tolist() == soft.argmax(1).tolist()


def one_step(devices: int = 1, **changes: Any) -> tuple[Any, dict[str, float]]:
    """Parameters after a step on 16 images, and the step's metrics."""
    c = tiny_runs.tiny_config("one_layer", "one_layer", batch_size=16, method="switokd", **changes)
    run = tiny_runs.tiny_plan(c, 32, devices)
    state, data = tiny_runs.start(run, tiny_runs.random_split(32))
    step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
    state, metrics = tiny_runs.call(step, state, data, tiny_runs.batch(run, np.arange(16)))
    state, metrics = jax.device_get(run.distribution.unreplicate((state, metrics)))
    return {name: network.params for name, network in state.networks.items()}, metrics


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_any_number_of_devices_mixes_the_same_images(parallelism: str) -> None:
    mix: dict[str, Any] = {"data.mix": ("mixup(1.0)", "cutmix"), "dtype": "float64"}
    with jax.enable_x64(True):
        alone, metrics = one_step(**mix)
        several, _ = one_step(8, parallelism=parallelism, **mix)
        without, plain = one_step(dtype="float64")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), alone, several)
    assert any(not np.allclose(x, y) for x, y in zip(*map(jax.tree.leaves, (alone, without)), strict=True))
    for distance in ("student_distance", "teacher_distance"):
        assert metrics[f"teacher->student/{distance}"] != plain[f"teacher->student/{distance}"]


def test_without_augment_nothing_is_mixed() -> None:
    changes: dict[str, Any] = {"data.mix": ("mixup",), "data.augment": False}
    run = tiny_runs.tiny_plan(tiny_runs.tiny_config(batch_size=16, **changes), 32)
    split = tiny_runs.random_split(32)
    inputs = run_spec.make_train_inputs(run)
    batch = inputs(
        DeviceDataset(split.images, split.labels), sampling.Batch(np.arange(4)), jax.random.key(0), 0, Collectives()
    )
    np.testing.assert_array_equal(batch.labels, split.labels[:4])
