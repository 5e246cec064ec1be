"""CIFAR residual networks with parameter-free shortcuts.

Source: He et al. 2015 (arXiv 1512.03385), section 4.2, option A, as implemented in the public SwitOKD code: resnet20
has 0.27M parameters. The shortcut subsamples by 2 and pads the channels with zeros on both sides.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from switokd_jax.models.branches import Part
from switokd_jax.models.layers import Layers, global_avg_pool, kaiming_normal, sow_feature


class BasicBlock(nn.Module):
    """Residual block: conv(stride), norm, relu, conv, norm, plus the shortcut, relu."""

    layers: Layers
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, height / stride, width / stride, features]."""
        layers = self.layers
        out = nn.relu(layers.norm(layers.conv(x, self.features, 3, self.stride, name="conv1"), name="bn1"))
        out = layers.norm(layers.conv(out, self.features, 3, name="conv2"), name="bn2")
        if self.stride != 1 or x.shape[-1] != self.features:
            pad = (self.features - x.shape[-1]) // 2
            x = jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (pad, pad)))
        return nn.relu(out + x)


class ResNet(nn.Module):
    """CIFAR ResNet with parameter-free shortcuts.

    Attributes:
      depth: 6 n + 2.
      num_classes: number of logits.
      layers: options of its layers.
      part: stages that it consists of; the whole network unless it is the trunk or a branch of one with branches.
    """

    depth: int
    num_classes: int
    layers: Layers = Layers()
    part: Part = Part()
    stage_count: ClassVar[int] = 3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes]."""
        layers = self.layers.replace(train=train, conv_init=kaiming_normal)
        block_cls = layers.maybe_remat(BasicBlock)
        if self.part.has_stem:
            x = nn.relu(layers.norm(layers.conv(x.astype(layers.dtype), 16, 3, name="conv1"), name="bn1"))
        for stage in self.part.stages(self.stage_count):
            for block in range((self.depth - 2) // 6):
                stride = 2 if stage > 1 and block == 0 else 1
                x = block_cls(layers, 16 * 2 ** (stage - 1), stride, name=f"layer{stage}_{block}")(x)
            x = sow_feature(self, f"stage{stage}", x)
        if not self.part.has_classifier:
            return x
        return layers.logits(global_avg_pool(self, x), self.num_classes, name="linear", kernel_init=kaiming_normal)
