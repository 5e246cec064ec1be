"""Vision transformers for small images: 8 x 8 patches, whatever the size.

Source: Dosovitskiy et al. 2020 (arXiv 2010.11929), in timm's form and names: pre-norm blocks, biases in the query,
key and value projections, exact GELU, a class token. vit_small has width 384 and 6 heads, vit_base 768 and 12; both
have 12 blocks. Patches have 4 pixels a side for 32-pixel images and 8 for 64.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from switokd_jax.models import layers

# Width and heads.
SIZES = {"small": (384, 6), "base": (768, 12)}
BLOCKS, PATCHES = 12, 8
# timm cuts this normal at -2 and 2, a hundred standard deviations: nowhere.
_narrow = nn.initializers.normal(0.02)


class Attention(nn.Module):
    """Self-attention of all tokens."""

    heads: int
    linear: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens [batch, tokens, width] of the same shape."""
        batch, tokens, width = x.shape
        qkv = self.linear(3 * width, name="qkv")(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        # Not jax.nn.dot_product_attention: its softmax is float32 in float64 runs too.
        logits = layers.promote_to_float32(jnp.einsum("bqhd,bkhd->bhqk", query, key)) * (width / self.heads) ** -0.5
        mixed = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(logits).astype(value.dtype), value)
        return self.linear(width, name="proj")(mixed.reshape(x.shape))


class Perceptron(nn.Module):
    """Two linear layers, four times as wide between them."""

    linear: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens [batch, tokens, width] of the same shape."""
        hidden = nn.gelu(self.linear(4 * x.shape[-1], name="fc1")(x), approximate=False)
        return self.linear(x.shape[-1], name="fc2")(hidden)


class Block(nn.Module):
    """Attention and perceptron, each after a norm and added to its input."""

    heads: int
    linear: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens [batch, tokens, width] of the same shape."""
        x = x + Attention(self.heads, self.linear, name="attn")(self.norm(name="norm1")(x))
        return x + Perceptron(self.linear, name="mlp")(self.norm(name="norm2")(x))


class PatchEmbedding(nn.Module):
    """`layers.patches`, which timm names 'patch_embed.proj'."""

    width: int
    kinds: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, height, width, channels] to [batch, 8, 8, features]."""
        return layers.patches(x, self.width, x.shape[1] // PATCHES, name="proj", **self.kinds)


class VisionTransformer(nn.Module):
    """Vision transformer for small images.

    [batch, height, width, channels] to logits [batch, classes]; attributes as in `WideResNet`.

    Attributes:
      size: 'small' or 'base'.
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
        """Logits [batch, classes] of square images [batch, 8 n, 8 n, channels]."""
        del train  # no dropout, no running statistics
        if x.shape[1] != x.shape[2] or x.shape[1] % PATCHES:
            raise ValueError(f"a vit wants square images of 8 n pixels a side, not {x.shape[1]}x{x.shape[2]}")
        kinds: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        linear: Any = functools.partial(nn.Dense, kernel_init=_narrow, **kinds)
        norm: Any = functools.partial(nn.LayerNorm, epsilon=1e-6, **kinds)
        width, heads = SIZES[self.size]
        patches = PatchEmbedding(width, kinds | {"convolution": self.convolution}, name="patch_embed")(
            x.astype(self.dtype)
        )
        token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, width), self.param_dtype)
        place = self.param("pos_embed", _narrow, (1, PATCHES**2 + 1, width), self.param_dtype)
        x = jnp.concatenate(
            [
                jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], 1, width)),
                patches.reshape(x.shape[0], -1, width),
            ],
            axis=1,
        ) + place.astype(self.dtype)
        for block in range(BLOCKS):
            x = layers.block(Block, remat=self.remat)(heads, linear, norm, name=f"blocks_{block}")(x)
            if block % 3 == 2:
                grid = x[:, 1:].reshape(-1, PATCHES, PATCHES, width)
                moved = layers.tap(self, f"stage{block // 3 + 1}", grid)
                if moved is not grid:  # the same in training, where cutting and joining would cost the backward pass
                    x = jnp.concatenate([x[:, :1], moved.reshape(-1, PATCHES**2, width)], axis=1)
        x = layers.tap(self, "pooled", norm(name="norm")(x)[:, 0])
        return layers.promote_to_float32(linear(self.num_classes, name="head")(x))
