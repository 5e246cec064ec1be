"""Densely connected networks with bottlenecks and compression for 32-pixel images.

Source: Huang et al. 2017 (arXiv 1608.06993), DenseNet-BC: three blocks of (depth - 4) / 6 layers, each a 1x1
convolution to 4 k channels and a 3x3 convolution to k; transitions halve the channels. densenet_40_12 has 0.19M
parameters at 100 classes, the student of the UniOKD tables.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from switokd_jax.models import layers


class DenseLayer(nn.Module):
    """norm, relu, 1x1, norm, relu, 3x3; its output joins its input."""

    growth: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features [batch, height, width, channels] to channels + growth."""
        out = self.conv(4 * self.growth, 1, name="conv1")(nn.relu(self.norm(name="bn1")(x)))
        out = self.conv(self.growth, 3, name="conv2")(nn.relu(self.norm(name="bn2")(out)))
        return jnp.concatenate([x, out], axis=-1)


class Transition(nn.Module):
    """norm, relu, 1x1 to half the channels, 2x2 average pooling."""

    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features [batch, height, width, channels] to half of height, width and channels."""
        x = self.conv(x.shape[-1] // 2, 1, name="conv1")(nn.relu(self.norm(name="bn1")(x)))
        return nn.avg_pool(x, (2, 2), (2, 2))


class DenseNet(nn.Module):
    """DenseNet of depth D and growth rate K, with bottlenecks and compression, for 32 pixels.

    [batch, height, width, channels] to logits [batch, classes]; attributes as in `WideResNet`.

    Attributes:
      depth: 6 n + 4.
      growth: k, channels that each layer adds.
    """

    depth: int
    growth: int
    num_classes: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None
    convolution: Any = layers.convolution
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        kinds: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv: Any = functools.partial(
            layers.conv, convolution=self.convolution, kernel_init=layers.kaiming_normal_fan_out, **kinds
        )
        norm: Any = functools.partial(layers.norm, train=train, axis_name=self.axis_name, **kinds)
        x = conv(2 * self.growth, 3, name="conv1")(x.astype(self.dtype))
        for block in range(3):
            for layer in range((self.depth - 4) // 6):
                x = layers.block(DenseLayer, remat=self.remat)(
                    self.growth, conv, norm, name=f"dense{block + 1}_{layer}"
                )(x)
            x = layers.tap(self, f"stage{block + 1}", x)
            if block < 2:
                x = Transition(conv, norm, name=f"trans{block + 1}")(x)
        x = nn.relu(norm(name="bn")(x))
        return layers.classifier(self, x, self.num_classes, name="fc", **kinds)
