"""Our BatchNorm beside flax's: numbers, gradients, statistics, devices; and the form that GPUs get."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from switokd_jax.models.ops import batch_norm
from switokd_jax.models.ops.batch_norm import BatchNorm

SHAPES = [(16, 5, 3, 7), (16, 6)]
KINDS: dict[str, Any] = {"momentum": 0.7, "epsilon": 1e-5}
# What the numbers of one dtype agree to.
CLOSE: dict[Any, float] = {jnp.float64: 1e-12, jnp.float32: 2e-5, jnp.bfloat16: 0.05}
Layers = tuple[nn.Module, nn.Module]


def layers(*, train: bool, **kinds: Any) -> Layers:
    return BatchNorm(train=train, **KINDS, **kinds), nn.BatchNorm(use_running_average=not train, **KINDS, **kinds)


def drawn(shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, jax.Array, Any]:
    """An input that is far from normal, the output's gradient, and parameters and statistics for it."""
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(0.5, 2.0, shape), dtype) for _ in range(2))
    wide = jnp.promote_types(dtype, jnp.float32)
    scale, bias, mean, var = (jnp.asarray(rng.uniform(0.5, 1.5, shape[-1:]), wide) for _ in range(4))
    return x, weight, {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}


def results(layer: nn.Module, x: jax.Array, weight: jax.Array, variables: Any) -> Any:
    """What a layer returns, its new statistics, and the gradients of parameters and input."""

    def loss(params: Any, x: jax.Array) -> Any:
        y, after = layer.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.sum((y * weight).astype(jnp.promote_types(x.dtype, jnp.float32))), (y, after)

    (_, seen), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)
    return seen, gradients


def assert_same(ours: Any, theirs: Any, tolerance: float) -> None:
    def close(a: jax.Array, b: jax.Array) -> None:
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        here, there = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(here, there, rtol=tolerance, atol=tolerance * np.abs(there).max())

    jax.tree.map(close, ours, theirs)  # refuses trees of two structures


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_are_flax_s(shape: tuple[int, ...], dtype: Any, train: bool) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        kinds: dict[str, Any] = {"dtype": dtype, "param_dtype": jnp.promote_types(dtype, jnp.float32)}
        ours, theirs = (
            jax.jit(functools.partial(results, layer))(*drawn(shape, dtype)) for layer in layers(train=train, **kinds)
        )
        assert_same(ours, theirs, CLOSE[dtype])


def test_variables_are_flax_s() -> None:
    x = jnp.ones((4, 2, 2, 3))
    ours, theirs = (layer.init(jax.random.key(0), x) for layer in layers(train=True))
    assert_same(ours, theirs, 0.0)


@pytest.mark.parametrize("train", [True, False])
def test_devices_normalise_by_all_their_batches(train: bool) -> None:
    """As one device does by the whole batch: gradients of parameters are then each device's share of their sum."""
    with jax.enable_x64(True):
        kinds: dict[str, Any] = {"dtype": jnp.float64, "param_dtype": jnp.float64, "train": train}
        x, weight, variables = drawn(SHAPES[0], jnp.float64)
        whole = results(BatchNorm(**KINDS, **kinds), x, weight, variables)
        split = functools.partial(results, BatchNorm(**KINDS, **kinds, axis_name="devices"))
        parts = [array.reshape(8, -1, *array.shape[1:]) for array in (x, weight)]
        ((y, after), (params, dx)) = jax.pmap(split, "devices", in_axes=(0, 0, None))(*parts, variables)
        assert_same(y.reshape(x.shape), whole[0][0], 1e-12)
        assert_same(dx.reshape(x.shape), whole[1][1], 1e-12)
        assert_same(jax.tree.map(lambda leaf: jnp.sum(leaf, 0), params), whole[1][0], 1e-12)
        for device in range(8):
            assert_same(jax.tree.map(lambda leaf, at=device: leaf[at], after), whole[0][1], 1e-12)


def test_a_constant_channel_stays_finite() -> None:
    """Rounding may leave a negative variance, whose root is not a number."""
    x = jnp.full((64, 3), 1234.567, jnp.float32)
    _, weight, variables = drawn((64, 3), jnp.float32)
    assert all(
        jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(results(layers(train=True)[0], x, weight, variables))
    )


def test_gpus_get_one_reduction_for_each_pair_of_sums() -> None:
    """Also numerically the same pair."""
    x, weight, _ = drawn(SHAPES[0], jnp.float32)

    def reductions(platform: str, sums: Callable[..., jax.Array]) -> int:
        lowered = jax.jit(sums).trace(x, weight).lower(lowering_platforms=(platform,))
        return lowered.as_text().count("stablehlo.reduce(")

    assert (reductions("cuda", batch_norm._both_sums), reductions("cpu", batch_norm._both_sums)) == (1, 2)
    assert_same(batch_norm._at_once(x, weight), batch_norm._one_by_one(x, weight), CLOSE[jnp.float32])
