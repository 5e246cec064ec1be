"""Residual networks with projection shortcuts: for ImageNet, and with a 3x3 stem for 32 and 64 pixel images.

Source: He et al. 2015 (arXiv 1512.03385), stride on a bottleneck's 3x3 convolution. Three published forms
differ in stem, names and first weights:

    resnetD         torchvision's, for 224 pixels: 7x7 stem of stride 2 and max pooling
    resnetD_cifar   of the UniOKD code, for 32 pixels: 3x3 stem of stride 1
    resnetD_tiny    of the SwitOKD code, for Tiny-ImageNet: as the latter, standard deviation 1 / fan_in
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from switokd_jax.models import layers

# Blocks in each of the four stages, and whether they are bottlenecks.
DEPTHS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True)}


@dataclasses.dataclass(frozen=True)
class Variant:
    """What the published forms differ in; names are torch's with '_' before an index."""

    large_stem: bool
    stem: tuple[str, str]
    convs: tuple[str, ...]
    norms: tuple[str, ...]
    shortcut: str
    head: str
    kernel_init: Any


_PLAIN: Any = functools.partial(
    Variant,
    stem=("conv1", "bn1"),
    convs=("conv1", "conv2", "conv3"),
    norms=("bn1", "bn2", "bn3"),
    kernel_init=layers.kaiming_normal_fan_out,
)
FORMS: dict[str, Variant] = {
    "": _PLAIN(large_stem=True, shortcut="downsample", head="fc"),
    "cifar": _PLAIN(large_stem=False, shortcut="shortcut", head="linear"),
    "tiny": Variant(
        large_stem=False,
        stem=("conv1_0", "conv1_1"),
        convs=("left_0", "left_3"),
        norms=("left_1", "left_4"),
        shortcut="shortcut",
        head="fc",
        kernel_init=layers.inverse_fan_in,
    ),
}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1; a 1x1 convolution and norm where the shape changes."""

    features: int
    stride: int
    bottleneck: bool
    form: Variant
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features [batch, height, width, channels] of such features, four times as many for bottlenecks."""
        last = 4 * self.features if self.bottleneck else self.features
        shapes = [(self.features, 1, 1), (self.features, 3, self.stride), (last, 1, 1)]
        if not self.bottleneck:
            shapes = [(self.features, 3, self.stride), (last, 3, 1)]
        out = x
        for index, (features, size, stride) in enumerate(shapes):
            out = self.conv(features, size, stride, name=self.form.convs[index])(out)
            out = self.norm(name=self.form.norms[index])(out)
            if index < len(shapes) - 1:
                out = nn.relu(out)
        if self.stride != 1 or x.shape[-1] != last:
            x = self.conv(last, 1, self.stride, name=f"{self.form.shortcut}_0")(x)
            x = self.norm(name=f"{self.form.shortcut}_1")(x)
        return nn.relu(out + x)


class ImageNetResNet(nn.Module):
    """ResNet with projection shortcuts for ImageNet; with a 3x3 stem for CIFAR (_cifar) or Tiny-ImageNet (_tiny).

    [batch, height, width, channels] to logits [batch, classes]; attributes as in `WideResNet`.

    Attributes:
      depth: 18, 34 or 50.
      form: of `FORMS`.
    """

    depth: int
    form: Variant
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
            layers.conv, convolution=self.convolution, kernel_init=self.form.kernel_init, **kinds
        )
        norm: Any = functools.partial(layers.norm, train=train, axis_name=self.axis_name, **kinds)
        blocks, bottleneck = DEPTHS[self.depth]
        size, stride = (7, 2) if self.form.large_stem else (3, 1)
        x = conv(64, size, stride, name=self.form.stem[0])(x.astype(self.dtype))
        x = nn.relu(norm(name=self.form.stem[1])(x))
        if self.form.large_stem:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, count in enumerate(blocks):
            for block in range(count):
                x = layers.block(ResidualBlock, remat=self.remat)(
                    features=64 * 2**stage,
                    stride=2 if stage and block == 0 else 1,
                    bottleneck=bottleneck,
                    form=self.form,
                    conv=conv,
                    norm=norm,
                    name=f"layer{stage + 1}_{block}",
                )(x)
            x = layers.tap(self, f"stage{stage + 1}", x)
        head_init = layers.inverse_fan_in if self.form.kernel_init is layers.inverse_fan_in else None
        return layers.classifier(self, x, self.num_classes, name=self.form.head, kernel_init=head_init, **kinds)
