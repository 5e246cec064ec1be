"""Swin transformers for small images: 16 x 16 patches and windows of 4 x 4, whatever the size.

Source: Liu et al. 2021 (arXiv 2103.14030), in timm's form and names: attention within windows, which every second
block moves by half a window; maps of 16, 8, 4 and 2 places a side, each stage twice as wide as the one before, from
96 on. swin_tiny has 2, 2, 6 and 2 blocks, swin_small 2, 2, 18 and 2.

Patches and windows are those of the public UniOKD code (its swin_t for CIFAR-100), so patches have 2 pixels a side for
32-pixel images; the 4 pixels for 64 are ours. Its fourth stage stays at 4 x 4; here it halves, as timm's does. No
stochastic depth: that code has none.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from switokd_jax.models import layers
from switokd_jax.models.vit import Perceptron

# Blocks of each stage.
DEPTHS = {"tiny": (2, 2, 6, 2), "small": (2, 2, 18, 2)}
HEADS = (3, 6, 12, 24)
WIDTH, PATCHES, WINDOW = 96, 16, 4
# timm cuts this normal at -2 and 2, a hundred standard deviations: nowhere.
_narrow = nn.initializers.normal(0.02)


def cut(x: Any, window: int) -> Any:
    """[batch, height, width, channels] to windows [batch, windows, tokens, channels]."""
    batch, height, width, channels = x.shape
    tiles = x.reshape(batch, height // window, window, width // window, window, channels)
    return tiles.swapaxes(2, 3).reshape(batch, -1, window * window, channels)


def joined(x: jax.Array, side: int) -> jax.Array:
    """The inverse of `cut` for square maps: [batch, side, side, channels]."""
    window, rows = math.isqrt(x.shape[2]), side // math.isqrt(x.shape[2])
    tiles = x.reshape(x.shape[0], rows, rows, window, window, x.shape[-1])
    return tiles.swapaxes(2, 3).reshape(x.shape[0], side, side, x.shape[-1])


def offsets(window: int) -> np.ndarray:
    """int [tokens, tokens]: the row of the bias table for a query and a key, counted by how far they are apart."""
    row, column = (place[:, None] - place + window - 1 for place in np.divmod(np.arange(window**2), window))
    return row * (2 * window - 1) + column


def visible(side: int, window: int, shift: int) -> np.ndarray:
    """bool [windows, tokens, tokens]: which keys a query may see once the map is rolled back by `shift`.

    Rolling brings the first rows and columns round to the far end, where windows hold what was never adjacent.
    """
    round_the_end = np.arange(side) >= side - shift
    region = cut((2 * round_the_end[:, None] + round_the_end)[None, :, :, None], window)[0, :, :, 0]
    return region[:, :, None] == region[:, None, :]


class Attention(nn.Module):
    """Self-attention within windows, with a learnt bias for each head and offset."""

    heads: int
    linear: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, seen: np.ndarray) -> jax.Array:
        """Tokens [batch, windows, tokens, width] of the same shape; seen [windows, tokens, tokens]."""
        width, window = x.shape[-1], math.isqrt(x.shape[2])
        qkv = self.linear(3 * width, name="qkv")(x).reshape(*x.shape[:-1], 3, self.heads, width // self.heads)
        query, key, value = jnp.moveaxis(qkv, -3, 0)
        shape = ((2 * window - 1) ** 2, self.heads)
        table = self.param("relative_position_bias_table", _narrow, shape, self.param_dtype)
        # Not jax.nn.dot_product_attention: its softmax is float32 in float64 runs too.
        logits = layers.promote_to_float32(jnp.einsum("bwqhd,bwkhd->bwhqk", query, key)) * (width / self.heads) ** -0.5
        # Not table[offsets]: on GPUs the gradient of that may be added up in any order.
        places = np.eye(shape[0], dtype=bool)[offsets(window)]
        logits += jnp.einsum("qkr,rh->hqk", places.astype(table.dtype), table, precision="highest")
        weights = nn.softmax(jnp.where(seen[:, None], logits, -jnp.inf)).astype(value.dtype)
        mixed = jnp.einsum("bwhqk,bwkhd->bwqhd", weights, value)
        return self.linear(width, name="proj")(mixed.reshape(x.shape))


class Block(nn.Module):
    """Attention and perceptron, each after a norm and added to its input.

    Attributes:
      shifted: windows stand half a window further down and right. Not where one window is the whole map.
    """

    heads: int
    shifted: bool
    linear: Any
    norm: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, side, side, width] of the same shape."""
        side = x.shape[1]
        window = min(side, WINDOW)
        shift = window // 2 if self.shifted and window < side else 0
        tokens = cut(jnp.roll(self.norm(name="norm1")(x), (-shift, -shift), (1, 2)), window)
        attended = Attention(self.heads, self.linear, self.param_dtype, name="attn")(
            tokens, visible(side, window, shift)
        )
        x = x + jnp.roll(joined(attended, side), (shift, shift), (1, 2))
        return x + Perceptron(self.linear, name="mlp")(self.norm(name="norm2")(x))


class Merging(nn.Module):
    """Four neighbours become one place, through a norm and a linear layer."""

    linear: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, side, side, width] to [batch, side / 2, side / 2, 2 width]."""
        # The official order: down a column first.
        four = jnp.concatenate([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], axis=-1)
        return self.linear(2 * x.shape[-1], use_bias=False, name="reduction")(self.norm(name="norm")(four))


class Stage(nn.Module):
    """Blocks on maps of one size; all stages but the first begin by halving it."""

    depth: int
    heads: int
    halves: bool
    linear: Any
    norm: Any
    param_dtype: Any
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, side, side, width], or [batch, side / 2, side / 2, 2 width] where it halves."""
        if self.halves:
            x = Merging(self.linear, self.norm, name="downsample")(x)
        for block in range(self.depth):
            parts = (self.linear, self.norm, self.param_dtype)
            x = layers.block(Block, remat=self.remat)(self.heads, block % 2 == 1, *parts, name=f"blocks_{block}")(x)
        return x


class PatchEmbedding(nn.Module):
    """`layers.patches` and a norm."""

    norm: Any
    kinds: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, height, width, channels] to [batch, 16, 16, 96]."""
        patches = layers.patches(x, WIDTH, x.shape[1] // PATCHES, name="proj", **self.kinds)
        return self.norm(name="norm")(patches)


class Head(nn.Module):
    """The classifier, which timm names 'head.fc'."""

    num_classes: int
    linear: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, width] to logits [batch, classes]."""
        return self.linear(self.num_classes, name="fc")(x)


class SwinTransformer(nn.Module):
    """Swin transformer for small images.

    [batch, height, width, channels] to logits [batch, classes]; attributes as in `WideResNet`.

    Attributes:
      size: 'tiny' or 'small'.
    """

    size: str
    num_classes: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None
    convolution: Any = layers.convolution
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits [batch, classes] of square images [batch, 16 n, 16 n, channels]."""
        del train  # no dropout, no running statistics
        if x.shape[1] != x.shape[2] or x.shape[1] % PATCHES:
            raise ValueError(f"a swin wants square images of 16 n pixels a side, not {x.shape[1]}x{x.shape[2]}")
        kinds: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        linear: Any = functools.partial(nn.Dense, kernel_init=_narrow, **kinds)
        norm: Any = functools.partial(nn.LayerNorm, epsilon=1e-5, **kinds)
        x = PatchEmbedding(norm, kinds | {"convolution": self.convolution}, name="patch_embed")(x.astype(self.dtype))
        for stage, (depth, heads) in enumerate(zip(DEPTHS[self.size], HEADS, strict=True)):
            parts = (linear, norm, self.param_dtype, self.remat)
            x = Stage(depth, heads, stage > 0, *parts, name=f"layers_{stage}")(x)
            x = layers.tap(self, f"stage{stage + 1}", x)
        x = layers.pooled(self, norm(name="norm")(x))
        return layers.promote_to_float32(Head(self.num_classes, linear, name="head")(x))
