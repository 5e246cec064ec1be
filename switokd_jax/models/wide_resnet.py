"""Wide residual networks as the SwitOKD code builds them.

Source: Zagoruyko and Komodakis 2016 (arXiv 1605.07146) in the form of the public SwitOKD code: its
convolutions have biases, the stride stands on a block's second convolution, the 1x1 shortcut takes the
block's raw input, and the last BatchNorm averages with torch momentum 0.9.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from switokd_jax.models import layers


class WideBlock(nn.Module):
    """norm, relu, conv, norm, relu, conv(stride), plus the shortcut."""

    features: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features [batch, height, width, channels] of such features."""
        out = self.conv(self.features, 3, name="conv1")(nn.relu(self.norm(name="bn1")(x)))
        out = self.conv(self.features, 3, self.stride, name="conv2")(nn.relu(self.norm(name="bn2")(out)))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = self.conv(self.features, 1, self.stride, name="shortcut_0")(x)
        return out + x


class WideResNet(nn.Module):
    """Wide ResNet of depth D and width K, as the SwitOKD code builds it.

    [batch, height, width, channels] to logits [batch, classes].

    Attributes:
      depth: 6 n + 4.
      width: multiplies the 16, 32, 64 channels of the three stages.
      num_classes: number of logits.
      dtype: of the computation; logits come in float32 at least.
      param_dtype: of parameters and running statistics.
      axis_name: of the devices over which BatchNorm averages, under pmap.
      convolution: `models.convolution.convolution`, or what `for_devices` makes of it.
      remat: whether blocks keep their inputs only and are computed again in the backward pass.
    """

    depth: int
    width: int
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
            layers.conv, convolution=self.convolution, use_bias=True, kernel_init=layers.xavier_uniform_sqrt2, **kinds
        )
        norm: Any = functools.partial(layers.norm, train=train, axis_name=self.axis_name, **kinds)
        x = conv(16, 3, name="conv1")(x.astype(self.dtype))
        for stage, stride in enumerate((1, 2, 2)):
            for block in range((self.depth - 4) // 6):
                x = layers.block(WideBlock, remat=self.remat)(
                    features=16 * self.width * 2**stage,
                    stride=stride if block == 0 else 1,
                    conv=conv,
                    norm=norm,
                    name=f"layer{stage + 1}_{block}",
                )(x)
            x = layers.tap(self, f"stage{stage + 1}", x)
        x = nn.relu(norm(name="bn1", momentum=0.1)(x))
        return layers.classifier(self, x, self.num_classes, name="linear", **kinds)
