"""MobileNet and MobileNetV2 for small images.

Sources: Howard et al. 2017 (arXiv 1704.04861) and Sandler et al. 2018 (arXiv 1801.04381), both as implemented in the
public SwitOKD code. Its MobileNet has a first convolution of stride 1, and initial kernels of standard deviation
1 / fan_in. Its MobileNetV2 has a stem of stride 2, stride 1 in the second stage, ReLU in place of ReLU6, no dropout
and unrounded widths (812,836 parameters at width 0.5 and 100 classes). MobileNetV2Tiny is the one for Tiny-ImageNet,
with all strides, ReLU6, dropout, and widths rounded to multiples of 8 (4,674,376 at 1.4 and 200 classes).
"""

from __future__ import annotations

from typing import ClassVar

import jax
from flax import linen as nn

from switokd_jax.models.branches import Part
from switokd_jax.models.layers import (
    Layers,
    dropout,
    global_avg_pool,
    inverse_fan_in,
    kaiming_normal_fan_out,
    sow_feature,
)

# MobileNet's blocks as (features, stride), by stage.
BLOCKS = (
    ((64, 1),),
    ((128, 2), (128, 1)),
    ((256, 2), (256, 1)),
    ((512, 2), *[(512, 1)] * 5),
    ((1024, 2), (1024, 1)),
)
# MobileNetV2's sequences of blocks as (expansion, features, blocks, stride).
SEQUENCES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# The sequences of each stage, so that the stages' outputs are those of the usual distillation benchmarks.
STAGES = ((0, 1), (2,), (3, 4), (5, 6))


class SeparableBlock(nn.Module):
    """Depthwise 3x3 and pointwise convolution, each with norm and relu."""

    layers: Layers
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, height / stride, width / stride, features]."""
        layers, channels = self.layers, x.shape[-1]
        x = layers.conv(x, channels, 3, self.stride, groups=channels, name="conv1")
        x = nn.relu(layers.norm(x, name="bn1"))
        return nn.relu(layers.norm(layers.conv(x, self.features, 1, name="conv2"), name="bn2"))


class MobileNet(nn.Module):
    """MobileNet for 32 pixels.

    Attributes:
      num_classes: number of logits.
      layers: options of its layers.
      part: stages that it consists of; the whole network unless it is the trunk or a branch of one with branches.
    """

    num_classes: int
    layers: Layers = Layers()
    part: Part = Part()
    stage_count: ClassVar[int] = 5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes]."""
        layers = self.layers.replace(train=train, conv_init=inverse_fan_in)
        block_cls = layers.maybe_remat(SeparableBlock)
        if self.part.has_stem:
            x = nn.relu(layers.norm(layers.conv(x.astype(layers.dtype), 32, 3, name="conv1"), name="bn1"))
        for stage in self.part.stages(self.stage_count):
            for index, (features, stride) in enumerate(BLOCKS[stage - 1], sum(map(len, BLOCKS[: stage - 1]))):
                x = block_cls(layers, features, stride, name=f"layers_{index}")(x)
            x = sow_feature(self, f"stage{stage}", x)
        if not self.part.has_classifier:
            return x
        return layers.logits(global_avg_pool(self, x), self.num_classes, name="linear", kernel_init=inverse_fan_in)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; the input is added if the shape stays. The names are torch's indices."""

    layers: Layers
    features: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, height / stride, width / stride, features]."""
        layers, expanded = self.layers, x.shape[-1] * self.expansion
        out = nn.relu(layers.norm(layers.conv(x, expanded, 1, name="conv_0"), name="conv_1"))
        out = layers.conv(out, expanded, 3, self.stride, groups=expanded, name="conv_3")
        out = nn.relu(layers.norm(out, name="conv_4"))
        out = layers.norm(layers.conv(out, self.features, 1, name="conv_6"), name="conv_7")
        return out + x if x.shape == out.shape and self.stride == 1 else out


class MobileNetV2(nn.Module):
    """MobileNetV2 of width W for CIFAR, as the SwitOKD code builds it.

    Attributes:
      width: multiplies all channel counts, which are rounded down.
      num_classes: number of logits.
      layers: options of its layers.
      part: stages that it consists of; the whole network unless it is the trunk or a branch of one with branches.
    """

    width: float
    num_classes: int
    layers: Layers = Layers()
    part: Part = Part()
    stage_count: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes]."""
        layers = self.layers.replace(train=train, conv_init=kaiming_normal_fan_out)
        block_cls = layers.maybe_remat(InvertedResidual)
        if self.part.has_stem:
            x = layers.conv(x.astype(layers.dtype), int(32 * self.width), 3, 2, name="conv1_0")
            x = nn.relu(layers.norm(x, name="conv1_1"))
        for stage in self.part.stages(self.stage_count):
            for sequence in STAGES[stage - 1]:
                expansion, features, num_blocks, first_stride = SEQUENCES[sequence]
                for block in range(num_blocks):
                    stride = first_stride if block == 0 else 1
                    name = f"blocks_{sequence}_{block}"
                    x = block_cls(layers, int(features * self.width), stride, expansion, name=name)(x)
            x = sow_feature(self, f"stage{stage}", x)
        if not self.part.has_classifier:
            return x
        x = layers.conv(x, int(1280 * max(self.width, 1.0)), 1, name="conv2_0")
        x = global_avg_pool(self, nn.relu(layers.norm(x, name="conv2_1")))
        normal, zeros = nn.initializers.normal(0.01), nn.initializers.zeros_init()
        return layers.logits(x, self.num_classes, name="classifier_0", kernel_init=normal, bias_init=zeros)


class InvertedResidual6(nn.Module):
    """`InvertedResidual` with ReLU6, and without the first convolution where the expansion is 1."""

    layers: Layers
    features: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, height / stride, width / stride, features]."""
        layers, expanded, out, index = self.layers, x.shape[-1] * self.expansion, x, 0
        if self.expansion != 1:
            out = nn.relu6(layers.norm(layers.conv(out, expanded, 1, name="conv_0_0"), name="conv_0_1"))
            index = 1
        out = layers.conv(out, expanded, 3, self.stride, groups=expanded, name=f"conv_{index}_0")
        out = nn.relu6(layers.norm(out, name=f"conv_{index}_1"))
        out = layers.norm(layers.conv(out, self.features, 1, name=f"conv_{index + 1}"), name=f"conv_{index + 2}")
        return out + x if x.shape == out.shape and self.stride == 1 else out


def make_divisible(channels: float) -> int:
    """Rounds a channel count to the nearest multiple of 8, but not below nine tenths of it.

    >>> make_divisible(33.6), make_divisible(11)
    (32, 16)
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class MobileNetV2Tiny(nn.Module):
    """MobileNetV2 of width W for Tiny-ImageNet.

    Attributes:
      width: multiplies all channel counts, which are rounded by `make_divisible`.
      num_classes: number of logits.
      layers: options of its layers.
      part: stages that it consists of; the whole network unless it is the trunk or a branch of one with branches.
    """

    width: float
    num_classes: int
    layers: Layers = Layers()
    part: Part = Part()
    stage_count: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes]."""
        layers = self.layers.replace(train=train, conv_init=inverse_fan_in)
        block_cls = layers.maybe_remat(InvertedResidual6)
        if self.part.has_stem:
            x = layers.conv(x.astype(layers.dtype), make_divisible(32 * self.width), 3, 2, name="features_0_0")
            x = nn.relu6(layers.norm(x, name="features_0_1"))
        for stage in self.part.stages(self.stage_count):
            for sequence in STAGES[stage - 1]:
                expansion, features, num_blocks, first_stride = SEQUENCES[sequence]
                index = 1 + sum(blocks for _, _, blocks, _ in SEQUENCES[:sequence])
                for block in range(num_blocks):
                    # The CIFAR network has stride 1 in the second sequence.
                    stride = (2 if sequence == 1 else first_stride) if block == 0 else 1
                    width = make_divisible(features * self.width)
                    x = block_cls(layers, width, stride, expansion, name=f"features_{index + block}")(x)
            x = sow_feature(self, f"stage{stage}", x)
        if not self.part.has_classifier:
            return x
        x = layers.conv(x, make_divisible(1280 * max(self.width, 1.0)), 1, name="features_18_0")
        x = global_avg_pool(self, nn.relu6(layers.norm(x, name="features_18_1")))
        x = dropout(self, x, 0.2, train=train)
        return layers.logits(x, self.num_classes, name="classifier_1", kernel_init=inverse_fan_in)
