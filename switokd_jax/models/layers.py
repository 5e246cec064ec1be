"""Convolutions, norms and heads that all models use, with PyTorch's defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers as init

from switokd_jax.models.ops.batch_norm import BatchNorm
from switokd_jax.models.ops.convolution import convolution
from switokd_jax.precision import promote_to_float32


def conv(
    features: int,
    size: int,
    stride: int = 1,
    *,
    name: str,
    kernel_init: Any,
    use_bias: bool = False,
    groups: int = 1,
    convolution: Any = convolution,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> nn.Conv:
    """A square convolution with torch's symmetric padding (size - 1) / 2 and zero initial biases."""
    return nn.Conv(
        features,
        (size, size),
        stride,
        padding=size // 2,
        use_bias=use_bias,
        feature_group_count=groups,
        kernel_init=kernel_init,
        dtype=dtype,
        param_dtype=param_dtype,
        conv_general_dilated=convolution,
        name=name,
    )


def norm(
    *,
    name: str,
    train: bool,
    momentum: float = 0.9,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> BatchNorm:
    """BatchNorm with torch's epsilon; flax's momentum is 1 - torch's (0.9 for torch's default 0.1)."""
    return BatchNorm(
        train=train,
        momentum=momentum,
        epsilon=1e-5,
        axis_name=axis_name,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )


def linear(
    x: jax.Array,
    features: int,
    *,
    name: str,
    kernel_init: Any = None,
    bias_init: Any = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> jax.Array:
    """A linear layer [batch, inputs] to [batch, features]; the initialisers' defaults are torch.nn.Linear's."""
    layer = nn.Dense(
        features,
        kernel_init=kernel_init or init.variance_scaling(1 / 3, "fan_in", "uniform"),
        bias_init=bias_init or linear_bias_init(x.shape[-1]),
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )
    return layer(x)


def patches(
    x: jax.Array, features: int, side: int, *, name: str, convolution: Any = convolution, **kinds: Any
) -> jax.Array:
    """One linear layer on every patch of `side` pixels, as a convolution whose stride is its size.

    [batch, height, width, channels] to [batch, height / side, width / side, features]; torch.nn.Conv2d's defaults.
    """
    layer = nn.Conv(
        features,
        (side, side),
        side,
        padding=0,
        kernel_init=init.variance_scaling(1 / 3, "fan_in", "uniform"),
        bias_init=linear_bias_init(side * side * x.shape[-1]),
        conv_general_dilated=convolution,
        name=name,
        **kinds,
    )
    return layer(x)


def block(kind: Any, *, remat: bool) -> Any:
    """A kind of block, or one that is computed again in the backward pass: memory for one block, a third more work."""
    return nn.remat(kind) if remat else kind


def tap(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Lets methods that learn from features take x by that name, and Grad-CAM the gradient at it; costs nothing where
    nobody does. What comes out of it flows on.

    All models name their stages 'stage1', 'stage2', ... and what the classifier sees 'pooled'.
    """
    module.sow("intermediates", name, x)
    # What `init` makes are a network's variables, to checkpoints of PyTorch too: nothing else may be among them.
    return x if module.is_initializing() else module.perturb(name, x)


def pooled(module: nn.Module, x: jax.Array) -> jax.Array:
    """Global average pooling [b, h, w, c] to [b, c], tapped as 'pooled'."""
    return tap(module, "pooled", jnp.mean(x, axis=(1, 2)))


def classifier(module: nn.Module, x: jax.Array, num_classes: int, **options: Any) -> jax.Array:
    """`pooled` and `linear`: [b, h, w, c] to logits [b, classes], float32 at least."""
    return promote_to_float32(linear(pooled(module, x), num_classes, **options))


def dropout(module: nn.Module, x: jax.Array, rate: float, *, train: bool) -> jax.Array:
    """Zeroes this share of [batch, features] in training and scales up the rest.

    Every example draws from its place in the global batch, so the mask is the same on any device count: the
    step gives the places in the collection 'batch'. Call it in the outermost module.
    """
    if not train:
        return x
    key = module.make_rng("dropout")
    places = module.get_variable("batch", "places", jnp.arange(x.shape[0], dtype=jnp.int32))
    bits = jax.vmap(lambda place: jax.random.bits(jax.random.fold_in(key, place), x.shape[1:], jnp.uint32))(places)
    # Integers, because uniform draws of float64 runs are other numbers.
    keep = bits >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def linear_bias_init(fan_in: int) -> Any:
    """torch.nn.Linear's default for biases: uniform in +- 1 / sqrt(fan_in)."""

    def initialise(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / fan_in**0.5

    return initialise


def inverse_fan_in(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Normal with standard deviation 1 / fan_in, fan_in = elements of one filter (SwitOKD's main.py)."""
    fan_in = 1
    for side in shape[:-1]:
        fan_in *= side
    return jax.random.normal(key, shape, dtype) / fan_in


kaiming_normal = init.variance_scaling(2.0, "fan_in", "normal")
kaiming_normal_fan_out = init.variance_scaling(2.0, "fan_out", "normal")
xavier_uniform_sqrt2 = init.variance_scaling(2.0, "fan_avg", "uniform")  # gain sqrt(2)
