"""Where arrays lie: on every device, or ('fsdp') each device with its part of every network."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from switokd_jax.state import Tree

AXIS = "data"
SPLIT = {"params", "opt_state", "ema"}  # what fsdp splits of a state, by name
SMALLEST = 1024  # elements of an array that is worth splitting: of less, the message costs more than the memory


@dataclasses.dataclass(frozen=True)
class ShardingStrategy:
    """Attributes:

    mesh: one axis over all devices.
    fsdp: whether parameters, their averages and optimizer states are split.
    """

    mesh: Mesh
    fsdp: bool

    def along(self, *axes: str | None) -> NamedSharding:
        """Split as the axes say; on every device without any."""
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def part(self, x: Any) -> NamedSharding:
        """Of an array of a network: along the longest axis that the devices divide."""
        axes = [axis for axis, length in enumerate(x.shape) if length % self.mesh.size == 0]
        if not self.fsdp or not axes or math.prod(x.shape) < SMALLEST:
            return self.along()
        return self.along(*[None] * max(axes, key=lambda axis: x.shape[axis]), AXIS)

    def of(self, tree: Tree) -> Tree:
        """Of every array of a tree; networks are known by the names in a state."""
        return jax.tree_util.tree_map_with_path(
            lambda path, x: self.part(x) if SPLIT & {_name(key) for key in path} else self.along(), tree
        )

    def put(self, tree: Tree) -> Tree:
        """Places a tree that is the same in every process."""
        return jax.tree.map(jax.device_put if jax.process_count() == 1 else _put, tree, self.of(tree))

    def bytes_per_device(self, tree: Tree) -> int:
        """Bytes that each device holds of a tree."""
        shapes = jax.tree.map(lambda x, where: where.shard_shape(x.shape), tree, self.of(tree))
        sizes = jax.tree.map(lambda x, shape: math.prod(shape) * x.dtype.itemsize, tree, shapes)
        return sum(jax.tree.leaves(sizes))

    def constrain(self, tree: Tree) -> Tree:
        """Keeps a traced tree where `of` says."""
        return jax.lax.with_sharding_constraint(tree, self.of(tree))

    def gathered(self, tree: Tree) -> Tree:
        """A traced network, put together on every device."""
        return jax.lax.with_sharding_constraint(tree, self.along())

    def parted(self, tree: Tree) -> Tree:
        """A traced gradient of a network, in parts."""
        return jax.lax.with_sharding_constraint(tree, jax.tree.map(self.part, tree))


def _name(key: Any) -> Any:
    """Of a step on the way to a leaf."""
    return getattr(key, "name", getattr(key, "key", None))


def _put(x: Any, where: NamedSharding) -> jax.Array:
    """As `jax.device_put`, without a message: the processes are trusted to have the same values."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.device_put(x, where)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])
