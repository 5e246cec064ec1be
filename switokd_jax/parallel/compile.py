"""A compiled step, and the batches that it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from switokd_jax.state import Tree


@dataclasses.dataclass(frozen=True)
class DeviceBatches:
    """Global batches on the devices, for one call.

    Attributes:
      size: examples in each.
      count: steps to take.
      split: whether each device has a part of every batch, or all of it.
      examples: `data.batches.Batch` of arrays [most, batch, ...].
    """

    size: int
    count: int
    split: bool
    examples: Tree


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A step, compiled for each shape of data and batches when it first meets them.

    Attributes:
      variants: the jitted functions behind it, by whether the batch is split over the devices.
      options: of XLA.
      barrier: waits for the other processes.
      executables: compiled so far, by the batch size and the shapes of data and batches.
    """

    variants: dict[bool, Any]
    options: Mapping[str, Any]
    barrier: Callable[[], None]
    executables: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def call(self, tree: Tree, data: Tree, batches: DeviceBatches) -> Any:
        """Takes the steps: the state or variables, the placed data and batches to results, still on the devices.

        Returns:
          What `calls.multi_step` says.
        """
        return self.executable(tree, data, batches)(tree, data, batches.examples, batches.count)

    def executable(self, tree: Tree, data: Tree, batches: DeviceBatches) -> Any:
        """What these arguments of `call` run: compiled when their shapes first come, by all processes."""
        key = (batches.size, *(x.shape for x in jax.tree.leaves((data, batches.examples))))
        if key not in self.executables:
            lowered = self.variants[batches.split].lower(tree, data, batches.examples, batches.count)
            self.executables[key] = lowered.compile(dict(self.options))
            self.barrier()
        return self.executables[key]
