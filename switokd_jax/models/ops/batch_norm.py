"""BatchNorm with the parameters, statistics and numbers of `flax.linen.BatchNorm`, and a backward pass of its own.

A layer needs two sums over the batch forward, of x and its square, and two backward, of the gradient and its product
with what was normalised. Derived by JAX they are sums of their own, which XLA:GPU joins with whatever reads the same
arrays: in small stages one thread block then computes a whole layer. Here each pair is one reduction on GPUs.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


def _at_once(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(jnp.stack([a, b]), range(1, a.ndim))


def _one_by_one(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.stack([jnp.sum(a, range(a.ndim - 1)), jnp.sum(b, range(b.ndim - 1))])


def _both_sums(a: jax.Array, b: jax.Array) -> jax.Array:
    """[..., channels] twice to [2, channels]: each one's sum over all but the channels."""
    sums: jax.Array = lax.platform_dependent(a, b, cuda=_at_once, rocm=_at_once, default=_one_by_one)
    return sums


def _mean_of(sums: jax.Array, x: jax.Array, axis_name: str | None) -> jax.Array:
    """Sums over this device's batch to means over the batch of all devices of the axis."""
    means = sums / (x.size // x.shape[-1])
    return means if axis_name is None else lax.pmean(means, axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises by the batch's own statistics.

    Args:
      x: [..., channels].
      scale: [channels].
      bias: [channels].
      epsilon: added to the variance.
      axis_name: of the devices whose batches count as one, under pmap.

    Returns:
      What x becomes, in its dtype; mean and variance [channels], float32 at least, through which no gradient flows.
    """
    return _forward(x, scale, bias, epsilon, axis_name)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None) -> Any:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, mean_square = _mean_of(_both_sums(wide, wide * wide), x, axis_name)
    # Rounding may leave the difference below 0.
    variance = jnp.maximum(mean_square - mean * mean, 0.0)
    inverse = lax.rsqrt(variance + epsilon)
    y = (wide - mean) * (inverse * scale) + bias
    return (y.astype(x.dtype), mean, variance), (x, scale, bias, mean, inverse)


def _backward(
    epsilon: float, axis_name: str | None, saved: Any, gradients: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon
    x, scale, bias, mean, inverse = saved
    g = gradients[0].astype(mean.dtype)
    normal = (x.astype(mean.dtype) - mean) * inverse
    sums = _both_sums(g, g * normal)
    mean_g, mean_product = _mean_of(sums, x, axis_name)
    dx = (inverse * scale) * (g - mean_g - normal * mean_product)
    dbias, dscale = sums
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


normalize.defvjp(_forward, _backward)


class BatchNorm(nn.Module):
    """Takes the place of `flax.linen.BatchNorm` over the last axis.

    Attributes:
      train: whether to normalise by the batch, and to move the running statistics towards it, or by those.
      momentum: the running statistics' share of their old value.
      epsilon: added to the variance.
      axis_name: of the devices over which statistics are averaged, under pmap.
      dtype: of what is returned; statistics are float32 at least.
      param_dtype: of scale and bias.
    """

    train: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., channels] to the same."""
        channels = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, channels, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, channels, self.param_dtype)
        x = x.astype(self.dtype)
        if not self.train:
            factor = lax.rsqrt(variance.value + self.epsilon) * scale
            return ((x - mean.value) * factor + bias).astype(self.dtype)
        axis_name = None if self.is_initializing() else self.axis_name
        y, batch_mean, batch_variance = normalize(x, scale, bias, self.epsilon, axis_name)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1.0 - self.momentum) * batch_mean
            variance.value = self.momentum * variance.value + (1.0 - self.momentum) * batch_variance
        return y
