"""Floating-point operations: against counts by hand and published ones, and of a run against its metrics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import tiny_runs
from switokd_jax import models
from switokd_jax.analysis import runs as finished_runs
from switokd_jax.figures import compare
from switokd_jax.models import flops
from switokd_jax.models.layers import Layers
from switokd_jax.train import loop


class ThreeProducts(nn.Module):
    """Two convolutions and a classifier, without biases and nonlinearities."""

    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        x = self.layers.conv(x, 4, 3, name="first")
        x = self.layers.conv(x, 6, 1, name="second")
        return self.layers.dense(x.reshape(x.shape[0], -1), 10, name="linear", use_bias=False)


def test_products_match_a_count_by_hand() -> None:
    """A 3x3 kernel meets 3 pixels per row or column, 2 at the border: (3 * 8 - 2) ** 2 products per map."""
    first, second, linear = 2 * 22**2 * 3 * 4, 2 * 8 * 8 * 4 * 6, 2 * 8 * 8 * 6 * 10
    count = flops.count_flops_per_image(ThreeProducts(), (8, 8, 3))
    assert count.forward == first + second + linear
    # Each layer has a gradient at its kernel and one at its input, except the first, whose input are the images.
    assert count.backward == first + 2 * second + 2 * linear


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "classes", "shape", "products"),
    [
        ("wrn_16_2", 100, (32, 32, 3), 101e6),
        ("resnet20", 10, (32, 32, 3), 41e6),
        ("resnet18", 1000, (224, 224, 3), 1.82e9),
    ],
)
def test_count_is_close_to_the_published_one(model: str, classes: int, shape: tuple[int, ...], products: float) -> None:
    """Published counts include products with padding, and wrn_16_2's lacks its 1x1 shortcuts.

    A backward pass costs two forward passes, but for the first layer.
    """
    count = flops.count_flops_per_image(models.create(model, classes), shape)
    assert count.forward == pytest.approx(2 * products, rel=0.25)
    assert count.backward == pytest.approx(2 * count.forward, rel=0.1)


def test_count_is_independent_of_layer_options() -> None:
    default = flops.count_flops_per_image(models.create("resnet8", 10), (8, 8, 1))
    other = models.create("resnet8", 10, convolution=jax.lax.conv_general_dilated, remat=True, dtype=jnp.bfloat16)
    assert flops.count_flops_per_image(other, (8, 8, 1)) == default


def test_images_that_shrink_to_one_pixel_are_counted() -> None:
    """BatchNorm refuses a batch of one such image, in training only."""
    small, large = (flops.count_flops_per_image(models.create("mobilenetv2_0.5", 10), (s, s, 1)) for s in (8, 16))
    assert 0 < small.forward < large.forward
    assert 0 < small.backward < large.backward


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> finished_runs.Run:
    """A run with steps of both modes, in batches of one size."""
    folder = tmp_path_factory.mktemp("flops") / "run"
    c = tiny_runs.tiny_config("one_layer", batch_size=64, epochs=3.0)
    c.data.train_examples = 640
    c.switokd.threshold = 0.08
    loop.train_and_evaluate(c, folder, jax.devices()[:1])
    return finished_runs.read_run(folder)


@pytest.mark.slow
def test_training_flops_match_the_metrics_of_every_step(run: finished_runs.Run) -> None:
    networks = run.summary["networks"]
    expert = [line["teacher->student/expert"] for line in run.rows("train")]
    assert 0 < sum(expert) < len(expert) == 30, "both modes"
    by_step = [
        64
        * (
            networks["teacher"]["forward_flops"]
            + (0.0 if paused else networks["teacher"]["backward_flops"])
            + networks["student"]["forward_flops"]
            + networks["student"]["backward_flops"]
        )
        for paused in expert
    ]
    assert run.summary["training_flops"] == pytest.approx(sum(by_step), rel=1e-12)
    np.testing.assert_allclose(compare.cumulative_flops(run)[0], np.cumsum(by_step)[9::10], rtol=1e-12)


@pytest.mark.slow
def test_expert_share_matches_the_metrics_of_every_step(run: finished_runs.Run) -> None:
    epochs, shares = compare.expert_share_curve(run, "teacher->student") or ((), ())
    expert = np.asarray([line["teacher->student/expert"] for line in run.rows("train")], float)
    np.testing.assert_array_equal(epochs, [1, 2, 3])
    np.testing.assert_allclose(shares, 100 * expert.reshape(3, 10).mean(axis=1))
    assert run.summary["switch"]["teacher->student"]["expert_fraction"] == pytest.approx(expert.mean())
