"""mixup and CutMix: every image is mixed with another one of the global batch, and so are their labels.

`config.data.mix` names entries of `MIXINGS`, perhaps with options: 'mixup(alpha=0.4)'. Each image draws one of them.
It gives every pixel p of image i a weight w_i(p); with their mean w_i over the pixels and another image j,

    image_i(p) = w_i(p) image_i(p) + (1 - w_i(p)) image_j(p),    label_i = w_i onehot(y_i) + (1 - w_i) onehot(y_j)

All draws are keyed by example, as those of the other transforms are: any number of devices mixes the same images.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from switokd_jax.data.entries import get_functions
from switokd_jax.data.sampling import Batch
from switokd_jax.errors import UserError
from switokd_jax.losses import class_probabilities
from switokd_jax.precision import float32_or_wider
from switokd_jax.state import Tree, fold_in_name

Mixing = Callable[[jax.Array, int, int], jax.Array]
"""Pure function (keys, height, width) -> weights, traced inside the train step.

keys: [batch], one typed PRNG key per example.
weights: [batch, height, width] float32 in [0, 1], of each pixel of the image itself; the other image has the rest.
"""


def mixup(keys: jax.Array, height: int, width: int, alpha: float = 0.2) -> jax.Array:
    """Gives all pixels of an image one weight, of the distribution Beta(alpha, alpha) (Zhang et al. 2018).

    The paper has alpha 0.2 for ImageNet and 1 for CIFAR. It draws one weight per batch; here each image draws its own.

    Args:
      keys: [batch], one typed PRNG key each.
      height: in pixels.
      width: in pixels.
      alpha: of the distribution; the larger, the more images are mixed half and half.

    Raises:
      UserError: for an alpha that is not above 0.
    """
    return jnp.broadcast_to(_beta("mixup", keys, alpha)[:, None, None], (len(keys), height, width))


def cutmix(keys: jax.Array, height: int, width: int, alpha: float = 1.0) -> jax.Array:
    """Gives the pixels of a random box the weight 0 and all others 1 (Yun et al. 2019, algorithm A1).

    The box has the image's ratio and covers the share 1 - w of it, with w of Beta(alpha, alpha). Its center is uniform
    and the border of the image may cut it, in which case the labels follow the area that is left.

    Args:
      keys: [batch], one typed PRNG key each.
      height: in pixels.
      width: in pixels.
      alpha: of the distribution; 1 is uniform, as in the paper.

    Raises:
      UserError: for an alpha that is not above 0.
    """
    share = jnp.sqrt(1.0 - _beta("cutmix", keys, alpha))

    def inside(length: int, salt: int) -> jax.Array:
        center = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, salt), (), 0, length, jnp.int32))(keys)
        half = (length * share).astype(jnp.int32) // 2
        positions = jnp.arange(length, dtype=jnp.int32)
        return (positions >= (center - half)[:, None]) & (positions < (center + half)[:, None])

    box = inside(height, 1)[:, :, None] & inside(width, 2)[:, None, :]
    return jnp.where(box, 0.0, 1.0).astype(jnp.float32)


# By name, as in config.data.mix; users add theirs.
MIXINGS: dict[str, Callable[..., jax.Array]] = {"mixup": mixup, "cutmix": cutmix}


def get_mixings(entries: Sequence[str]) -> dict[str, Mixing]:
    """Looks up mixings by name, as `transforms.get_transforms` does.

    Raises:
      UserError: naming the first that is unknown, repeated or no name with numbers.
    """
    return get_functions("data.mix", entries, MIXINGS, inputs=3)


def check_mixings(entries: Sequence[str], image_shape: tuple[int, int, int]) -> None:
    """Checks that mixings exist and return weights for all pixels; traces them and computes nothing.

    Raises:
      UserError: naming the mixing at fault.
    """
    height, width, _ = image_shape
    for name, mixing in get_mixings(entries).items():
        try:
            weights = jax.eval_shape(lambda f=mixing: f(jax.random.split(jax.random.key(0), 2), height, width))
        except UserError as error:
            raise UserError(str(error)) from None  # without JAX's note on tracebacks: the message is one line
        if getattr(weights, "shape", None) != (2, height, width):
            raise UserError(
                f"config.data.mix: {name!r} has to return weights of shape [batch, height, width], and returns "
                f"{getattr(weights, 'shape', type(weights).__name__)} for a batch of 2"
            )


def mix_batch(
    mixings: Mapping[str, Mixing],
    batch: Batch,
    keys: jax.Array,
    num_classes: int,
    all_gather: Callable[[Tree], Tree],
    local_shard: Callable[[Tree], Tree],
) -> Batch:
    """Mixes each image, and its label, with another one of the global batch.

    The order of the random numbers that the examples draw is a cycle through the batch, and each example is mixed with
    the next one in it.

    Args:
      mixings: by name; each image draws one of them.
      batch: this device's shard: images [batch, height, width, channels] or views, of a float dtype, and labels
        [batch] int32.
      keys: [batch], one typed PRNG key each; see `transforms.example_keys`.
      num_classes: number of classes.
      all_gather: gathers arrays of the shards to those of the global batch.
      local_shard: inverts `all_gather`.

    Returns:
      The batch with mixed images of the same dtype, and labels [batch, classes], float32 at least. All views of an
      example have the same weights and the same partner.
    """
    keys = jax.vmap(functools.partial(fold_in_name, name="mix"))(keys)
    order = jnp.argsort(all_gather(jax.vmap(lambda key: jax.random.bits(key))(keys)))
    partners = local_shard(jnp.zeros_like(order).at[order].set(jnp.roll(order, -1)))
    images = {"": batch.images} if batch.views is None else batch.views
    height, width = next(iter(images.values())).shape[1:3]
    weights = _draw_weights(mixings, keys, height, width)

    def mix(x: jax.Array) -> jax.Array:
        dtype = float32_or_wider(x.dtype)
        other = all_gather(x)[partners]
        own = weights[..., None].astype(dtype)
        return (own * x.astype(dtype) + (1.0 - own) * other.astype(dtype)).astype(x.dtype)

    mixed = {name: mix(x) for name, x in images.items()}
    label_dtype = float32_or_wider(next(iter(images.values())).dtype)
    classes = class_probabilities(batch.labels, num_classes, label_dtype)
    own = jnp.mean(weights, axis=(1, 2))[:, None].astype(label_dtype)
    labels = own * classes + (1.0 - own) * all_gather(classes)[partners]
    if batch.views is None:
        return dataclasses.replace(batch, images=mixed[""], labels=labels)
    return dataclasses.replace(batch, views=mixed, labels=labels)


def _draw_weights(mixings: Mapping[str, Mixing], keys: jax.Array, height: int, width: int) -> jax.Array:
    """Draws a mixing for each example, all with equal odds, and the weights of its pixels."""
    weights = jnp.stack(
        [
            mixing(jax.vmap(functools.partial(fold_in_name, name=name))(keys), height, width)
            for name, mixing in mixings.items()
        ]
    )
    chosen = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 1), (), 0, len(mixings), jnp.int32))(keys)
    return jnp.take_along_axis(weights, chosen[None, :, None, None], axis=0)[0]


def _beta(name: str, keys: jax.Array, alpha: Any) -> jax.Array:
    """Draws [batch] float32 of Beta(alpha, alpha)."""
    if not alpha > 0:
        raise UserError(f"config.data.mix: {name}(alpha={alpha}): alpha is above 0")
    return jax.vmap(lambda key: jax.random.beta(key, jnp.float32(alpha), jnp.float32(alpha), dtype=jnp.float32))(keys)
