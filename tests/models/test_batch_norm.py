"""Our BatchNorm against Flax's: numbers, gradients, statistics, several devices; and its reductions on GPUs."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import tiny_runs
from switokd_jax.errors import UserError
from switokd_jax.models.ops import batch_norm
from switokd_jax.models.ops.batch_norm import BatchNorm
from switokd_jax.precision import float32_or_wider, promote_to_float32

SHAPES = [(16, 5, 3, 7), (16, 6)]
OPTIONS: dict[str, Any] = {"momentum": 0.7, "epsilon": 1e-5}
# Relative tolerance for numbers of a dtype.
TOLERANCE: dict[Any, float] = {jnp.float64: 1e-12, jnp.float32: 2e-5, jnp.bfloat16: 0.05}


def ours_and_flax_s(*, train: bool, **dtypes: Any) -> tuple[nn.Module, nn.Module]:
    ours = BatchNorm(train=train, unbiased_variance=False, **OPTIONS, **dtypes)
    return ours, nn.BatchNorm(use_running_average=not train, **OPTIONS, **dtypes)


def random_inputs(shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, jax.Array, Any]:
    """Returns an input that is far from normalized, the output's gradient, and parameters and statistics."""
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(0.5, 2.0, shape), dtype) for _ in range(2))
    param_dtype = float32_or_wider(dtype)
    scale, bias, mean, var = (jnp.asarray(rng.uniform(0.5, 1.5, shape[-1:]), param_dtype) for _ in range(4))
    return x, weight, {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}


def results(layer: nn.Module, x: jax.Array, weight: jax.Array, variables: Any) -> Any:
    """Returns ((output, new statistics), (gradients of the parameters, gradient of the input))."""

    def loss(params: Any, x: jax.Array) -> Any:
        y, mutated = layer.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.sum(promote_to_float32(y * weight)), (y, mutated)

    (_, outputs), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)
    return outputs, gradients


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    def assert_leaf(a: jax.Array, b: jax.Array) -> None:
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a64, b64 = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a64, b64, rtol=tolerance, atol=tolerance * np.abs(b64).max())

    jax.tree.map(assert_leaf, actual, expected)  # raises for trees of different structure


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_are_flax_s(shape: tuple[int, ...], dtype: Any, train: bool) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        ours, flax_s = (
            jax.jit(functools.partial(results, layer))(*random_inputs(shape, dtype))
            for layer in ours_and_flax_s(train=train, dtype=dtype, param_dtype=float32_or_wider(dtype))
        )
        assert_close(ours, flax_s, TOLERANCE[dtype])


def test_variables_are_flax_s() -> None:
    x = jnp.ones((4, 2, 2, 3))
    ours, flax_s = (layer.init(jax.random.key(0), x) for layer in ours_and_flax_s(train=True))
    assert_close(ours, flax_s, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False])
def test_eight_devices_normalize_like_one_with_the_global_batch(train: bool) -> None:
    """The gradients of the parameters are each device's term of their sum."""
    with jax.enable_x64(True):
        options: dict[str, Any] = {**OPTIONS, "dtype": jnp.float64, "param_dtype": jnp.float64, "train": train}
        x, weight, variables = random_inputs(SHAPES[0], jnp.float64)
        (y, stats), (dparams, dx) = results(BatchNorm(**options), x, weight, variables)
        per_device = functools.partial(results, BatchNorm(**options, axis_name="devices"))
        shards = [array.reshape(8, -1, *array.shape[1:]) for array in (x, weight)]
        (y8, stats8), (dparams8, dx8) = jax.pmap(per_device, "devices", in_axes=(0, 0, None))(*shards, variables)
        assert_close(y8.reshape(x.shape), y, 1e-12)
        assert_close(dx8.reshape(x.shape), dx, 1e-12)
        assert_close(jax.tree.map(lambda leaf: jnp.sum(leaf, 0), dparams8), dparams, 1e-12)
        for device in range(8):
            assert_close(jax.tree.map(lambda leaf, i=device: leaf[i], stats8), stats, 1e-12)


@pytest.mark.slow
def test_a_constant_channel_stays_finite() -> None:
    """Rounding may leave a negative variance, whose root is NaN."""
    x = jnp.full((64, 3), 1234.567, jnp.float32)
    _, weight, variables = random_inputs((64, 3), jnp.float32)
    leaves = jax.tree.leaves(results(BatchNorm(train=True, **OPTIONS), x, weight, variables))
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in leaves)


@pytest.mark.parametrize(("platform", "reductions"), [("cuda", 1), ("cpu", 2)])
def test_gpus_compute_a_pair_of_sums_in_one_reduction(platform: str, reductions: int) -> None:
    x, weight, _ = random_inputs(SHAPES[0], jnp.float32)
    lowered = jax.jit(batch_norm._sum_both).trace(x, weight).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count("stablehlo.reduce(") == reductions


def test_one_reduction_computes_the_same_sums_as_two() -> None:
    x, weight, _ = random_inputs(SHAPES[0], jnp.float32)
    assert_close(batch_norm._sum_stacked(x, weight), batch_norm._sum_separately(x, weight), TOLERANCE[jnp.float32])


@pytest.mark.slow
def test_the_running_variance_averages_unbiased_variances_as_torch_does() -> None:
    x = np.random.default_rng(0).normal(3.0, 2.0, (4, 3, 2, 5))
    with jax.enable_x64(True):
        for unbiased, n in ((True, 24 / 23), (False, 1.0)):
            module = BatchNorm(train=True, momentum=0.7, unbiased_variance=unbiased, dtype=jnp.float64)
            variables = module.init(jax.random.key(0), jnp.asarray(x))
            variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
            y, changed = module.apply(variables, jnp.asarray(x), mutable=["batch_stats"])
            stats = changed["batch_stats"]
            np.testing.assert_allclose(stats["mean"], 0.3 * x.mean((0, 1, 2)), rtol=1e-12)
            np.testing.assert_allclose(stats["var"], 0.7 + 0.3 * n * x.var((0, 1, 2)), rtol=1e-12)
            # The batch itself is normalized by the biased variance in both.
            np.testing.assert_allclose(
                y, (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5), rtol=1e-10, atol=1e-10
            )


def test_numbers_of_all_devices_of_an_axis_count() -> None:
    """Eight devices with two numbers per channel each are one batch of sixteen."""
    x = np.random.default_rng(0).normal(size=(8, 2, 3)).astype(np.float32)
    module = BatchNorm(train=True, axis_name="devices")
    variables = module.init(jax.random.key(0), jnp.asarray(x[0]))
    _, changed = jax.pmap(lambda part: module.apply(variables, part, mutable=["batch_stats"]), axis_name="devices")(x)
    expected = 0.9 + 0.1 * 16 / 15 * x.reshape(16, 3).var(0)
    np.testing.assert_allclose(changed["batch_stats"]["var"][5], expected, rtol=1e-5)


def test_one_number_per_channel_is_refused_as_torch_refuses_it() -> None:
    module = BatchNorm(train=True)
    x = jnp.ones((1, 1, 1, 4))
    variables = module.init(jax.random.key(0), x)
    with pytest.raises(UserError, match="would see one number per channel"):
        module.apply(variables, x, mutable=["batch_stats"])
    module.clone(train=False).apply(variables, x)


@pytest.mark.slow
def test_a_last_batch_of_one_image_is_refused_before_the_run() -> None:
    """Of 33 images in batches of 16 one is left; its last feature map has one pixel."""
    c = tiny_runs.tiny_config("mobilenetv2_0.25", "one_layer", batch_size=16)
    with pytest.raises(UserError, match=r"config\.networks\.teacher: BatchNorm \S+ would see one number per channel"):
        tiny_runs.tiny_plan(c, 33)
    tiny_runs.tiny_plan(c, 34)
    tiny_runs.tiny_plan(tiny_runs.tiny_config(batch_size=16), 33)  # four pixels are left
