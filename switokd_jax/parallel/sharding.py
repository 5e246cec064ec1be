"""Shardings of arrays: replicated on every device, or ('fsdp') each network split over the devices."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from switokd_jax.state import Tree

AXIS = "data"
FSDP_KEYS = {"params", "opt_state", "ema"}  # parts of a network's state that fsdp shards
MIN_SHARDED_SIZE = 1024  # elements: sharding a smaller array costs more in collectives than it saves in memory


@dataclasses.dataclass(frozen=True)
class ShardingStrategy:
    """Shardings of a train state.

    Attributes:
      mesh: one axis over all devices.
      fsdp: whether parameters, their averages and optimizer states are sharded.
    """

    mesh: Mesh
    fsdp: bool

    def named_sharding(self, *axes: str | None) -> NamedSharding:
        """Returns the sharding with these mesh axes; replicated if there are none."""
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def param_sharding(self, x: Any) -> NamedSharding:
        """Sharding of one parameter array: along its longest axis that is divisible by the device count, else
        replicated."""
        axes = [axis for axis, length in enumerate(x.shape) if length % self.mesh.size == 0]
        if not self.fsdp or not axes or math.prod(x.shape) < MIN_SHARDED_SIZE:
            return self.named_sharding()
        return self.named_sharding(*[None] * max(axes, key=lambda axis: x.shape[axis]), AXIS)

    def tree_sharding(self, tree: Tree) -> Tree:
        """Shardings for every array of a train state. Arrays under a key in `FSDP_KEYS` are sharded, all others
        replicated."""
        return jax.tree_util.tree_map_with_path(
            lambda path, x: (
                self.param_sharding(x) if FSDP_KEYS & {_key_name(key) for key in path} else self.named_sharding()
            ),
            tree,
        )

    def device_put(self, tree: Tree) -> Tree:
        """Puts a tree of arrays, the same in every process, on the devices."""
        device_put = jax.device_put if jax.process_count() == 1 else _device_put_local
        return jax.tree.map(device_put, tree, self.tree_sharding(tree))

    def bytes_per_device(self, tree: Tree) -> int:
        """Returns the bytes that each device holds of a tree."""
        shapes = jax.tree.map(lambda x, sharding: sharding.shard_shape(x.shape), tree, self.tree_sharding(tree))
        sizes = jax.tree.map(lambda x, shape: math.prod(shape) * x.dtype.itemsize, tree, shapes)
        return sum(jax.tree.leaves(sizes))

    def constrain(self, tree: Tree) -> Tree:
        """Constrains a traced tree to its `tree_sharding`."""
        return jax.lax.with_sharding_constraint(tree, self.tree_sharding(tree))

    def unshard(self, tree: Tree) -> Tree:
        """Replicates the traced parameters of a network."""
        return jax.lax.with_sharding_constraint(tree, self.named_sharding())

    def shard(self, tree: Tree) -> Tree:
        """Shards a traced gradient as its parameters are sharded."""
        return jax.lax.with_sharding_constraint(tree, jax.tree.map(self.param_sharding, tree))


def _key_name(key: Any) -> Any:
    """Name of one entry of a pytree key path."""
    return getattr(key, "name", getattr(key, "key", None))


def _device_put_local(x: Any, sharding: NamedSharding) -> jax.Array:
    """Puts an array on the devices as `jax.device_put` does, without its collective: that one checks that all
    processes have the same values, which is known here."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.device_put(x, sharding)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
