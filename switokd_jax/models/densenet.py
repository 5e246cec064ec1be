"""Densely connected networks with bottlenecks and compression for 32-pixel images.

Source: Huang et al. 2017 (arXiv 1608.06993), DenseNet-BC: three blocks of (depth - 4) / 6 layers, each a 1x1
convolution to 4 k channels and a 3x3 convolution to k; transitions halve the channels. densenet_40_12 has 0.19M
parameters at 100 classes and is the student of the UniOKD tables.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from switokd_jax.models.branches import Part
from switokd_jax.models.layers import Layers, global_avg_pool, kaiming_normal_fan_out, sow_feature


class DenseLayer(nn.Module):
    """Bottleneck layer: norm, relu, 1x1 conv, norm, relu, 3x3 conv; the output is appended to the input."""

    layers: Layers
    growth: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, height, width, channels + growth]."""
        layers = self.layers
        out = layers.conv(nn.relu(layers.norm(x, name="bn1")), 4 * self.growth, 1, name="conv1")
        out = layers.conv(nn.relu(layers.norm(out, name="bn2")), self.growth, 3, name="conv2")
        return jnp.concatenate([x, out], axis=-1)


class Transition(nn.Module):
    """Downsampling between blocks: norm, relu, 1x1 conv to half the channels, 2x2 average pooling."""

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, height / 2, width / 2, channels / 2]."""
        x = self.layers.conv(nn.relu(self.layers.norm(x, name="bn1")), x.shape[-1] // 2, 1, name="conv1")
        return nn.avg_pool(x, (2, 2), (2, 2))


class DenseNet(nn.Module):
    """DenseNet-BC of depth D and growth rate K for 32 pixels.

    Attributes:
      depth: 6 n + 4.
      growth: channels that each layer adds (k).
      num_classes: number of logits.
      layers: options of its layers.
      part: stages that it consists of; the whole network unless it is the trunk or a branch of one with branches.
    """

    depth: int
    growth: int
    num_classes: int
    layers: Layers = Layers()
    part: Part = Part()
    stage_count: ClassVar[int] = 3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes]."""
        layers = self.layers.replace(train=train, conv_init=kaiming_normal_fan_out)
        layer_cls = layers.maybe_remat(DenseLayer)
        if self.part.has_stem:
            x = layers.conv(x.astype(layers.dtype), 2 * self.growth, 3, name="conv1")
        for stage in self.part.stages(self.stage_count):
            for i in range((self.depth - 4) // 6):
                x = layer_cls(layers, self.growth, name=f"dense{stage}_{i}")(x)
            x = sow_feature(self, f"stage{stage}", x)
            if stage < self.stage_count:
                x = Transition(layers, name=f"trans{stage}")(x)
        if not self.part.has_classifier:
            return x
        x = nn.relu(layers.norm(x, name="bn"))
        return layers.logits(global_avg_pool(self, x), self.num_classes, name="fc")
