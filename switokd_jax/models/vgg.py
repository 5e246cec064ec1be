"""VGG networks with BatchNorm for 32-pixel images.

Source: Simonyan and Zisserman 2014 (arXiv 1409.1556); convolutions with biases. vgg8 and vgg13 have the form of
the usual distillation benchmarks (RepDistiller): one linear layer on the pooled features. vgg16 has two more of
512 features with dropout before it, which gives the 15.3M parameters of the UniOKD tables.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from switokd_jax.models import layers

# Channels of the convolutions in each of the five blocks.
BLOCKS = {
    8: ((64,), (128,), (256,), (512,), (512,)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
}


class VGG(nn.Module):
    """VGG with BatchNorm for 32 pixels.

    [batch, height, width, channels] to logits [batch, classes]; attributes as in `WideResNet`.

    Attributes:
      depth: 8, 13 or 16.
    """

    depth: int
    num_classes: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None
    convolution: Any = layers.convolution

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        kinds: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv: Any = functools.partial(
            layers.conv, convolution=self.convolution, use_bias=True, kernel_init=layers.kaiming_normal_fan_out, **kinds
        )
        norm: Any = functools.partial(layers.norm, train=train, axis_name=self.axis_name, **kinds)
        x, height = x.astype(self.dtype), x.shape[1]
        for block, widths in enumerate(BLOCKS[self.depth]):
            for layer, features in enumerate(widths):
                # torch's Sequential counts convolution, norm and relu.
                x = conv(features, 3, name=f"block{block}_{3 * layer}")(x)
                x = nn.relu(norm(name=f"block{block}_{3 * layer + 1}")(x))
            x = layers.tap(self, f"stage{block + 1}", x)
            if block < 3 or (block == 3 and height >= 64):
                x = nn.max_pool(x, (2, 2), (2, 2))
        head: Any = functools.partial(
            layers.linear, kernel_init=nn.initializers.normal(0.01), bias_init=nn.initializers.zeros_init(), **kinds
        )
        x = layers.pooled(self, x)
        if self.depth < 16:
            return layers.promote_to_float32(head(x, self.num_classes, name="classifier"))
        for index in (1, 4):
            x = nn.relu(head(layers.dropout(self, x, 0.5, train=train), 512, name=f"classifier_{index}"))
        return layers.promote_to_float32(head(x, self.num_classes, name="classifier_6"))
