"""Floating-point operations: of layers that are counted by hand, and those that a run spends by its step log."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import tiny_runs
from switokd_jax import models
from switokd_jax.analysis import runs as finished_runs
from switokd_jax.figures import compare
from switokd_jax.models import flops, layers
from switokd_jax.train import loop


class Bare(nn.Module):
    """Two convolutions and a classifier without anything that is not a product."""

    convolution: Any = layers.convolution
    axis_name: str | None = None
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        options: dict[str, Any] = {"kernel_init": layers.kaiming_normal, "convolution": self.convolution}
        x = layers.conv(4, 3, name="first", **options)(x)
        x = layers.conv(6, 1, name="second", **options)(x)
        return nn.Dense(10, use_bias=False, name="linear")(x.reshape(x.shape[0], -1))


def test_products_by_hand() -> None:
    """Each output pixel of a 3x3 convolution has 3 neighbours a side, 2 at the border: (3 * 8 - 2) ** 2 in all."""
    first, second, linear = 2 * 22**2 * 3 * 4, 2 * 8 * 8 * 4 * 6, 2 * 8 * 8 * 6 * 10
    counted = flops.count_flops_per_image(Bare(), (8, 8, 3))
    assert counted.forward == first + second + linear
    # Nobody needs the gradient at the images; all else has one at its kernel and one at its input.
    assert counted.backward == first + 2 * second + 2 * linear


@pytest.mark.parametrize(
    ("model", "classes", "shape", "products"),
    [
        ("wrn_16_2", 100, (32, 32, 3), 101e6),
        ("resnet20", 10, (32, 32, 3), 41e6),
        ("resnet18", 1000, (224, 224, 3), 1.82e9),
    ],
)
def test_near_what_is_published(model: str, classes: int, shape: tuple[int, ...], products: float) -> None:
    """Published counts have the products with padding, and wrn_16_2's is without its 1x1 shortcuts: a tenth apart; a
    backward pass is two forward ones but for the first layer."""
    counted = flops.count_flops_per_image(models.create(model, classes), shape)
    assert counted.forward == pytest.approx(2 * products, rel=0.25)
    assert counted.backward == pytest.approx(2 * counted.forward, rel=0.1)


def test_form_and_remat_do_not_matter() -> None:
    plain = flops.count_flops_per_image(models.create("resnet8", 10), (8, 8, 1))
    other = models.create("resnet8", 10, convolution=jax.lax.conv_general_dilated, remat=True, dtype=jnp.bfloat16)
    assert flops.count_flops_per_image(other, (8, 8, 1)) == plain


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> finished_runs.Run:
    """A run that has steps of both modes, in batches of one size."""
    folder = tmp_path_factory.mktemp("cost") / "run"
    c = tiny_runs.tiny_config("one_layer", batch_size=64, epochs=3.0)
    c.data.train_examples = 640
    c.switokd.threshold = 0.08
    loop.train_and_evaluate(c, folder, jax.devices()[:1])
    return finished_runs.read_run(folder)


def test_spent_is_what_the_step_log_says(run: finished_runs.Run) -> None:
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
    np.testing.assert_allclose(compare.cumulative_flops(run), np.cumsum(by_step)[9::10], rtol=1e-12)


def test_expert_share_is_that_of_the_step_log(run: finished_runs.Run) -> None:
    epochs, shares = compare.expert_share_curve(run, "teacher->student") or ((), ())
    expert = np.asarray([line["teacher->student/expert"] for line in run.rows("train")], float)
    np.testing.assert_array_equal(epochs, [1, 2, 3])
    np.testing.assert_allclose(shares, 100 * expert.reshape(3, 10).mean(axis=1))
    assert run.summary["switch"]["teacher->student"]["expert_fraction"] == pytest.approx(expert.mean())
