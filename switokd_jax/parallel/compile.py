"""A compiled step, and the batches that it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from switokd_jax.state import Tree


@dataclasses.dataclass(frozen=True)
class Batches:
    """Global batches on the devices, for one call.

    Attributes:
      size: examples in each.
      count: steps to take.
      split: whether each device has a part of every batch, or all of it.
      examples: `data.batches.Examples` of arrays [most, batch, ...].
    """

    size: int
    count: int
    split: bool
    examples: Tree


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step, compiled for each shape of data and batches when it first meets them.

    Attributes:
      variants: the jitted functions behind it, by whether the batch is split over the devices.
      options: of XLA.
      meet: waits for the other processes.
      programs: compiled so far, by the batch size and the shapes of data and batches.
    """

    variants: dict[bool, Any]
    options: Mapping[str, Any]
    meet: Callable[[], None]
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def call(self, tree: Tree, data: Tree, batches: Batches) -> Any:
        """Takes the steps: the state or variables, the placed data and batches to results, still on the devices.

        Returns:
          What `calls.in_turn` says.
        """
        return self.program(tree, data, batches)(tree, data, batches.examples, batches.count)

    def program(self, tree: Tree, data: Tree, batches: Batches) -> Any:
        """What these arguments of `call` run: compiled when their shapes first come, by all processes."""
        key = (batches.size, *(x.shape for x in jax.tree.leaves((data, batches.examples))))
        if key not in self.programs:
            lowered = self.variants[batches.split].lower(tree, data, batches.examples, batches.count)
            self.programs[key] = lowered.compile(dict(self.options))
            self.meet()
        return self.programs[key]
