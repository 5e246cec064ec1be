"""MobileNet and MobileNetV2 for small images.

Sources: Howard et al. 2017 (arXiv 1704.04861) and Sandler et al. 2018 (arXiv 1801.04381), both in the form
of the public SwitOKD code: MobileNet's first convolution has stride 1 and its weights start with standard
deviation 1 / fan_in; MobileNetV2's stem has stride 2, its second stage stride 1, it has ReLU in place of
ReLU6, no dropout and unrounded widths (812,836 parameters at width 0.5 and 100 classes). MobileNetV2Tiny is the
one for Tiny-ImageNet: all strides, ReLU6, dropout, widths rounded to 8 (4,674,376 at 1.4 and 200 classes).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from switokd_jax.models import layers

# (features, stride) of MobileNet's blocks; (expansion, features, blocks, stride) of MobileNetV2's stages.
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
LAST_OF_STAGE = {0: "stage1", 2: "stage2", 4: "stage3", 10: "stage4", 12: "stage5"}
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# The stages of STAGES whose outputs the usual distillation benchmarks compare.
TAPPED = {1: "stage1", 2: "stage2", 4: "stage3", 6: "stage4"}


class SeparableBlock(nn.Module):
    """Depthwise 3x3 and pointwise convolution, each with norm and relu."""

    features: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features [batch, height, width, channels] of such features."""
        inputs = x.shape[-1]
        x = self.conv(inputs, 3, self.stride, groups=inputs, name="conv1")(x)
        x = nn.relu(self.norm(name="bn1")(x))
        return nn.relu(self.norm(name="bn2")(self.conv(self.features, 1, name="conv2")(x)))


class MobileNet(nn.Module):
    """MobileNet for 32 pixels.

    [batch, height, width, channels] to logits [batch, classes]; attributes as in `WideResNet`.
    """

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
            layers.conv, convolution=self.convolution, kernel_init=layers.inverse_fan_in, **kinds
        )
        norm: Any = functools.partial(layers.norm, train=train, axis_name=self.axis_name, **kinds)
        x = nn.relu(norm(name="bn1")(conv(32, 3, name="conv1")(x.astype(self.dtype))))
        for index, (features, stride) in enumerate(BLOCKS):
            x = layers.block(SeparableBlock, remat=self.remat)(features, stride, conv, norm, name=f"layers_{index}")(x)
            if index in LAST_OF_STAGE:
                x = layers.tap(self, LAST_OF_STAGE[index], x)
        return layers.classifier(self, x, self.num_classes, name="linear", kernel_init=layers.inverse_fan_in, **kinds)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; the input is added where the shape stays. The names are torch's indices."""

    features: int
    stride: int
    expansion: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features [batch, height, width, channels] of such features."""
        wide = x.shape[-1] * self.expansion
        out = nn.relu(self.norm(name="conv_1")(self.conv(wide, 1, name="conv_0")(x)))
        out = self.conv(wide, 3, self.stride, groups=wide, name="conv_3")(out)
        out = nn.relu(self.norm(name="conv_4")(out))
        out = self.norm(name="conv_7")(self.conv(self.features, 1, name="conv_6")(out))
        return out + x if x.shape == out.shape and self.stride == 1 else out


class MobileNetV2(nn.Module):
    """MobileNetV2 of width W for CIFAR, as the SwitOKD code builds it.

    [batch, height, width, channels] to logits [batch, classes]; attributes as in `WideResNet`.

    Attributes:
      width: multiplies all channel counts, which are cut to whole numbers.
    """

    width: float
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
            layers.conv, convolution=self.convolution, kernel_init=layers.kaiming_normal_fan_out, **kinds
        )
        norm: Any = functools.partial(layers.norm, train=train, axis_name=self.axis_name, **kinds)
        x = conv(int(32 * self.width), 3, 2, name="conv1_0")(x.astype(self.dtype))
        x = nn.relu(norm(name="conv1_1")(x))
        for stage, (expansion, features, blocks, stride) in enumerate(STAGES):
            for block in range(blocks):
                x = layers.block(InvertedResidual, remat=self.remat)(
                    features=int(features * self.width),
                    stride=stride if block == 0 else 1,
                    expansion=expansion,
                    conv=conv,
                    norm=norm,
                    name=f"blocks_{stage}_{block}",
                )(x)
            if stage in TAPPED:
                x = layers.tap(self, TAPPED[stage], x)
        last = int(1280 * max(self.width, 1.0))
        x = nn.relu(norm(name="conv2_1")(conv(last, 1, name="conv2_0")(x)))
        return layers.classifier(
            self,
            x,
            self.num_classes,
            name="classifier_0",
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.zeros_init(),
            **kinds,
        )


class InvertedResidual6(nn.Module):
    """As `InvertedResidual`, with relu6 and no expansion where it would not expand."""

    features: int
    stride: int
    expansion: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features [batch, height, width, channels] of such features."""
        wide, out, at = x.shape[-1] * self.expansion, x, 0
        if self.expansion != 1:
            out = nn.relu6(self.norm(name="conv_0_1")(self.conv(wide, 1, name="conv_0_0")(out)))
            at = 1
        out = self.conv(wide, 3, self.stride, groups=wide, name=f"conv_{at}_0")(out)
        out = nn.relu6(self.norm(name=f"conv_{at}_1")(out))
        out = self.conv(self.features, 1, name=f"conv_{at + 1}")(out)
        out = self.norm(name=f"conv_{at + 2}")(out)
        return out + x if x.shape == out.shape and self.stride == 1 else out


def divisible(channels: float) -> int:
    """The multiple of 8 nearest to a channel count, and never below nine tenths of it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class MobileNetV2Tiny(nn.Module):
    """MobileNetV2 of width W for Tiny-ImageNet.

    [batch, height, width, channels] to logits [batch, classes]; attributes as in `MobileNetV2`.
    """

    width: float
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
            layers.conv, convolution=self.convolution, kernel_init=layers.inverse_fan_in, **kinds
        )
        norm: Any = functools.partial(layers.norm, train=train, axis_name=self.axis_name, **kinds)
        x = conv(divisible(32 * self.width), 3, 2, name="features_0_0")(x.astype(self.dtype))
        x, index = nn.relu6(norm(name="features_0_1")(x)), 1
        for stage, (expansion, features, blocks, stride) in enumerate(STAGES):
            for block in range(blocks):
                x = layers.block(InvertedResidual6, remat=self.remat)(
                    features=divisible(features * self.width),
                    # The CIFAR form has stride 1 in the second stage.
                    stride=(2 if stage == 1 else stride) if block == 0 else 1,
                    expansion=expansion,
                    conv=conv,
                    norm=norm,
                    name=f"features_{index}",
                )(x)
                index += 1
            if stage in TAPPED:
                x = layers.tap(self, TAPPED[stage], x)
        x = conv(divisible(1280 * max(self.width, 1.0)), 1, name=f"features_{index}_0")(x)
        x = layers.pooled(self, nn.relu6(norm(name=f"features_{index}_1")(x)))
        x = layers.dropout(self, x, 0.2, train=train)
        head = layers.linear(x, self.num_classes, name="classifier_1", kernel_init=layers.inverse_fan_in, **kinds)
        return layers.promote_to_float32(head)
