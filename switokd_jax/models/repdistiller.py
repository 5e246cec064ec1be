"""CIFAR networks in RepDistiller's form, which the UniOKD code and most papers on distillation train.

Source: the public code of Tian et al. 2020 (arXiv 1910.10699), HobbitLong/RepDistiller, whose checkpoints have these
names and shapes. They differ from the SwitOKD code's networks of the same names:

    resnetD_rd   projection shortcuts (a 1x1 convolution and a norm) where those of `resnet` have no parameters;
                 resnet8x4 and resnet32x4 have 32, 64, 128 and 256 channels
    wrn_D_K_rd   convolutions without biases, the stride in a block's first convolution, shortcuts of the normalized
                 input, and torch's default momentum in every norm
"""

from __future__ import annotations

from typing import ClassVar

import jax
from flax import linen as nn

from switokd_jax.models.branches import Part
from switokd_jax.models.imagenet_resnet import VARIANTS, ResidualBlock
from switokd_jax.models.layers import Layers, global_avg_pool, kaiming_normal_fan_out, sow_feature

DEPTHS = (8, 14, 20, 32, 44, 56, 110)
NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)  # channels of the stem and of the three stages


class RepDistillerResNet(nn.Module):
    """CIFAR ResNet with projection shortcuts.

    Attributes:
      depth: 6 n + 2.
      channels: of the stem and of the three stages.
      num_classes: number of logits.
      layers: options of its layers.
      part: stages that it consists of; the whole network unless it is the trunk or a branch of one with branches.
    """

    depth: int
    channels: tuple[int, ...]
    num_classes: int
    layers: Layers = Layers()
    part: Part = Part()
    stage_count: ClassVar[int] = 3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes]."""
        layers = self.layers.replace(train=train, conv_init=kaiming_normal_fan_out)
        block_cls = layers.maybe_remat(ResidualBlock)
        if self.part.has_stem:
            x = layers.conv(x.astype(layers.dtype), self.channels[0], 3, name="conv1")
            x = nn.relu(layers.norm(x, name="bn1"))
        for stage in self.part.stages(self.stage_count):
            for block in range((self.depth - 2) // 6):
                stride = 2 if stage > 1 and block == 0 else 1
                name = f"layer{stage}_{block}"
                # The names of torchvision's blocks.
                x = block_cls(layers, self.channels[stage], stride, False, VARIANTS[""], name=name)(x)
            x = sow_feature(self, f"stage{stage}", x)
        if not self.part.has_classifier:
            return x
        return layers.logits(global_avg_pool(self, x), self.num_classes, name="fc")


class PreactivationBlock(nn.Module):
    """Norm, relu, conv(stride), norm, relu, conv, plus the input, or a projection of the first relu's output."""

    layers: Layers
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, height / stride, width / stride, features]."""
        layers = self.layers
        activated = nn.relu(layers.norm(x, name="bn1"))
        out = layers.conv(activated, self.features, 3, self.stride, name="conv1")
        out = layers.conv(nn.relu(layers.norm(out, name="bn2")), self.features, 3, name="conv2")
        if x.shape[-1] != self.features:
            x = layers.conv(activated, self.features, 1, self.stride, name="convShortcut")
        return out + x


class Stage(nn.Module):
    """Blocks of one size, under the names that torch gives them, 'layer.0', 'layer.1', ..."""

    layers: Layers
    blocks: int
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, height / stride, width / stride, features]."""
        block_cls = self.layers.maybe_remat(PreactivationBlock)
        for block in range(self.blocks):
            x = block_cls(self.layers, self.features, 1 if block else self.stride, name=f"layer_{block}")(x)
        return x


class RepDistillerWideResNet(nn.Module):
    """Wide ResNet of depth D and width K.

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
        layers = self.layers.replace(train=train, conv_init=kaiming_normal_fan_out)
        if self.part.has_stem:
            x = layers.conv(x.astype(layers.dtype), 16, 3, name="conv1")
        for stage in self.part.stages(self.stage_count):
            features, stride = 16 * self.width * 2 ** (stage - 1), 2 if stage > 1 else 1
            x = Stage(layers, (self.depth - 4) // 6, features, stride, name=f"block{stage}")(x)
            x = sow_feature(self, f"stage{stage}", x)
        if not self.part.has_classifier:
            return x
        x = global_avg_pool(self, nn.relu(layers.norm(x, name="bn1")))
        return layers.logits(x, self.num_classes, name="fc", bias_init=nn.initializers.zeros_init())
