"""Residual networks with projection shortcuts: for ImageNet, and with a 3x3 stem for 32 and 64 pixel images.

Source: He et al. 2015 (arXiv 1512.03385), with the stride in the 3x3 convolution of a bottleneck. Three published
variants differ in stem, names and initial kernels:

    resnetD         torchvision's, for 224 pixels: 7x7 stem of stride 2 and max pooling
    resnetD_cifar   of the UniOKD code, for 32 pixels: 3x3 stem of stride 1
    resnetD_tiny    of the SwitOKD code, for Tiny-ImageNet: 3x3 stem of stride 1, standard deviation 1 / fan_in
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
from flax import linen as nn

from switokd_jax.models.branches import Part
from switokd_jax.models.layers import (
    Initializer,
    Layers,
    global_avg_pool,
    inverse_fan_in,
    kaiming_normal_fan_out,
    sow_feature,
)

# Number of blocks in each of the four stages, and True if they are bottlenecks.
DEPTHS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True)}


@dataclasses.dataclass(frozen=True)
class Variant:
    """Differences between the published variants. Names are torch's with '_' before an index.

    Attributes:
      large_stem: 7x7 convolution of stride 2 and max pooling; else 3x3 of stride 1.
      stem: names of the first convolution and norm.
      convs: names of a block's convolutions, in order.
      norms: names of a block's norms, in order.
      shortcut: name of a block's projection.
      head: name of the classifier.
      conv_init: initializer of the convolutions.
      head_init: initializer of the classifier's kernel; None for torch's default.
    """

    large_stem: bool
    stem: tuple[str, str]
    convs: tuple[str, ...]
    norms: tuple[str, ...]
    shortcut: str
    head: str
    conv_init: Initializer
    head_init: Initializer | None = None


_torchvision_names: Any = functools.partial(
    Variant,
    stem=("conv1", "bn1"),
    convs=("conv1", "conv2", "conv3"),
    norms=("bn1", "bn2", "bn3"),
    conv_init=kaiming_normal_fan_out,
)
VARIANTS: dict[str, Variant] = {
    "": _torchvision_names(large_stem=True, shortcut="downsample", head="fc"),
    "cifar": _torchvision_names(large_stem=False, shortcut="shortcut", head="linear"),
    "tiny": Variant(
        large_stem=False,
        stem=("conv1_0", "conv1_1"),
        convs=("left_0", "left_3"),
        norms=("left_1", "left_4"),
        shortcut="shortcut",
        head="fc",
        conv_init=inverse_fan_in,
        head_init=inverse_fan_in,
    ),
}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1; plus a 1x1 convolution and norm where the shape changes."""

    layers: Layers
    features: int
    stride: int
    bottleneck: bool
    variant: Variant

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, height / stride, width / stride, out].

        The output has `features` channels, bottlenecks have four times as many.
        """
        layers = self.layers
        out_features = 4 * self.features if self.bottleneck else self.features
        convs = [(self.features, 1, 1), (self.features, 3, self.stride), (out_features, 1, 1)]
        if not self.bottleneck:
            convs = [(self.features, 3, self.stride), (out_features, 3, 1)]
        out = x
        for index, (features, size, stride) in enumerate(convs):
            out = layers.conv(out, features, size, stride, name=self.variant.convs[index])
            out = layers.norm(out, name=self.variant.norms[index])
            if index < len(convs) - 1:
                out = nn.relu(out)
        if self.stride != 1 or x.shape[-1] != out_features:
            x = layers.conv(x, out_features, 1, self.stride, name=f"{self.variant.shortcut}_0")
            x = layers.norm(x, name=f"{self.variant.shortcut}_1")
        return nn.relu(out + x)


class ImageNetResNet(nn.Module):
    """ResNet with projection shortcuts for ImageNet; with a 3x3 stem for CIFAR (_cifar) or Tiny-ImageNet (_tiny).

    Attributes:
      depth: 18, 34 or 50.
      variant: one of `VARIANTS`.
      num_classes: number of logits.
      layers: options of its layers.
      part: stages that it consists of; the whole network unless it is the trunk or a branch of one with branches.
    """

    depth: int
    variant: Variant
    num_classes: int
    layers: Layers = Layers()
    part: Part = Part()
    stage_count: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes]."""
        variant = self.variant
        layers = self.layers.replace(train=train, conv_init=variant.conv_init)
        block_cls = layers.maybe_remat(ResidualBlock)
        blocks, bottleneck = DEPTHS[self.depth]
        if self.part.has_stem:
            size, stride = (7, 2) if variant.large_stem else (3, 1)
            x = layers.conv(x.astype(layers.dtype), 64, size, stride, name=variant.stem[0])
            x = nn.relu(layers.norm(x, name=variant.stem[1]))
            if variant.large_stem:
                x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage in self.part.stages(self.stage_count):
            for block in range(blocks[stage - 1]):
                stride = 2 if stage > 1 and block == 0 else 1
                name = f"layer{stage}_{block}"
                x = block_cls(layers, 64 * 2 ** (stage - 1), stride, bottleneck, variant, name=name)(x)
            x = sow_feature(self, f"stage{stage}", x)
        if not self.part.has_classifier:
            return x
        x = global_avg_pool(self, x)
        return layers.logits(x, self.num_classes, name=variant.head, kernel_init=variant.head_init)
