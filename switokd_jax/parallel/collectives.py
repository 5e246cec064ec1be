"""Cross-device operations of a step: the only way in which it depends on devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from switokd_jax.state import Tree


def _identity(tree: Tree) -> Tree:
    return tree


@dataclasses.dataclass(frozen=True)
class Collectives:
    """Cross-device operations used by the train step. The defaults are identities: the step then sees the global batch.

    Attributes:
      all_gather: gathers a tree of arrays [examples of this device, ...] to [examples of the global batch, ...].
      local_shard: inverts `all_gather`: slices the examples of this device out of the global batch.
      all_gather_params: gathers the parameters of a network, of which a device may keep only a shard between steps.
      psum: sums gradients over the devices; a device that keeps shards gets the gradient of its own shard.
      pmean_batch_stats: averages running statistics over the devices (differs only for local BatchNorm).
      shard_offset: given the per-device batch size, the index in the global batch of this device's first example.
    """

    all_gather: Callable[[Tree], Tree] = _identity
    local_shard: Callable[[Tree], Tree] = _identity
    all_gather_params: Callable[[Tree], Tree] = _identity
    psum: Callable[[Tree], Tree] = _identity
    pmean_batch_stats: Callable[[Tree], Tree] = _identity
    shard_offset: Callable[[int], jax.Array | int] = lambda size: 0
