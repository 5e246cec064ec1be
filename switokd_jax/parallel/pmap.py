"""What a step under `jax.pmap`, which sees one device's share of the batch, needs of the other devices.

Logits and labels, which are small, are gathered, so that every device makes the same decision of the same numbers, and
gradients are summed.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from switokd_jax.parallel.collectives import Collectives
from switokd_jax.state import Tree


def across(axis: str, devices: int, *, split: bool, local_norm: bool) -> Collectives:
    """The functions of a step.

    Args:
      axis: pmap's axis name.
      devices: along it.
      split: whether each device has a part of the batch, or all of it.
      local_norm: whether BatchNorm saw its own device's share only.
    """
    average = functools.partial(_mean, axis) if local_norm else (lambda tree: tree)
    if not split:
        return Collectives(pmean_batch_stats=average)

    def first(size: int) -> jax.Array:
        return jax.lax.axis_index(axis) * size

    def local_shard(x: jax.Array) -> jax.Array:
        size = x.shape[0] // devices
        return jax.lax.dynamic_slice_in_dim(x, first(size), size)

    return Collectives(
        all_gather=functools.partial(_gather, axis),
        local_shard=local_shard,
        psum=functools.partial(_sum, axis),
        pmean_batch_stats=average,
        shard_offset=first,
    )


def _gather(axis: str, tree: Tree) -> Tree:
    """Arrays [this device's examples, ...] to [all examples, ...], by one collective for each dtype."""
    leaves, structure = jax.tree.flatten(tree)
    rows = [leaf.reshape(len(leaf), -1) for leaf in leaves]
    gathered = {
        dtype: jax.lax.all_gather(jnp.concatenate([row for row in rows if row.dtype == dtype], 1), axis, tiled=True)
        for dtype in {row.dtype for row in rows}
    }
    begin = dict.fromkeys(gathered, 0)
    out = []
    for leaf, row in zip(leaves, rows, strict=True):
        end = begin[row.dtype] + row.shape[1]
        out.append(gathered[row.dtype][:, begin[row.dtype] : end].reshape(-1, *leaf.shape[1:]))
        begin[row.dtype] = end
    return jax.tree.unflatten(structure, out)


def _sum(axis: str, tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jax.lax.psum(x, axis), tree)


def _mean(axis: str, tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jax.lax.pmean(x, axis), tree)
