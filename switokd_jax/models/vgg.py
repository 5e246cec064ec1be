"""VGG networks with BatchNorm for 32-pixel images.

Source: Simonyan and Zisserman 2014 (arXiv 1409.1556); convolutions have biases. vgg8 and vgg13 are those of the usual
distillation benchmarks (RepDistiller), with one linear layer on the pooled features. vgg16 has two more linear layers
of 512 features with dropout before it, which gives the 15.3M parameters of the UniOKD tables.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from switokd_jax.models.layers import Layers, dropout, global_avg_pool, kaiming_normal_fan_out, sow_feature

# Channels of the convolutions in each of the five blocks, by depth.
BLOCKS = {
    8: ((64,), (128,), (256,), (512,), (512,)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
}


class VGG(nn.Module):
    """VGG with BatchNorm for 32 pixels.

    Attributes:
      depth: 8, 13 or 16.
      num_classes: number of logits.
      layers: options of its layers; there is nothing to compute again with `remat`.
    """

    depth: int
    num_classes: int
    layers: Layers = Layers(remat=None)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes]."""
        layers = self.layers.replace(train=train, conv_init=kaiming_normal_fan_out)
        x, height = x.astype(layers.dtype), x.shape[1]
        for block, widths in enumerate(BLOCKS[self.depth]):
            for i, features in enumerate(widths):
                # The names are indices of torch's Sequential, which counts convolution, norm and relu.
                x = layers.conv(x, features, 3, name=f"block{block}_{3 * i}", use_bias=True)
                x = nn.relu(layers.norm(x, name=f"block{block}_{3 * i + 1}"))
            x = sow_feature(self, f"stage{block + 1}", x)
            if block < 3 or (block == 3 and height >= 64):
                x = nn.max_pool(x, (2, 2), (2, 2))
        init: dict[str, Any] = {"kernel_init": nn.initializers.normal(0.01), "bias_init": nn.initializers.zeros_init()}
        x = global_avg_pool(self, x)
        if self.depth < 16:
            return layers.logits(x, self.num_classes, name="classifier", **init)
        for index in (1, 4):
            x = dropout(self, x, 0.5, train=train)
            x = nn.relu(layers.dense(x, 512, name=f"classifier_{index}", **init))
        return layers.logits(x, self.num_classes, name="classifier_6", **init)
