"""BatchNorm with its own backward pass; parameters and numbers are those of `flax.linen.BatchNorm`.

The running variance averages the unbiased variance of the batches, as torch.nn.BatchNorm2d's does, or the biased one as
Flax's.

Forward, over all axes but the channels, with n elements per channel:

    mean = sum(x) / n,   var = sum(x^2) / n - mean^2,   x_hat = (x - mean) / sqrt(var + epsilon)
    y = scale * x_hat + bias

Backward, for the gradient g of y:

    dbias = sum(g),   dscale = sum(g * x_hat)
    dx = scale / sqrt(var + epsilon) * (g - dbias / n - x_hat * dscale / n)

Each direction needs two sums of the same arrays. JAX's own derivative computes them one by one, and XLA:GPU fuses each
with other readers of these arrays: in small stages one thread block then computes an entire layer. On GPUs each pair is
one reduction here.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from switokd_jax.errors import UserError
from switokd_jax.precision import promote_to_float32


def _sum_stacked(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(jnp.stack([a, b]), range(1, a.ndim))


def _sum_separately(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.stack([jnp.sum(a, range(a.ndim - 1)), jnp.sum(b, range(b.ndim - 1))])


def _sum_both(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sums both arrays [..., channels] over all axes but the channels; returns [2, channels]."""
    sums: jax.Array = lax.platform_dependent(a, b, cuda=_sum_stacked, rocm=_sum_stacked, default=_sum_separately)
    return sums


def _batch_means(sums: jax.Array, x: jax.Array, axis_name: str | None) -> jax.Array:
    """Divides sums over this device's batch x by its size, and averages them over the devices of the axis."""
    means = sums / (x.size // x.shape[-1])
    return means if axis_name is None else lax.pmean(means, axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes x by the statistics of its own batch.

    Args:
      x: [..., channels].
      scale: [channels].
      bias: [channels].
      epsilon: added to the variance.
      axis_name: mapped device axis whose batches count as one; None for this batch alone.

    Returns:
      y in the shape and dtype of x; mean and variance [channels], float32 at least. No gradient flows through the last
      two.
    """
    return _forward(x, scale, bias, epsilon, axis_name)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None) -> Any:
    x32 = promote_to_float32(x)
    mean, mean_square = _batch_means(_sum_both(x32, x32 * x32), x, axis_name)
    # Rounding may leave the difference below 0.
    variance = jnp.maximum(mean_square - mean * mean, 0.0)
    inv_std = lax.rsqrt(variance + epsilon)
    y = (x32 - mean) * (inv_std * scale) + bias
    return (y.astype(x.dtype), mean, variance), (x, scale, bias, mean, inv_std)


def _backward(
    epsilon: float, axis_name: str | None, residuals: Any, cotangents: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon
    x, scale, bias, mean, inv_std = residuals
    g = cotangents[0].astype(mean.dtype)
    x_hat = (x.astype(mean.dtype) - mean) * inv_std
    sums = _sum_both(g, g * x_hat)
    mean_g, mean_product = _batch_means(sums, x, axis_name)
    dx = (inv_std * scale) * (g - mean_g - x_hat * mean_product)
    dbias, dscale = sums
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


normalize.defvjp(_forward, _backward)


class BatchNorm(nn.Module):
    """BatchNorm over all axes but the last; takes the place of `flax.linen.BatchNorm`.

    Attributes:
      train: normalizes by the batch and updates the running statistics; else normalizes by these.
      unbiased_variance: whether the running variance averages n / (n - 1) times the variance of each batch, with n
        numbers per channel, as torch's does. Batches are normalized by the biased variance in any case.
      momentum: weight of the old running statistics: new = momentum * old + (1 - momentum) * batch.
      epsilon: added to the variance.
      axis_name: mapped device axis over which statistics are averaged; None for this batch alone.
      dtype: dtype of the output. Statistics are float32 at least.
      param_dtype: dtype of scale and bias.
    """

    train: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    unbiased_variance: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., channels] to the same shape, in `dtype`.

        Raises:
          UserError: in training, for one number per channel: it has no variance. torch refuses it likewise.
        """
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
            # JAX counts the devices of an axis without communication.
            n = x.size // x.shape[-1] * (1 if axis_name is None else lax.psum(1, axis_name))
            if n == 1:
                raise UserError(
                    f"BatchNorm {'/'.join(self.path)} would see one number per channel, which has no variance; change "
                    "config.batch_size so that every batch of an epoch has two images at least"
                )
            if self.unbiased_variance:
                batch_variance = batch_variance * (n / (n - 1))
            mean.value = self.momentum * mean.value + (1.0 - self.momentum) * batch_mean
            variance.value = self.momentum * variance.value + (1.0 - self.momentum) * batch_variance
        return y
