"""Wide residual networks as the SwitOKD code builds them.

Source: Zagoruyko and Komodakis 2016 (arXiv 1605.07146). As in the public SwitOKD code, convolutions have biases, the
second convolution of a block has the stride, the 1x1 shortcut takes the raw input of the block, and the last BatchNorm
averages with torch's momentum 0.9.
"""

from __future__ import annotations

from typing import ClassVar

import jax
from flax import linen as nn

from switokd_jax.models.branches import Part
from switokd_jax.models.layers import Layers, global_avg_pool, sow_feature, xavier_uniform_sqrt2


class WideBlock(nn.Module):
    """Pre-activation block: norm, relu, conv, norm, relu, conv(stride), plus the shortcut."""

    layers: Layers
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, height / stride, width / stride, features]."""
        layers = self.layers
        out = layers.conv(nn.relu(layers.norm(x, name="bn1")), self.features, 3, name="conv1", use_bias=True)
        out = nn.relu(layers.norm(out, name="bn2"))
        out = layers.conv(out, self.features, 3, self.stride, name="conv2", use_bias=True)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = layers.conv(x, self.features, 1, self.stride, name="shortcut_0", use_bias=True)
        return out + x


class WideResNet(nn.Module):
    """Wide ResNet of depth D and width K, as the SwitOKD code builds it.

    Attributes:
      depth: 6 n + 4.
      width: multiplies the 16, 32, 64 channels of the three stages.
      num_classes: number of logits.
      layers: options of its layers.
      part: stages that it consists of; the whole network unless it is the trunk or a branch of one with branches.
    """

    depth: int
    width: int
    num_classes: int
    layers: Layers = Layers()
    part: Part = Part()
    stage_count: ClassVar[int] = 3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes]."""
        layers = self.layers.replace(train=train, conv_init=xavier_uniform_sqrt2)
        block_cls = layers.maybe_remat(WideBlock)
        if self.part.has_stem:
            x = layers.conv(x.astype(layers.dtype), 16, 3, name="conv1", use_bias=True)
        for stage in self.part.stages(self.stage_count):
            for block in range((self.depth - 4) // 6):
                stride = 2 if stage > 1 and block == 0 else 1
                x = block_cls(layers, 16 * self.width * 2 ** (stage - 1), stride, name=f"layer{stage}_{block}")(x)
            x = sow_feature(self, f"stage{stage}", x)
        if not self.part.has_classifier:
            return x
        x = nn.relu(layers.norm(x, name="bn1", momentum=0.1))
        return layers.logits(global_avg_pool(self, x), self.num_classes, name="linear")
