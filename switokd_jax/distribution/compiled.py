"""A compiled step, and the batches that it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from switokd_jax.state import Tree


@dataclasses.dataclass(frozen=True)
class Batches:
    """Global batches on the devices, for one call.

    Attributes:
      size: examples in each.
      count: steps to take; 0 compiles and changes nothing.
      split: whether each device has a part of every batch, or all of it.
      examples: `data.batches.Examples` of arrays [most, batch, ...].
    """

    size: int
    count: int
    split: bool
    examples: Tree


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step.

    Attributes:
      variants: the jitted functions behind it, by whether the batch is split over the devices.
      meet: waits for the other processes.
      met: the batch sizes that all processes have compiled for.
    """

    variants: dict[bool, Any]
    meet: Callable[[], None]
    met: set[int] = dataclasses.field(default_factory=set)

    def call(self, tree: Tree, data: Tree, batches: Batches) -> Any:
        """Takes the steps: the state or variables, the placed data and batches to results, still on the devices.

        Returns:
          What `calls.in_turn` says.
        """
        step, arguments = self.variants[batches.split], (tree, data, batches.examples, batches.count)
        if jax.process_count() > 1 and batches.size not in self.met:
            step.lower(*arguments).compile()
            self.meet()
            self.met.add(batches.size)
        return step(*arguments)
