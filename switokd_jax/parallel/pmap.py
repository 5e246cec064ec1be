"""Collectives of a step that each device runs on its own shard of the batch, as under `jax.pmap`.

Logits and labels, which are small, are gathered, so that every device takes the same decision from the same numbers.
Gradients are summed.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from switokd_jax.parallel.collectives import Collectives
from switokd_jax.state import Tree


def pmap_collectives(axis: str, num_devices: int, *, sharded: bool, local_norm: bool) -> Collectives:
    """Makes the collectives of a step.

    Args:
      axis: name of the mesh's axis.
      num_devices: size of that axis.
      sharded: True if each device has a shard of the batch, False if each has all of it.
      local_norm: True if BatchNorm uses the statistics of its own device's shard.
    """
    pmean_batch_stats = functools.partial(_pmean, axis) if local_norm else (lambda tree: tree)
    if not sharded:
        return Collectives(pmean_batch_stats=pmean_batch_stats)

    def shard_offset(size: int) -> jax.Array:
        return jax.lax.axis_index(axis) * size

    def local_shard(x: jax.Array) -> jax.Array:
        size = x.shape[0] // num_devices
        return jax.lax.dynamic_slice_in_dim(x, shard_offset(size), size)

    return Collectives(
        all_gather=functools.partial(_all_gather, axis),
        local_shard=local_shard,
        psum=functools.partial(_psum, axis),
        pmean_batch_stats=pmean_batch_stats,
        shard_offset=shard_offset,
    )


def _all_gather(axis: str, tree: Tree) -> Tree:
    """Gathers arrays [examples of this device, ...] to [examples of all devices, ...], one collective per dtype."""
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


def _psum(axis: str, tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jax.lax.psum(x, axis), tree)


def _pmean(axis: str, tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jax.lax.pmean(x, axis), tree)
