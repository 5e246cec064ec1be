"""Swin transformers for small images: 16 x 16 patches and windows of 4 x 4 for every image size.

Source: Liu et al. 2021 (arXiv 2103.14030), with timm's structure and names: attention within windows, which every
second block shifts by half a window; feature maps of 16, 8, 4 and 2 tokens a side, each stage twice as wide as the one
before, beginning with 96. swin_tiny has 2, 2, 6 and 2 blocks, swin_small 2, 2, 18 and 2.

Patches and windows are those of the public UniOKD code (its swin_t for CIFAR-100), so patches have 2 pixels a side for
32-pixel images; the 4 pixels for 64 are ours. Its fourth stage stays at 4 x 4; ours halves the map, as timm's does.
There is no stochastic depth, as in that code.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from switokd_jax.models.layers import Layers, global_avg_pool, sow_feature
from switokd_jax.models.vit import Mlp, dense, normal_init_002
from switokd_jax.precision import promote_to_float32

# Number of blocks of each stage, by size.
DEPTHS = {"tiny": (2, 2, 6, 2), "small": (2, 2, 18, 2)}
HEADS = (3, 6, 12, 24)
WIDTH = 96
PATCHES_PER_SIDE = 16
WINDOW = 4
EPSILON = 1e-5


def window_partition(x: Any, window: int) -> Any:
    """Cuts maps [batch, height, width, channels] into windows [batch, windows, tokens, channels]."""
    batch, height, width, channels = x.shape
    tiles = x.reshape(batch, height // window, window, width // window, window, channels)
    return tiles.swapaxes(2, 3).reshape(batch, -1, window * window, channels)


def window_reverse(x: jax.Array, side: int) -> jax.Array:
    """Inverts `window_partition` for square maps; returns [batch, side, side, channels]."""
    window, rows = math.isqrt(x.shape[2]), side // math.isqrt(x.shape[2])
    tiles = x.reshape(x.shape[0], rows, rows, window, window, x.shape[-1])
    return tiles.swapaxes(2, 3).reshape(x.shape[0], side, side, x.shape[-1])


def relative_position_index(window: int) -> np.ndarray:
    """Returns the row of the bias table for every query and key, int [tokens, tokens].

    Rows number the offsets between two tokens of a window, from (1 - window, 1 - window) on, row by row.

    >>> relative_position_index(1)
    array([[0]])
    """
    row, column = (i[:, None] - i + window - 1 for i in np.divmod(np.arange(window**2), window))
    return row * (2 * window - 1) + column


def shifted_window_mask(side: int, window: int, shift: int) -> np.ndarray:
    """Returns the keys that each query may attend to once the map is rolled by `-shift`.

    Rolling moves the first rows and columns to the far end, where a window then holds tokens that are not adjacent in
    the image. They must not attend to each other.

    Returns:
      bool [windows, tokens, tokens].
    """
    wrapped = np.arange(side) >= side - shift
    region = window_partition((2 * wrapped[:, None] + wrapped)[None, :, :, None], window)[0, :, :, 0]
    return region[:, :, None] == region[:, None, :]


class Attention(nn.Module):
    """Self-attention within windows, with a learned bias for each head and offset."""

    layers: Layers
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: np.ndarray) -> jax.Array:
        """Maps tokens [batch, windows, tokens, width] to the same shape; mask as of `shifted_window_mask`."""
        width, window = x.shape[-1], math.isqrt(x.shape[2])
        qkv = dense(self.layers, x, 3 * width, name="qkv").reshape(*x.shape[:-1], 3, self.heads, width // self.heads)
        query, key, value = jnp.moveaxis(qkv, -3, 0)
        shape = ((2 * window - 1) ** 2, self.heads)
        table = self.param("relative_position_bias_table", normal_init_002, shape, self.layers.param_dtype)
        # Not jax.nn.dot_product_attention: its softmax is float32 in float64 runs too.
        logits = promote_to_float32(jnp.einsum("bwqhd,bwkhd->bwhqk", query, key)) * (width / self.heads) ** -0.5
        # Not table[index]: on GPUs the gradient of that is summed in any order.
        one_hot = np.eye(shape[0], dtype=bool)[relative_position_index(window)]
        logits += jnp.einsum("qkr,rh->hqk", one_hot.astype(table.dtype), table, precision="highest")
        weights = nn.softmax(jnp.where(mask[:, None], logits, -jnp.inf)).astype(value.dtype)
        out = jnp.einsum("bwhqk,bwkhd->bwqhd", weights, value)
        return dense(self.layers, out.reshape(x.shape), width, name="proj")


class Block(nn.Module):
    """Pre-norm transformer block on a map: window attention and MLP, each after a norm and added to its input.

    Attributes:
      layers: options of its layers.
      heads: number of attention heads.
      shifted: shifts the windows by half a window, unless one window covers the map.
    """

    layers: Layers
    heads: int
    shifted: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, side, side, width] to the same shape."""
        layers, side = self.layers, x.shape[1]
        window = min(side, WINDOW)
        shift = window // 2 if self.shifted and window < side else 0
        normed = layers.layer_norm(x, name="norm1", epsilon=EPSILON)
        tokens = window_partition(jnp.roll(normed, (-shift, -shift), (1, 2)), window)
        attended = Attention(layers, self.heads, name="attn")(tokens, shifted_window_mask(side, window, shift))
        x = x + jnp.roll(window_reverse(attended, side), (shift, shift), (1, 2))
        return x + Mlp(layers, name="mlp")(layers.layer_norm(x, name="norm2", epsilon=EPSILON))


class PatchMerging(nn.Module):
    """Merges 2 x 2 neighboring tokens into one, by a norm and a linear layer."""

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, side, side, width] to [batch, side / 2, side / 2, 2 width]."""
        # The official order: down a column first.
        merged = jnp.concatenate([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], axis=-1)
        merged = self.layers.layer_norm(merged, name="norm", epsilon=EPSILON)
        return dense(self.layers, merged, 2 * x.shape[-1], use_bias=False, name="reduction")


class Stage(nn.Module):
    """Blocks on maps of one size, after an optional `PatchMerging`.

    Attributes:
      layers: options of its layers.
      depth: number of blocks.
      heads: number of attention heads.
      merge_patches: begins with `PatchMerging`, which all stages but the first do.
    """

    layers: Layers
    depth: int
    heads: int
    merge_patches: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, side, side, width] to the same, or to [batch, side / 2, side / 2, 2 width]."""
        if self.merge_patches:
            x = PatchMerging(self.layers, name="downsample")(x)
        block_cls = self.layers.maybe_remat(Block)
        for block in range(self.depth):
            x = block_cls(self.layers, self.heads, block % 2 == 1, name=f"blocks_{block}")(x)
        return x


class PatchEmbedding(nn.Module):
    """`Layers.patch_embed` and a norm, under timm's names."""

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, 16, 16, 96]."""
        patches = self.layers.patch_embed(x, WIDTH, x.shape[1] // PATCHES_PER_SIDE, name="proj")
        return self.layers.layer_norm(patches, name="norm", epsilon=EPSILON)


class Head(nn.Module):
    """The classifier under the name that timm gives it, 'head.fc'."""

    layers: Layers
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, width] to logits [batch, num_classes]."""
        return dense(self.layers, x, self.num_classes, name="fc")


class SwinTransformer(nn.Module):
    """Swin transformer for small images.

    Attributes:
      size: 'tiny' or 'small'.
      num_classes: number of logits.
      layers: options of its layers.
    """

    size: str
    num_classes: int
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps square images [batch, 16 n, 16 n, channels] to logits [batch, num_classes].

        Raises:
          ValueError: for images of another shape.
        """
        del train  # no dropout, no running statistics
        if x.shape[1] != x.shape[2] or x.shape[1] % PATCHES_PER_SIDE:
            raise ValueError(f"a swin takes square images of 16 n pixels a side, not {x.shape[1]}x{x.shape[2]}")
        layers = self.layers
        x = PatchEmbedding(layers, name="patch_embed")(x.astype(layers.dtype))
        for stage, (depth, heads) in enumerate(zip(DEPTHS[self.size], HEADS, strict=True)):
            x = Stage(layers, depth, heads, stage > 0, name=f"layers_{stage}")(x)
            x = sow_feature(self, f"stage{stage + 1}", x)
        x = global_avg_pool(self, layers.layer_norm(x, name="norm", epsilon=EPSILON))
        return promote_to_float32(Head(layers, self.num_classes, name="head")(x))
