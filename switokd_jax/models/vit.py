"""Vision transformers for small images: 8 x 8 patches for every image size.

Source: Dosovitskiy et al. 2020 (arXiv 2010.11929), with timm's structure and names: pre-norm blocks, biases in the
query, key and value projections, exact GELU, a class token. vit_small has width 384 and 6 heads, vit_base 768 and 12;
both have 12 blocks. Patches have 4 pixels a side for 32-pixel images and 8 for 64.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from switokd_jax.models.layers import Layers, sow_feature
from switokd_jax.precision import promote_to_float32

# Width and number of heads, by size.
SIZES = {"small": (384, 6), "base": (768, 12)}
NUM_BLOCKS = 12
PATCHES_PER_SIDE = 8
# timm truncates this normal at -2 and 2, which are a hundred standard deviations: no truncation at all.
normal_init_002 = nn.initializers.normal(0.02)


def dense(layers: Layers, x: jax.Array, features: int, *, name: str, use_bias: bool = True) -> jax.Array:
    """Applies a linear layer initialized as timm's: kernel from `normal_init_002`, bias zero."""
    zeros = nn.initializers.zeros_init()
    return layers.dense(x, features, name=name, use_bias=use_bias, kernel_init=normal_init_002, bias_init=zeros)


class Attention(nn.Module):
    """Self-attention among all tokens."""

    layers: Layers
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [batch, tokens, width] to the same shape."""
        batch, tokens, width = x.shape
        qkv = dense(self.layers, x, 3 * width, name="qkv").reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        # Not jax.nn.dot_product_attention: its softmax is float32 in float64 runs too.
        logits = promote_to_float32(jnp.einsum("bqhd,bkhd->bhqk", query, key)) * (width / self.heads) ** -0.5
        out = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(logits).astype(value.dtype), value)
        return dense(self.layers, out.reshape(x.shape), width, name="proj")


class Mlp(nn.Module):
    """Two linear layers with GELU between them; the hidden layer is four times as wide."""

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [..., width] to the same shape."""
        hidden = nn.gelu(dense(self.layers, x, 4 * x.shape[-1], name="fc1"), approximate=False)
        return dense(self.layers, hidden, x.shape[-1], name="fc2")


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP, each after a norm and added to its input."""

    layers: Layers
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [batch, tokens, width] to the same shape."""
        layers = self.layers
        x = x + Attention(layers, self.heads, name="attn")(layers.layer_norm(x, name="norm1", epsilon=1e-6))
        return x + Mlp(layers, name="mlp")(layers.layer_norm(x, name="norm2", epsilon=1e-6))


class PatchEmbedding(nn.Module):
    """`Layers.patch_embed` under the name that timm gives it, 'patch_embed.proj'."""

    layers: Layers
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, 8, 8, features]."""
        return self.layers.patch_embed(x, self.width, x.shape[1] // PATCHES_PER_SIDE, name="proj")


class VisionTransformer(nn.Module):
    """Vision transformer for small images.

    Attributes:
      size: 'small' or 'base'.
      num_classes: number of logits.
      layers: options of its layers.
    """

    size: str
    num_classes: int
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps square images [batch, 8 n, 8 n, channels] to logits [batch, num_classes].

        Raises:
          ValueError: for images of another shape.
        """
        del train  # no dropout, no running statistics
        if x.shape[1] != x.shape[2] or x.shape[1] % PATCHES_PER_SIDE:
            raise ValueError(f"a vit takes square images of 8 n pixels a side, not {x.shape[1]}x{x.shape[2]}")
        layers = self.layers
        width, heads = SIZES[self.size]
        num_patches = PATCHES_PER_SIDE**2
        patches = PatchEmbedding(layers, width, name="patch_embed")(x.astype(layers.dtype))
        token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, width), layers.param_dtype)
        pos_embed = self.param("pos_embed", normal_init_002, (1, num_patches + 1, width), layers.param_dtype)
        token = jnp.broadcast_to(token.astype(layers.dtype), (x.shape[0], 1, width))
        x = jnp.concatenate([token, patches.reshape(x.shape[0], -1, width)], axis=1) + pos_embed.astype(layers.dtype)
        block_cls = layers.maybe_remat(Block)
        for block in range(NUM_BLOCKS):
            x = block_cls(layers, heads, name=f"blocks_{block}")(x)
            if block % 3 == 2:
                grid = x[:, 1:].reshape(-1, PATCHES_PER_SIDE, PATCHES_PER_SIDE, width)
                feature = sow_feature(self, f"stage{block // 3 + 1}", grid)
                if feature is not grid:  # perturbed; in training a concatenation would slow down the backward pass
                    x = jnp.concatenate([x[:, :1], feature.reshape(-1, num_patches, width)], axis=1)
        x = sow_feature(self, "pooled", layers.layer_norm(x, name="norm", epsilon=1e-6)[:, 0])
        return promote_to_float32(dense(layers, x, self.num_classes, name="head"))
