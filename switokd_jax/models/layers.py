"""Convolutions and norms that all models use, with PyTorch's defaults and gradients that are fast on CPU.

XLA:CPU rewrites only the convolutions of the entry computation for its fast library; inside `lax.cond`
and `lax.scan` the exotic dimension numbers of a convolution's gradients fall to a naive loop, a hundred
times slower (jax issue 12868). So on CPU both gradients are spelt out here as plain NHWC x HWIO
convolutions of transposed arrays, and depthwise convolutions as sums of shifted products.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn import initializers as init

from switokd_jax.losses import at_least_float32

Pads = tuple[tuple[int, int], tuple[int, int]]
PLAIN = ("NHWC", "HWIO", "NHWC")


def conv(
    features: int,
    size: int,
    stride: int = 1,
    *,
    name: str,
    kernel_init: Any,
    use_bias: bool = False,
    groups: int = 1,
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
) -> nn.BatchNorm:
    """BatchNorm with torch's epsilon; flax's momentum is 1 - torch's (0.9 for torch's default 0.1)."""
    return nn.BatchNorm(
        use_running_average=not train,
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


def tap(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Lets methods that learn from features take x by that name; costs nothing where nobody does.

    All models name their stages 'stage1', 'stage2', ... and what the classifier sees 'pooled'.
    """
    module.sow("intermediates", name, x)
    return x


def pooled(module: nn.Module, x: jax.Array) -> jax.Array:
    """Global average pooling [b, h, w, c] to [b, c], tapped as 'pooled'."""
    return tap(module, "pooled", jnp.mean(x, axis=(1, 2)))


def classifier(module: nn.Module, x: jax.Array, num_classes: int, **options: Any) -> jax.Array:
    """`pooled` and `linear`: [b, h, w, c] to logits [b, classes], float32 at least."""
    return at_least_float32(linear(pooled(module, x), num_classes, **options))


def dropout(module: nn.Module, x: jax.Array, rate: float, *, train: bool) -> jax.Array:
    """Zeroes this share of [batch, features] in training and scales up the rest.

    Every example draws from its place in the global batch, so the mask is the same on any device count: the
    step says in the collection 'batch' which example is this device's first. Call it in the outermost module.
    """
    if not train:
        return x
    key, first = module.make_rng("dropout"), module.get_variable("batch", "first", 0)
    places = first + jnp.arange(x.shape[0], dtype=jnp.int32)
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


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> jax.Array:
    """`lax.conv_general_dilated` for [batch, height, width, channels], in the form the backend likes."""
    depthwise = feature_group_count == x.shape[-1] > 1 and kernel.shape[-1] == x.shape[-1]
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    if jax.default_backend() != "cpu" or dilated or (feature_group_count > 1 and not depthwise):
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            precision=precision,
        )
    stride = (strides[0], strides[1])
    pads = (padding[0], padding[1])
    if depthwise:
        return _depthwise(x, kernel, stride, pads)
    if kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0)):
        x, stride = x[:, :: stride[0], :: stride[1]], (1, 1)
    return _plain(x, kernel, stride, pads)


def _depthwise(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads) -> jax.Array:
    rows, columns = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height = (x.shape[1] - rows) // stride[0] + 1
    width = (x.shape[2] - columns) // stride[1] + 1
    total = jnp.zeros((), x.dtype)
    for i in range(rows):
        for j in range(columns):
            last = (i + (height - 1) * stride[0] + 1, j + (width - 1) * stride[1] + 1)
            shifted = lax.slice(x, (0, i, j, 0), (x.shape[0], *last, x.shape[3]), (1, stride[0], stride[1], 1))
            total = total + shifted * kernel[i, j, 0]
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _plain(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, stride, pads, dimension_numbers=PLAIN)


def _forward(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads) -> Any:
    return _plain(x, kernel, stride, pads), (x, kernel)


def _backward(stride: tuple[int, int], pads: Pads, saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    # Elements that the strided output spans; what lies behind the last window never took part.
    span = [(g.shape[1 + i] - 1) * stride[i] + 1 for i in (0, 1)]

    # dx: the output's gradient, dilated by the stride, correlated with the rotated kernel.
    rotated = jnp.transpose(kernel[::-1, ::-1], (0, 1, 3, 2))
    low = [kernel.shape[i] - 1 - pads[i][0] for i in (0, 1)]
    high = [x.shape[1 + i] + kernel.shape[i] - 1 - span[i] - low[i] for i in (0, 1)]
    dx = lax.conv_general_dilated(
        g, rotated, (1, 1), tuple(zip(low, high, strict=True)), lhs_dilation=stride, dimension_numbers=PLAIN
    )

    # dkernel: input channels become the batch, the batch becomes the channels that are summed over.
    high = [kernel.shape[i] - 1 - x.shape[1 + i] - pads[i][0] + span[i] for i in (0, 1)]
    dkernel = lax.conv_general_dilated(
        jnp.transpose(x, (3, 1, 2, 0)),
        jnp.transpose(g, (1, 2, 0, 3)),
        (1, 1),
        tuple((pads[i][0], high[i]) for i in (0, 1)),
        rhs_dilation=stride,
        dimension_numbers=PLAIN,
    )
    return dx, jnp.transpose(dkernel, (1, 2, 0, 3))


_plain.defvjp(_forward, _backward)
