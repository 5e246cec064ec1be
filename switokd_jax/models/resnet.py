"""CIFAR residual networks with parameter-free shortcuts.

Source: He et al. 2015 (arXiv 1512.03385), section 4.2, option A, in the form of the public SwitOKD code:
resnet20 has 0.27M parameters. The shortcut subsamples by 2 and pads the channels with zeros on both sides.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from switokd_jax.models import layers


class BasicBlock(nn.Module):
    """conv(stride), norm, relu, conv, norm, plus the shortcut, relu."""

    features: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features [batch, height, width, channels] of such features."""
        out = nn.relu(self.norm(name="bn1")(self.conv(self.features, 3, self.stride, name="conv1")(x)))
        out = self.norm(name="bn2")(self.conv(self.features, 3, name="conv2")(out))
        if self.stride != 1 or x.shape[-1] != self.features:
            side = (self.features - x.shape[-1]) // 2
            x = jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (side, side)))
        return nn.relu(out + x)


class ResNet(nn.Module):
    """CIFAR ResNet with parameter-free shortcuts.

    [batch, height, width, channels] to logits [batch, classes]; attributes as in `WideResNet`.

    Attributes:
      depth: 6 n + 2.
    """

    depth: int
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
            layers.conv, convolution=self.convolution, kernel_init=layers.kaiming_normal, **kinds
        )
        norm: Any = functools.partial(layers.norm, train=train, axis_name=self.axis_name, **kinds)
        x = nn.relu(norm(name="bn1")(conv(16, 3, name="conv1")(x.astype(self.dtype))))
        for stage, stride in enumerate((1, 2, 2)):
            for block in range((self.depth - 2) // 6):
                x = layers.block(BasicBlock, remat=self.remat)(
                    features=16 * 2**stage,
                    stride=stride if block == 0 else 1,
                    conv=conv,
                    norm=norm,
                    name=f"layer{stage + 1}_{block}",
                )(x)
            x = layers.tap(self, f"stage{stage + 1}", x)
        return layers.classifier(self, x, self.num_classes, name="linear", kernel_init=layers.kaiming_normal, **kinds)
