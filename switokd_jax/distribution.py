"""The only file that knows devices: one step under `jax.jit` over a mesh, or under `jax.pmap`.

The step sees its devices through `step.Across`. Under jit the arrays are global and XLA splits the work, so
there is nothing to do. Under pmap each device has its share of the batch: logits and labels, which are
small, are gathered, so that every device makes the same decision of the same numbers, and gradients are
summed. A last batch that the device count does not divide is computed whole by every device, so shards are
always of equal size. Each process sends its own part of a batch to its own devices.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from switokd_jax.data.batches import Share, Sized
from switokd_jax.fields import ConfigError
from switokd_jax.state import Tree
from switokd_jax.step import Across

AXIS = "data"
AHEAD = 2  # batches that are on their way to the devices while a step runs
# Makes the function (state or variables, data, batch) for one way of working together.
MakeStep = Callable[[Across], Callable[..., Any]]


@dataclasses.dataclass(frozen=True)
class Batch:
    """A global batch on the devices.

    Attributes:
      size: number of examples.
      split: whether each device has a part of it, or all of it.
      examples: `data.batches.Examples`.
    """

    size: int
    split: bool
    examples: Tree


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step.

    Attributes:
      variants: the jitted functions behind it, by whether the batch is split over the devices.
    """

    variants: dict[bool, Any]

    def call(self, tree: Tree, data: Tree, batch: Batch) -> Any:
        """The step's results, still on the devices, of the state or variables, the placed data and a batch."""
        return self.variants[batch.split](tree, data, batch.examples)


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Places arrays and compiles steps for all devices. Made by `create`.

    Attributes:
      parallelism: 'jit' or 'pmap'.
      local_norm: whether BatchNorm sees its own device's share only.
      mesh: one axis over all devices.
    """

    parallelism: str
    local_norm: bool
    mesh: Mesh

    @property
    def device_count(self) -> int:
        """Devices of all processes."""
        return self.mesh.size

    @property
    def platform(self) -> str:
        """'cpu', 'gpu' or 'tpu'."""
        return str(self.mesh.devices.flat[0].platform)

    @property
    def norm_axis(self) -> str | None:
        """The axis_name of BatchNorm: under jit its batch is the global one already."""
        return AXIS if self.parallelism == "pmap" and not self.local_norm else None

    def place(self, tree: Tree) -> Tree:
        """Copies a tree of arrays to every device."""
        if self.parallelism == "jit":
            return jax.device_put(tree, self._sharding())
        stacked = jax.tree.map(lambda x: np.broadcast_to(x, (self.device_count, *np.shape(x))), tree)
        return jax.device_put(stacked, self._sharding(AXIS))

    def one(self, tree: Tree) -> Tree:
        """The inverse of `place`: the single value behind equal copies."""
        return tree if self.parallelism == "jit" else jax.tree.map(lambda x: x[0], tree)

    def template(self, tree: Tree) -> Tree:
        """Shape, dtype and placement of single values, for reading them from a checkpoint."""
        sharding = self._sharding()
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    def compile(self, make: MakeStep, *, donate: bool) -> Compiled:
        """Compiles a step for batches that are split over the devices and for those that are not.

        Args:
          make: makes the step for an `Across`.
          donate: whether the first argument's memory may be reused.
        """
        donated = (0,) if donate else ()
        if self.parallelism == "jit":
            whole = jax.jit(make(Across()), donate_argnums=donated, out_shardings=self._sharding())
            return Compiled({True: whole, False: whole})
        variants = {
            split: jax.pmap(
                make(self._across(split)), axis_name=AXIS, donate_argnums=donated, devices=list(self.mesh.devices)
            )
            for split in (True, False)
        }
        return Compiled(variants)

    @property
    def share(self) -> Share:
        """The part of each global batch that this process reads."""
        return Share(jax.process_index(), jax.process_count(), self.device_count)

    def batch(self, size: int, examples: Tree) -> Batch:
        """Places a batch.

        Args:
          size: of the global batch.
          examples: NumPy arrays [n, ...], this process's share of it.
        """
        split = size % self.device_count == 0
        return Batch(size, split, jax.tree.map(lambda x: self._place_rows(x, size, split), examples))

    def ahead(self, batches: Iterable[Sized]) -> Iterator[Batch]:
        """Places batches before they are wanted: the copy to the devices runs beside the step."""
        waiting: collections.deque[Batch] = collections.deque()
        for size, examples in batches:
            waiting.append(self.batch(size, examples))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting

    def _place_rows(self, x: np.ndarray, size: int, split: bool) -> jax.Array:
        if self.parallelism == "jit":
            sharding = self._sharding(AXIS) if split else self._sharding()
            return jax.make_array_from_process_local_data(sharding, x, (size, *x.shape[1:]))
        here = self.device_count // jax.process_count()
        each = size // self.device_count if split else size
        rows = x.reshape(here, each, *x.shape[1:]) if split else np.broadcast_to(x, (here, *x.shape))
        shape = (self.device_count, each, *x.shape[1:])
        return jax.make_array_from_process_local_data(self._sharding(AXIS), rows, shape)

    def _sharding(self, *axes: str) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _across(self, split: bool) -> Across:
        average = self._mean if self.local_norm else (lambda tree: tree)
        if not split:
            return Across(average=average)
        return Across(gather=_gather, scatter=self._scatter, total=_sum, average=average, first=_first)

    def _scatter(self, x: jax.Array) -> jax.Array:
        size = x.shape[0] // self.device_count
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(AXIS) * size, size)

    @staticmethod
    def _mean(tree: Tree) -> Tree:
        return jax.tree.map(lambda x: jax.lax.pmean(x, AXIS), tree)


def create(
    parallelism: str, batch_norm: str, batch_size: int, devices: Sequence[jax.Device] | None = None
) -> Distribution:
    """The given devices, or all that JAX sees, in one axis.

    Raises:
      ConfigError: if the batch cannot be split into equal shares.
    """
    devices = jax.devices() if devices is None else list(devices)
    if batch_size % len(devices):
        near = max(batch_size // len(devices), 1) * len(devices)
        raise ConfigError(
            f"config.batch_size is {batch_size}, which {len(devices)} devices do not divide; use {near}, say"
        )
    # Process by process, as `Share` counts the rows of a batch.
    devices = sorted(devices, key=lambda device: device.process_index)
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return Distribution(parallelism, batch_norm == "local", mesh)


def _first(size: int) -> jax.Array:
    return jax.lax.axis_index(AXIS) * size


def _gather(x: jax.Array) -> jax.Array:
    return jax.lax.all_gather(x, AXIS, tiled=True)


def _sum(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jax.lax.psum(x, AXIS), tree)


def is_main_process() -> bool:
    """Whether this process writes logs, figures and summaries."""
    return jax.process_index() == 0
